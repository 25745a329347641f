"""Sessions keep the tokens that they were given, refuse impossible calls, and are read back whole or not at all."""

import numpy as np
import pytest

from engine_models import ids_for
from mobilemoe.engine import Engine
from mobilemoe.errors import CheckpointError, MobileMoEError, UsageError


@pytest.fixture
def engine(make_engine):
    return make_engine()


@pytest.fixture
def session(engine):
    session = engine.session()
    session.append(ids_for(engine, 70))
    return session


def test_logits_are_had_for_the_positions_asked_for(engine):
    ids, other = ids_for(engine, 20), ids_for(engine, 9, seed=1)
    whole_TV, other_TV = engine.logits(np.array(ids)), engine.logits(other)
    assert (whole_TV.dtype, whole_TV.shape) == (np.float32, (20, engine.vocab_size))
    first, second, third = (engine.session() for _ in range(3))
    logits = engine.forward([(first, ids, 3), (second, ids, 0), (third, other, 9)])
    np.testing.assert_array_equal(logits, np.concatenate([whole_TV[-3:], other_TV]))
    assert [session.tokens for session in (first, second, third)] == [ids, ids, other]
    assert engine.forward([]).shape == (0, engine.vocab_size)


def test_ids_that_cannot_be_are_refused_and_change_nothing(engine, session):
    before = session.tokens
    for ids in ([], [-1], [engine.vocab_size], [10**12], [0.5], ["a"], [None], [1] * (engine.context - 69)):
        for call in (session.append, engine.logits if len(ids) < 9 else session.append):
            with pytest.raises(UsageError):
                call(ids)
        assert session.tokens == before
    for outputs in (-1, 3):
        with pytest.raises(UsageError, match=f"outputs is {outputs}"):
            engine.forward([(session, [1, 2], outputs)])
    with pytest.raises(UsageError):
        session.truncate(71)
    with pytest.raises(UsageError):
        session.truncate(-1)
    with pytest.raises(UsageError):
        session.fork(context=30)
    assert session.tokens == before


def test_the_context_can_be_filled_and_no_further(make_engine):
    engine = make_engine(context=100)
    session = engine.session()
    session.append(ids_for(engine, 99))
    session.append([1])
    with pytest.raises(UsageError, match="101 tokens, more than the context of 100"):
        session.append([1])
    assert len(session) == 100
    for context in (0, -1, engine.config.max_position_embeddings + 1, "x", 1.5):
        with pytest.raises(UsageError, match="context is"):
            make_engine(context=context)


def test_a_nearly_full_context_is_filled(make_engine):
    engine = make_engine(context=100)
    ids = ids_for(engine, 95)
    whole = engine.generate_ids(ids)
    assert len(whole) == 6  # the last one is not computed any more
    assert engine.generate_ids(ids, max_new_tokens=3) == whole[:3]
    assert len(engine.generate_ids([*ids, *whole[:5]])) == 1
    assert len(engine.generate_ids(ids[:30], session=engine.session(32))) == 3
    with pytest.raises(UsageError, match="the prompt has 101 tokens, more than the context of 100"):
        engine.generate_ids([*ids, *whole])
    with pytest.raises(UsageError, match="33 tokens, more than the context of 32"):
        engine.generate_ids(ids[:33], session=engine.session(32))


def test_forks_part_ways(engine, session):
    ids = session.tokens
    forks = [session.fork(length) for length in (0, 1, 33, 70)]
    session.truncate(10)
    assert [fork.tokens for fork in forks] == [ids[:length] for length in (0, 1, 33, 70)]
    for fork, length in zip(forks, (0, 1, 33, 70), strict=True):
        np.testing.assert_array_equal(fork.append([5]), engine.logits([*ids[:length], 5])[-1])
    assert session.tokens == ids[:10]


def test_generation_stops_at_a_stop_id_and_the_last_token_is_not_fed(engine):
    ids = ids_for(engine, 10)
    made = engine.generate_ids(ids, max_new_tokens=8)
    place = made.index(made[4])
    session = engine.session()
    assert engine.generate_ids(ids, max_new_tokens=8, stop_ids=[made[4]], session=session) == made[: place + 1]
    assert session.tokens == [*ids, *made[:place]]


def test_a_restored_session_is_the_same(engine, session, tmp_path):
    path = tmp_path / "a session.bin"
    session.save(path)
    session.save(path)  # over an older one
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    restored = engine.restore(path)
    assert restored.tokens == session.tokens
    np.testing.assert_array_equal(restored.append([3, 4]), session.append([3, 4]))
    empty = engine.session()
    empty.save(path)
    assert engine.restore(path).tokens == []


def test_a_damaged_session_is_refused(engine, session, tmp_path):
    path = tmp_path / "session"
    session.save(path)
    data = path.read_bytes()
    damaged = [data[:cut] for cut in (0, 1, 7, 8, 63, 64, 100, len(data) // 2, len(data) - 1)] + [data + b"\0"]
    places = (0, 8, 12, 16, 24, 40, 64, 65, len(data) // 2, len(data) - 33, len(data) - 1)
    damaged += [data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :] for place in places]
    damaged += [data[:16] + b"\xff" * 8 + data[24:], b"\xff" * len(data)]
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(CheckpointError) as caught:
            engine.restore(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    path.write_bytes(data)
    assert engine.restore(path).tokens == session.tokens


def test_a_session_of_another_kind_or_model_is_refused(make_engine, session, tmp_path, tiny_folder):
    path = tmp_path / "session"
    session.save(path)
    for other in (Engine(tiny_folder), make_engine(kv="fp16"), make_engine(context=69)):
        with pytest.raises(MobileMoEError) as caught:
            other.restore(path)
        assert len(str(caught.value).splitlines()) == 1
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match=place.name):
            make_engine().restore(place)
    with pytest.raises(CheckpointError):
        session.save(tmp_path / "no" / "folder")
