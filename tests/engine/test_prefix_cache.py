"""Kept sessions change no token, stay within their memory, and what was used longest ago goes first."""

import os
import random
import stat

import numpy as np
import pytest

from engine_models import fed_tokens, ids_for
from mobilemoe.engine.prefix_cache import PrefixCache, longest_text
from mobilemoe.engine.session_folder import SessionFolder
from mobilemoe.errors import UsageError
from mobilemoe.sampling import Sampling

MUCH = 2**40


@pytest.fixture
def engine(make_engine):
    return make_engine()


@pytest.fixture
def place(tmp_path):
    return tmp_path / "sessions"


def write(engine, cache, ids, count=3):
    """A text that starts from what is kept, and is kept afterwards."""
    session = cache.open(ids, len(ids) + count)
    assert session is not None
    batch = engine.batch()
    number = batch.join(ids, session=session)
    made = []
    while len(batch):
        for _, choice in batch.step():
            made.append(choice.token)
            if len(made) == count:
                cache.count(len(ids), batch.reused(number))
                batch.leave(number)
    cache.close(session)
    return made


@pytest.mark.parametrize("with_folder", [False, True])
def test_random_prefixes_in_parallel_give_the_tokens_of_a_fresh_start(engine, place, monkeypatch, with_folder):
    """Texts that branch off one another at random, sampled, up to four at once, in little memory and few files."""
    choose = random.Random(4)
    monkeypatch.setattr("mobilemoe.engine.prefix_cache.MOST_SAVED", 4 * engine.kv_bytes(100))
    folder = SessionFolder(place, engine) if with_folder else None
    cache = PrefixCache(engine, most=engine.kv_bytes(500), total=engine.kv_bytes(600), folder=folder)
    batch, running, texts, waited = engine.batch(), {}, [ids_for(engine, 90)], 0
    todo = 40
    while todo or running:
        while todo and len(running) < 4:
            start = choose.choice(texts)
            ids = start[: choose.randrange(len(start) // 2, len(start) + 1)] + ids_for(
                engine, choose.randrange(60), seed=todo
            )
            count = choose.randrange(1, 12)
            if (session := cache.open(ids, len(ids) + count)) is None:
                waited += 1
                break
            sampling = Sampling(temperature=0.8, seed=todo)
            running[batch.join(ids, sampling, session=session)] = (ids, [], count, sampling, session)
            todo -= 1
        for number, choice in batch.step():
            ids, made, count, sampling, session = running[number]
            made.append(choice.token)
            if len(made) == count:
                del running[number]
                cache.count(len(ids), batch.reused(number))
                batch.leave(number)
                cache.close(session)
                fresh = engine.generate_ids(ids, max_new_tokens=count, **vars(sampling))
                assert made == fresh
                texts.append([*ids, *made])
        stats = cache.stats
        assert stats.bytes <= engine.kv_bytes(500)
        assert stats.bytes + stats.running_bytes <= engine.kv_bytes(600)
    stats = cache.stats
    assert stats.texts == 40
    assert stats.hits > 10
    assert stats.evictions > 5
    assert waited > 0
    assert stats.running_bytes == 0
    cache.save()
    files = [*place.iterdir()] if with_folder else []
    assert cache.stats.saved_sessions == len(files)
    assert cache.stats.saved_bytes == sum(file.stat().st_size for file in files) <= 4 * engine.kv_bytes(100)


def test_a_reused_prefix_gives_the_logits_of_a_fresh_one_bit_for_bit(engine):
    ids = ids_for(engine, 300)
    cache = PrefixCache(engine, most=MUCH)
    write(engine, cache, ids)
    for length in (300, 299, 257, 256, 100, 64, 40):
        other = [*ids[:length], *ids_for(engine, 20, seed=length)]
        session = cache.open(other, len(other))
        session.truncate(length)
        np.testing.assert_array_equal(session.append(other[length:]), engine.session().append(other))
        cache.close(session)


def test_only_what_is_new_is_computed(engine, monkeypatch):
    ids, cache, fed = ids_for(engine, 200), PrefixCache(engine, most=MUCH), fed_tokens(engine, monkeypatch)
    made = write(engine, cache, ids)
    assert sum(fed) == 200 + 2
    fed.clear()
    write(engine, cache, [*ids, *made, *ids_for(engine, 10, seed=1)])
    assert sum(fed) == 1 + 10 + 2  # the last token of the first text was chosen, but never computed with
    fed.clear()
    assert write(engine, cache, ids) == made
    assert sum(fed) == 1 + 2
    stats = cache.stats
    assert (stats.texts, stats.hits, stats.prompt_tokens, stats.hit_tokens) == (3, 2, 200 + 213 + 200, 202 + 199)


def test_a_longer_text_takes_the_place_of_the_one_it_continues(engine):
    ids, cache = ids_for(engine, 100), PrefixCache(engine, most=MUCH)
    made = write(engine, cache, ids)
    write(engine, cache, [*ids, *made])
    assert cache.stats.sessions == 1
    write(engine, cache, ids)  # the same again adds nothing
    assert cache.stats.sessions == 1
    write(engine, cache, [*ids[:50], *ids_for(engine, 50, seed=1)])
    assert cache.stats.sessions == 2


def test_what_was_used_longest_ago_goes_first(engine, monkeypatch):
    texts = [ids_for(engine, 100, seed=seed) for seed in range(4)]
    cache, fed = PrefixCache(engine, most=3 * engine.kv_bytes(102)), fed_tokens(engine, monkeypatch)
    for seed in (0, 1, 2, 0, 3):  # text 1 has to go for text 3
        write(engine, cache, texts[seed])
    fed.clear()
    for seed, computed in ((0, 1), (2, 1), (3, 1), (1, 100)):
        write(engine, cache, texts[seed])
        assert sum(fed) == computed + 2
        fed.clear()
    assert cache.stats.sessions == 3


def test_a_text_waits_until_another_ends_and_evicts_nothing_in_vain(engine):
    total = engine.kv_bytes(300) + engine.kv_bytes(102)
    cache = PrefixCache(engine, most=total, total=total)
    write(engine, cache, ids_for(engine, 100))
    running = cache.open(ids_for(engine, 10, seed=1), 300)
    assert cache.open(ids_for(engine, 10, seed=2), 300) is None
    assert cache.stats.sessions == 1
    cache.close(running, keep=False)
    assert cache.open(ids_for(engine, 10, seed=2), 350) is not None
    assert cache.stats.sessions == 0


def test_where_memory_is_short_the_closest_session_is_cut_rather_than_lost(engine, monkeypatch):
    ids, total = ids_for(engine, 200), engine.kv_bytes(256)
    cache = PrefixCache(engine, most=total, total=total)
    write(engine, cache, ids)
    fed = fed_tokens(engine, monkeypatch)
    write(engine, cache, [*ids[:150], *ids_for(engine, 30, seed=1)])
    assert sum(fed) == 30 + 2
    assert cache.stats.sessions == 1


def test_the_longest_text_is_what_fits(engine):
    for tokens in (1, 64, 65, 700):
        longest = longest_text(engine, engine.kv_bytes(tokens))
        assert longest >= tokens
        assert engine.kv_bytes(longest) == engine.kv_bytes(tokens)
    assert longest_text(engine, 0) == 0
    assert longest_text(engine, MUCH) == engine.context


def test_sessions_survive_a_restart(engine, place, monkeypatch):
    texts = [ids_for(engine, 100, seed=seed) for seed in range(3)]
    folder = SessionFolder(place, engine)
    cache = PrefixCache(engine, most=MUCH, folder=folder)
    made = [write(engine, cache, ids) for ids in texts]
    cache.save()
    cache.save()  # nothing is written twice
    folder.close()
    assert len([*place.iterdir()]) == cache.stats.saved_sessions == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in (place, *place.iterdir())} == {0o600, 0o700}

    folder = SessionFolder(place, engine)
    cache, fed = PrefixCache(engine, most=MUCH, folder=folder), fed_tokens(engine, monkeypatch)
    assert (cache.stats.sessions, cache.stats.saved_sessions) == (0, 3)
    for ids, expected in zip(texts, made, strict=True):
        longer = [*ids, *expected, 7]
        assert write(engine, cache, longer) == engine.generate_ids(longer, max_new_tokens=3)
    assert fed[:3] == [2, 1, 1]
    cache.save()
    assert len([*place.iterdir()]) == 3, "a longer text takes the place of the one it continues"
    folder.close()


def test_what_is_evicted_goes_into_the_folder_and_the_oldest_file_goes_first(engine, place, monkeypatch):
    texts = [ids_for(engine, 100, seed=seed) for seed in range(4)]
    size = engine.kv_bytes(102)
    cache = PrefixCache(engine, most=size, folder=SessionFolder(place, engine))
    write(engine, cache, texts[0])
    write(engine, cache, texts[1])
    (file,) = place.iterdir()
    fed = fed_tokens(engine, monkeypatch)
    write(engine, cache, texts[0])
    assert sum(fed) == 1 + 2
    monkeypatch.setattr("mobilemoe.engine.prefix_cache.MOST_SAVED", 2 * file.stat().st_size)
    write(engine, cache, texts[2])
    write(engine, cache, texts[3])
    assert len([*place.iterdir()]) == 2
    assert cache.stats.saved_bytes == 2 * file.stat().st_size
    fed.clear()
    write(engine, cache, texts[1])
    assert sum(fed) == 100 + 2, "its file was the oldest"


def test_damaged_and_foreign_files_are_left_alone_with_one_sentence(engine, place, tiny_folder, capsys):
    ids = ids_for(engine, 100)
    folder = SessionFolder(place, engine)
    cache = PrefixCache(engine, most=MUCH, folder=folder)
    write(engine, cache, ids)
    cache.save()
    folder.close()
    (file,) = place.iterdir()
    data = file.read_bytes()
    (place / "another.session").write_bytes(data[:32] + bytes(32) + data[64:])  # the fingerprint of another model
    (place / "short.session").write_bytes(data[:20])
    (place / "link.session").symlink_to(file)
    os.mkfifo(place / "pipe.session")
    file.write_bytes(data[:-100] + b"?" + data[-99:])
    folder = SessionFolder(place, engine)
    cache = PrefixCache(engine, most=MUCH, folder=folder)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "ignored, and so are 3 more" in said[0]
    assert write(engine, cache, ids) == engine.generate_ids(ids, max_new_tokens=3)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert file.name in said[0]
    assert cache.stats.hits == 0
    assert len([*place.iterdir()]) == 5
    folder.close()


def test_what_a_longer_text_replaces_in_the_folder_is_found_in_memory(engine, place):
    """The file of a text goes when a longer one that begins with it is written, also while the text itself ends."""
    ids, size = ids_for(engine, 100), engine.kv_bytes(150)
    folder = SessionFolder(place, engine)
    cache = PrefixCache(engine, most=2 * size, folder=folder)
    short = cache.open(ids, 100)
    short.append(ids)
    cache.close(short)
    cache.save()
    again = cache.open(ids, 100)  # moved: only the file is left
    longer = cache.open([*ids, 5], 140)
    longer.append([*ids, *ids_for(engine, 40, seed=1)][len(longer) :])
    cache.close(longer)
    other = cache.open(ids_for(engine, 120, seed=2), 120)
    other.append(ids_for(engine, 120, seed=2))
    cache.close(other)
    again.truncate(0)
    again.append(ids)
    cache.close(again)
    cache.save()
    assert cache.stats.saved_sessions == len([*place.iterdir()]) == 2
    folder.close()


def test_a_folder_that_cannot_be_trusted_or_had_is_refused(engine, place, tmp_path):
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(UsageError, match="only you can change"):
        SessionFolder(place, engine)
    place.chmod(0o700)
    first = SessionFolder(place, engine)
    with pytest.raises(UsageError, match="another process"):
        SessionFolder(place, engine)
    first.close()
    SessionFolder(place, engine).close()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot keep sessions"):
        SessionFolder(tmp_path / "file", engine)
