"""The continuation of a text depends only on the text, for every instruction set of this machine."""

import subprocess
import sys

import numpy as np
import pytest

from engine_models import EACH_ISA, ids_for
from mobilemoe.engine import Engine
from mobilemoe.sampling import Sampling

NEW = 12
EACH_KIND = pytest.mark.parametrize("kind", [{}, {"kv": "fp16"}, {"activations": "fp32"}], ids=str)


@EACH_ISA
@EACH_KIND
def test_nothing_depends_on_the_number_of_threads(make_engine, isa, kind):
    engines = [make_engine(isa, threads=threads, **kind) for threads in (1, 2, 3)]
    assert [engine.threads for engine in engines] == [1, 2, 3]
    ids = ids_for(engines[0], 75)
    first, *others = [engine.logits(ids) for engine in engines]
    made, *more = [engine.generate_ids(ids, max_new_tokens=NEW) for engine in engines]
    assert len(made) == NEW
    for logits_TV, tokens in zip(others, more, strict=True):
        np.testing.assert_array_equal(logits_TV, first)
        assert tokens == made


@EACH_ISA
@EACH_KIND
def test_nothing_depends_on_threads_or_pieces_where_the_keys_are_split(in_folder, monkeypatch, isa, kind):
    """Beyond 1,024 tokens the keys of a head become several tasks where tasks would be few for the threads."""
    monkeypatch.setenv("MOBILEMOE_ISA", isa)
    one, many = [Engine(in_folder, threads=threads, **kind) for threads in (1, 16)]
    ids = ids_for(one, 1100)
    whole, cut = one.session(), many.session()
    expected_V = whole.append(ids)
    for piece in (ids[:1020], ids[1020:1030], ids[1030:1031], ids[1031:]):
        logits_V = cut.append(piece)
    np.testing.assert_array_equal(logits_V, expected_V)
    for token in ids_for(one, 5, seed=1):
        np.testing.assert_array_equal(cut.append([token]), whole.append([token]))
    prompts = [ids, ids_for(one, 1060, seed=2)]
    made: dict[int, list[int]] = {0: [], 1: []}
    batch = many.batch()
    assert [batch.join(prompt) for prompt in prompts] == [0, 1]
    while min(map(len, made.values())) < NEW:  # reading the prompts takes several steps
        for number, choice in batch.step():
            made[number].append(choice.token)
    assert [tokens[:NEW] for tokens in made.values()] == [
        one.generate_ids(prompt, max_new_tokens=NEW) for prompt in prompts
    ]


@EACH_ISA
@EACH_KIND
@pytest.mark.parametrize("piece", [1, 7, 64])
def test_nothing_depends_on_how_a_prompt_is_cut(make_engine, isa, kind, piece):
    engine = make_engine(isa, **kind)
    ids = ids_for(engine, 150)
    whole, cut = engine.session(), engine.session()
    expected_V = whole.append(ids)
    for start in range(0, len(ids), piece):
        logits_V = cut.append(ids[start : start + piece])
    np.testing.assert_array_equal(logits_V, expected_V)
    np.testing.assert_array_equal(expected_V, engine.logits(ids)[-1])
    for token in ids_for(engine, 3, seed=1):
        np.testing.assert_array_equal(cut.append([token]), whole.append([token]))


@EACH_ISA
@EACH_KIND
def test_nothing_depends_on_the_instruction_set(monkeypatch, in_folder, out_folder, isa, kind):
    """The ids are random, so routing is close to ties: a difference in the last bit would change experts."""
    for folder in (in_folder, out_folder):
        logits = []
        for name in ("scalar", isa):
            monkeypatch.setenv("MOBILEMOE_ISA", name)
            engine = Engine(folder, **kind)
            ids = np.random.default_rng(5).integers(0, engine.vocab_size, 150)
            logits.append(engine.logits(ids))
        np.testing.assert_array_equal(*logits)


def test_nothing_depends_on_the_engines_own_chunks(make_engine):
    engine = make_engine()
    ids = ids_for(engine, 600)
    cut = engine.session()
    for start in range(0, len(ids), 97):
        logits_V = cut.append(ids[start : start + 97])
    np.testing.assert_array_equal(engine.session().append(ids), logits_V)


@EACH_ISA
@EACH_KIND
def test_nothing_depends_on_the_others_in_a_batch(make_engine, isa, kind):
    engine = make_engine(isa, **kind)
    prompts = [ids_for(engine, count, seed=count) for count in (1, 9, 40, 65, 130)]
    alone = [engine.generate_ids(prompt, max_new_tokens=NEW) for prompt in prompts]
    made: dict[int, list[int]] = {number: [] for number in range(len(prompts))}
    batch = engine.batch()
    for turn in range(2 * len(prompts) + NEW):
        if turn % 2 == 0 and turn // 2 < len(prompts):  # one joins at every second step
            assert batch.join(prompts[turn // 2]) == turn // 2
        for number, choice in batch.step():
            made[number].append(choice.token)
            if len(made[number]) == NEW:
                batch.leave(number)
    assert len(batch) == 0
    assert list(made.values()) == alone


@EACH_ISA
@EACH_KIND
def test_nothing_depends_on_reused_prefixes(make_engine, isa, kind):
    engine = make_engine(isa, **kind)
    ids, other = ids_for(engine, 100), ids_for(engine, 30, seed=1)
    expected_V, turned_V = engine.logits(ids)[-1], engine.logits([*ids[:50], *other])[-1]
    session = engine.session()
    session.append(ids)
    fork = session.fork(50)
    assert fork.tokens == ids[:50]
    np.testing.assert_array_equal(fork.append(other), turned_V)
    np.testing.assert_array_equal(session.extend_to([*ids[:50], *other]), turned_V)
    np.testing.assert_array_equal(session.extend_to(ids), expected_V)
    np.testing.assert_array_equal(session.extend_to(ids), expected_V)  # all there: the last is computed again
    np.testing.assert_array_equal(session.fork().extend_to(ids[:80]), engine.logits(ids[:80])[-1])
    assert session.tokens == ids
    assert fork.tokens == [*ids[:50], *other]


@EACH_ISA
@EACH_KIND
def test_a_saved_session_goes_on_in_another_process(make_engine, tmp_path, isa, kind):
    engine = make_engine(isa, **kind)
    session = engine.session()
    ids = ids_for(engine, 70)
    session.append(ids)
    session.save(tmp_path / "session")
    script = (
        "import sys\n"
        "from mobilemoe.engine import Engine\n"
        f"engine = Engine({str(engine.folder)!r}, threads=1, **{kind!r})\n"
        f"session = engine.restore({str(tmp_path / 'session')!r})\n"
        f"print(engine.generate_ids(session.tokens + [3], max_new_tokens={NEW}, session=session))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = engine.generate_ids([*ids, 3], max_new_tokens=NEW)
    assert done.stdout.strip() == str(expected)
    assert engine.generate_ids([*ids, 3], max_new_tokens=NEW, session=session) == expected


def test_a_seed_gives_the_same_text_alone_and_together(make_engine):
    engine = make_engine()
    sampling = {"temperature": 1.2, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 7}
    prompts = [ids_for(engine, 5, seed=seed) for seed in range(4)]
    alone = [engine.generate_ids(prompt, max_new_tokens=NEW, **sampling) for prompt in prompts]
    batch = engine.batch()
    for prompt in prompts:
        batch.join(prompt, Sampling(**sampling))
    together: list[list[int]] = [[] for _ in prompts]
    while min(map(len, together)) < NEW:
        for number, choice in batch.step():
            together[number].append(choice.token)
    assert [made[:NEW] for made in together] == alone


def test_two_engines_in_one_process_do_not_meet(model_folder, out_folder):
    first, second = Engine(model_folder), Engine(out_folder)
    ids = ids_for(second, 20)
    expected = first.logits(ids), second.logits(ids)
    one, other = first.session(), second.session()
    for token in ids:
        last = one.append([token]), other.append([token])
    np.testing.assert_array_equal(last[0], expected[0][-1])
    np.testing.assert_array_equal(last[1], expected[1][-1])
