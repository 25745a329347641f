"""An engine that may not take much memory reads experts from the file, and computes the same."""

import subprocess
import sys

import numpy as np
import pytest

from memory_limits import named_limit
from mobilemoe.checkpoint import write_random
from mobilemoe.engine import Engine
from mobilemoe.engine.expert_use import hit_rate
from mobilemoe.errors import UsageError
from mobilemoe.hub import ASSETS
from mobilemoe.presets import family_member

NANO = ASSETS / "nano"
IDS = [(7 * at) % 16000 for at in range(700)]


def least(**options) -> int:
    """The smallest max_memory that nano can be opened with now, as the refusal says."""
    with pytest.raises(UsageError, match="max_memory is 1000 bytes, but the process needs at least") as refused:
        Engine(NANO, max_memory=1000, **options)
    return named_limit(str(refused.value))


def outputs(engine: Engine) -> np.ndarray:
    """Logits of a long prompt, some tokens one by one, and a batch of texts: enough passes to try reading ahead."""
    session, other = engine.session(800), engine.session(64)
    found = [engine.forward([(session, IDS[:600], 8)])]
    found += [engine.forward([(session, [token], 1)]) for token in IDS[600:660]]
    found += [engine.forward([(session, [token], 1), (other, [token + 1], 1)]) for token in IDS[660:]]
    return np.concatenate(found)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("free", [0, 3_000_000, 40_000_000, 10**12])
def test_results_do_not_depend_on_the_memory(threads, free):
    expected = outputs(Engine(NANO, threads=1))
    engine = Engine(NANO, threads=threads, max_memory=least() + 4_000_000 + free)
    assert np.array_equal(outputs(engine), expected)
    use = engine.expert_use
    assert use.bytes_read >= (use.misses + use.ahead) * use.expert_bytes // 2 > 0
    assert engine.expert_use.experts == 8 * 18


def test_a_cap_that_holds_everything_reads_each_expert_once():
    engine = Engine(NANO, threads=1, max_memory=10**12)
    outputs(engine)
    assert engine.expert_use.places == engine.expert_use.experts
    assert engine.expert_use.bytes_read <= engine.expert_use.experts * engine.expert_use.expert_bytes


def test_the_refusal_names_a_cap_that_works_and_leaves_room_for_a_short_text():
    engine = Engine(NANO, threads=1, max_memory=least() + 4_000_000)
    assert engine.context >= 64
    assert len(engine.generate_ids([1, 2, 3], max_new_tokens=40)) == 40


def test_the_context_is_what_there_is_room_for_and_a_quarter_is_for_texts():
    engine = Engine(NANO, threads=1, kv="fp32", activations="fp32", max_memory=least(activations="fp32") + 4_000_000)
    longest, room = engine.config.max_position_embeddings, engine.native.room
    assert engine.kv_bytes(engine.context) <= room + 2**20
    assert engine.context == longest or engine.kv_bytes(engine.context + 64) > room - 2**20
    assert engine.text_bytes >= engine.native.room // 5
    assert Engine(NANO, threads=1).text_bytes is None
    assert Engine(NANO, threads=1).expert_use is None


def test_an_expert_that_is_still_on_its_way_counts_as_no_hit():
    assert hit_rate({"hits": 6, "ahead": 3, "misses": 1}) == 0.6
    assert hit_rate({"hits": 0, "ahead": 0, "misses": 0}) is None


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "1GB", 2**63])
def test_what_is_no_size_is_refused(wrong):
    with pytest.raises(UsageError, match="max_memory is"):
        Engine(NANO, max_memory=wrong)


# In a process of its own, so that the memory is that of the model: what it writes, and how much memory it has had.
WRITE = """
import sys
from mobilemoe.engine import Engine
folder, limit, speculate = sys.argv[1:]
engine = Engine(folder, threads=2, speculate=speculate, **({} if limit == "none" else {"max_memory": int(limit)}))
for prompt in ([5], [1, 2, 3, 4] * 8, [at % 90 for at in range(0, 7000, 7)]):
    print(engine.generate_ids(prompt, max_new_tokens=60))
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
"""


def test_a_process_stays_within_its_limit_and_writes_the_same(tmp_path):
    config = family_member(512, expansion=20, layers=8, vocab_size=96)
    write_random(tmp_path / "wide", config, seed=1, format="int4")

    def start(limit: int | str, speculate: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", WRITE, tmp_path / "wide", str(limit), speculate]
        return subprocess.run(command, capture_output=True, text=True)

    def written(limit: int | str, speculate: str) -> tuple[list[str], int]:
        *texts, peak = start(limit, speculate).stdout.splitlines()
        return texts, int(peak)

    expected, unlimited = written("none", "off")
    least = named_limit(start(1, "off").stderr)
    assert least < unlimited - 50_000_000
    for limit in (least, least + 2**24):
        for speculate in ("off", "lookup"):
            texts, peak = written(limit, speculate)
            assert texts == expected
            assert peak <= limit
