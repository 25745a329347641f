"""benchmarks/peers.py measures in turn and tells ratios. The peers here are stand-ins: llama-bench has no package.

The file for ik_llama.cpp has the same weights, but no ik_llama.cpp reads it here."""

import dataclasses
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest

from mobilemoe.checkpoint import write_random
from mobilemoe.config_rope import RopeScaling
from mobilemoe.engine import instruction_sets
from mobilemoe.export.gguf import write_gguf
from mobilemoe.hub import find_model
from mobilemoe.tokenizer import Tokenizer
from model_configs import GROUPED_QUERIES
from places import ROOT

STAND_IN = """#!{python}
import json, sys, time
with open({log!r}, "a") as log:
    print({name!r}, *sys.argv[1:], file=log)
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
tokens = int(given["-r"]) * (int(given["-p"]) + int(given["-n"]))
if "-gp" in given:
    tokens = 3 * int(given["-gp"].split(",")[1])  # three times as slow behind others
end = time.process_time() + {seconds} * tokens
while time.process_time() < end:
    pass
speeds = [3, 4, 5] if given["-fa"] == "1" else [9, 1, 2]
print(json.dumps([{{"samples_ts": speeds}}]) if {works} else "no such model")
"""


@pytest.fixture
def stand_in(tmp_path):
    def make(name, works=True, seconds=0.0):
        path = tmp_path / name
        told = {"log": str(tmp_path / "log"), "name": name, "works": works, "seconds": seconds}
        path.write_text(STAND_IN.format(python=sys.executable, **told))
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def nano_gguf(tmp_path):
    path = tmp_path / "nano.gguf"
    path.touch()
    return path


def compare(*arguments, model="nano", fails=False):
    command = [sys.executable, ROOT / "benchmarks" / "peers.py", model, "--idle", 1, "--threads", 1, *arguments]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert (ended.returncode != 0) == fails, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def test_peers_take_turns_with_the_same_points_and_the_faster_row_counts(tmp_path, nano_gguf, stand_in):
    options = ["--prefill", "16", "--depths", "0,32", "--rounds", 2]
    ended = compare(nano_gguf, "--llama", stand_in("llama"), "--ik", stand_in("ik"), *options)
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["isa"] in instruction_sets()
    assert 0 <= found["busy"] <= 1
    for point in ("prefill 16", "decode 0", "decode 32"):
        assert found[point]["mobilemoe"] > 4
        for peer in ("llama.cpp", "ik_llama.cpp"):
            ratio = found[point][peer]["ratio"]
            assert found[point][peer]["tok_s"] == 4
            assert ratio["rounds"] == 2
            assert ratio["quartiles"][0] <= ratio["median"] <= ratio["quartiles"][1]
            assert ratio["median"] == pytest.approx(found[point]["mobilemoe"] / 4, rel=0.01)
        assert f"{point} " in ended.stdout
    calls = [shlex.split(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [name for name, *_ in calls] == 2 * (6 * ["llama"] + 3 * ["ik"])
    for _, *flags in calls:
        assert flags[:6] == ["-m", str(nano_gguf), "-t", "1", "-o", "json"]
        assert flags[-2:] == ["-r", "3"]
    plain, flash, ik = ["-fa", "0"], ["-fa", "1"], ["-fa", "1", "-rtr", "1", "-fmoe", "1"]
    prefill, decode, nothing = ["-p", "16", "-n", "0"], ["-p", "0", "-n", "32"], ["-p", "0", "-n", "0"]
    asked = [flags[6:-2] for _, *flags in calls]
    assert asked[:4] == [[*plain, *prefill], [*flash, *prefill], [*plain, *decode], [*flash, *decode]]
    assert asked[4:6] == [[*plain, *decode, "-d", "32"], [*flash, *decode, "-d", "32"]]
    assert asked[6:9] == [[*ik, *prefill], [*ik, *decode], [*ik, *nothing, "-gp", "32,32"]]


def test_seconds_of_the_processor_leave_out_those_in_which_a_peer_starts(tmp_path, nano_gguf, stand_in):
    options = ["--cpu", "--prefill", "64", "--depths", "0,32", "--rounds", 1]
    ended = compare(nano_gguf, "--ik", stand_in("ik", seconds=0.004), *options)
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["cpu"]
    for point, seconds in {"prefill 64": 0.004, "decode 0": 0.004, "decode 32": 0.012}.items():
        assert found[point]["ik_llama.cpp"]["tok_s"] == pytest.approx(1 / seconds, rel=0.2)


def test_a_peer_that_measures_nothing_ends_it_with_what_it_said(nano_gguf, stand_in):
    ended = compare(nano_gguf, "--llama", stand_in("llama", works=False), "--rounds", 1, "--prefill", 16, fails=True)
    assert "llama.cpp measured nothing with -fa 0 -p 16 -n 0 -r 3 (exit 0): no such model" in ended.stderr
    ended = compare(nano_gguf, "--llama", nano_gguf, "--rounds", 1, "--prefill", 16, fails=True)
    assert "llama.cpp does not start: " in ended.stderr


def test_there_has_to_be_a_peer_and_its_files(nano_gguf):
    assert "no peer is given" in compare(nano_gguf, fails=True).stderr
    assert "nowhere is not a file" in compare(nano_gguf, "--ik", "nowhere", fails=True).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prefill", "many"], "argument --prefill"),
        (["--depths", "0,-1"], "argument --depths"),
        (["--rounds", "0"], "argument --rounds"),
        (["--cpu", "--threads", "2"], "--cpu measures with one thread"),
        (["--depths", "2048"], "2080 tokens are more than the 2048 of the model's context"),
    ],
)
def test_points_that_cannot_be_measured_are_refused_before_anything_runs(
    arguments, said, nano_gguf, stand_in, tmp_path
):
    assert said in compare(nano_gguf, "--llama", stand_in("llama"), *arguments, fails=True).stderr
    assert not (tmp_path / "log").exists()


def test_a_model_that_is_nowhere_is_told(nano_gguf, stand_in):
    assert "nobody" in compare(nano_gguf, "--llama", stand_in("llama"), model="./nobody", fails=True).stderr


@pytest.mark.parametrize("scaled", [False, True])
def test_the_file_for_ik_has_the_same_weights_in_the_architecture_that_it_knows(scaled, tmp_path):
    gguf = pytest.importorskip("gguf")
    config = dataclasses.replace(GROUPED_QUERIES, vocab_size=16_400, eos_token_id=(16379,))
    if scaled:
        rope = RopeScaling(factor=16.0, original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=1.0)
        config = dataclasses.replace(config, rope_scaling=rope)
    folder, path, out = tmp_path / "model", tmp_path / "model.gguf", tmp_path / "ik.gguf"
    write_random(folder, config, seed=3, format="int4", group_axis="in")
    Tokenizer.load(find_model("nano")).save(folder)
    write_gguf(folder, path)
    command = [sys.executable, ROOT / "benchmarks" / "gguf_for_ik.py", path, out]
    subprocess.run([*map(str, command)], check=True)
    old, new = gguf.GGUFReader(path), gguf.GGUFReader(out)
    assert new.fields["general.architecture"].contents() == "glm4moe"
    shared = config.intermediate_size_mlp // config.intermediate_size
    assert new.fields["glm4moe.expert_shared_count"].contents() == shared
    assert not [name for name in new.fields if name.startswith("exaone")]
    tokens = "tokenizer.ggml.tokens"
    assert new.fields[tokens].contents() == old.fields[tokens].contents()
    made = {tensor.name: tensor for tensor in new.tensors}
    for tensor in old.tensors:
        if tensor.name != "rope_freqs.weight":
            copy = made.pop(tensor.name.replace("ffn_norm", "post_attention_norm"))
            assert copy.tensor_type == tensor.tensor_type
            assert np.array_equal(copy.data, tensor.data)
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    biases = {f"blk.{i}.attn_{part}.bias" for i in range(config.num_hidden_layers) for part in "qkv"}
    assert {*made} == biases
    for name, tensor in made.items():
        assert tensor.data.shape == (config.head_dim * (heads if "_q." in name else kv),)
        assert not tensor.data.any()
    assert subprocess.run([*map(str, command)], capture_output=True).returncode == 2  # nothing is written over


def test_what_is_no_gguf_file_gives_no_file_for_ik(tmp_path):
    pytest.importorskip("gguf")
    path, out = tmp_path / "text.gguf", tmp_path / "out"
    path.write_text("a text that is long enough to be a header")
    command = [sys.executable, ROOT / "benchmarks" / "gguf_for_ik.py", path, out / "ik.gguf"]
    out.mkdir()
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"{path} cannot be converted: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not [*out.iterdir()]
