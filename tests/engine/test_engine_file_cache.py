"""Engine files are made once, kept in the cache, and made again when damaged; models run without a cache too."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cached_engines import IDS, LOAD, files_in
from mobilemoe.checkpoint import convert
from mobilemoe.engine import Engine, cache_folder, engine_file_cache, is_whole, write_engine_folder
from mobilemoe.errors import CheckpointError, ConfigError, MobileMoEError, UsageError
from tiny_model import write_model

pytest_plugins = ["cached_engines"]


@pytest.fixture
def rewrites(monkeypatch):
    """Notes every rewriting of a checkpoint."""
    calls = []
    rewrite = engine_file_cache._rewrite
    monkeypatch.setattr(
        engine_file_cache, "_rewrite", lambda folder, *rest: calls.append(folder) or rewrite(folder, *rest)
    )
    return calls


@pytest.fixture(scope="module")
def expected(tiny_folder):
    return Engine(tiny_folder).logits(IDS)


def test_a_model_is_rewritten_once(tiny_folder, kept, rewrites, expected, capsys):
    for _ in range(3):
        np.testing.assert_array_equal(Engine(tiny_folder).logits(IDS), expected)
    assert rewrites == [tiny_folder]
    assert len(files_in(kept)) == 1
    assert cache_folder() == kept
    assert capsys.readouterr().err == ""


def test_a_changed_model_is_another(tmp_path, kept, expected):
    folder = write_model(tmp_path / "model", seed=1)
    np.testing.assert_array_equal(Engine(folder).logits(IDS), expected)
    shutil.rmtree(folder)
    write_model(folder, seed=2)
    changed = Engine(folder).logits(IDS)
    assert not np.array_equal(changed, expected)
    assert len(files_in(kept)) == 2


def test_zeros_in_an_engine_file_are_found_and_it_is_made_again(tiny_folder, kept, rewrites, expected):
    Engine(tiny_folder)
    (path,) = files_in(kept)
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(40_000) + data[half + 40_000 :])
    assert not is_whole(path)
    np.testing.assert_array_equal(Engine(tiny_folder).logits(IDS), expected)
    assert path.read_bytes() == data
    assert is_whole(path)


def test_what_was_read_once_is_not_read_again(tiny_folder, kept, monkeypatch, expected):
    monkeypatch.setattr("mobilemoe.engine.fingerprints._SETTLED", 0.0)
    Engine(tiny_folder)
    Engine(tiny_folder)
    for name in ("checkpoint_fingerprint", "verify", "repack"):
        monkeypatch.setattr(engine_file_cache.native, name, None)  # whoever calls it fails
    np.testing.assert_array_equal(Engine(tiny_folder).logits(IDS), expected)


@pytest.mark.parametrize("damage", ["[1, 2]", "{", '{"x": 5}', ""])
def test_a_damaged_memory_of_what_was_read_does_no_harm(tiny_folder, kept, monkeypatch, expected, damage):
    monkeypatch.setattr("mobilemoe.engine.fingerprints._SETTLED", 0.0)
    Engine(tiny_folder)
    (kept / "known.json").write_text(damage)
    np.testing.assert_array_equal(Engine(tiny_folder).logits(IDS), expected)


def test_a_session_of_rounded_weights_outlives_the_cache(tmp_path, kept, tiny_folder):
    convert(tiny_folder, tmp_path / "bf16", format="bf16")
    engine = Engine(tmp_path / "bf16", quantize="int4")
    session = engine.session()
    session.append(IDS)
    session.save(tmp_path / "session")
    for path in (kept, tmp_path / "bf16"):
        shutil.rmtree(path)
    convert(tiny_folder, tmp_path / "bf16", format="bf16")  # of another time, and in another place next
    assert Engine(tmp_path / "bf16", quantize="int4").restore(tmp_path / "session").tokens == IDS
    convert(tmp_path / "bf16", tmp_path / "int4", format="int4", group_axis="in")
    assert Engine(tmp_path / "int4").restore(tmp_path / "session").tokens == IDS
    with pytest.raises(CheckpointError, match="another model"):
        Engine(tiny_folder).restore(tmp_path / "session")


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "magic", "version", "sizes", "json"])
def test_a_damaged_or_older_file_is_made_again(tiny_folder, kept, rewrites, expected, damage):
    Engine(tiny_folder)
    (path,) = files_in(kept)
    data = path.read_bytes()
    changed = {
        "empty": b"",
        "cut": data[:-1],
        "longer": data + b"\0",
        "magic": b"X" + data[1:],
        "version": data[:8] + (0).to_bytes(4, "little") + data[12:],
        "sizes": data[:16] + b"\xff" * 16 + data[32:],
        "json": data[:128] + b"[" + data[129:],
    }[damage]
    path.write_bytes(changed)
    np.testing.assert_array_equal(Engine(tiny_folder).logits(IDS), expected)
    assert len(rewrites) == 2
    assert path.read_bytes() == data
    assert files_in(kept) == [path]


def test_processes_that_start_together_get_one_whole_file(tiny_folder, kept):
    for _ in range(3):
        shutil.rmtree(kept, ignore_errors=True)
        started = [
            subprocess.Popen([sys.executable, "-c", LOAD, tiny_folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(3)
        ]
        ended = [process.communicate(timeout=120) for process in started]
        assert [err for _, err in ended] == [b""] * 3
        assert len({out for out, _ in ended}) == 1
        assert len(files_in(kept)) == 1
        assert not list(kept.glob(".*"))


@pytest.mark.parametrize("obstacle", ["file", "proc", "full"])
def test_without_a_cache_the_model_runs_all_the_same(tiny_folder, tmp_path, monkeypatch, expected, capsys, obstacle):
    (tmp_path / "file").write_text("")
    places = {"file": tmp_path / "file", "proc": "/proc/none", "full": tmp_path / "full"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(places[obstacle]))
    if obstacle == "full":

        def rewrite(folder, path, origin):
            raise CheckpointError("no space left on device")

        monkeypatch.setattr(engine_file_cache, "_rewrite", rewrite)
    np.testing.assert_array_equal(Engine(tiny_folder).logits(IDS), expected)
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "rewritten in memory" in told


def test_without_a_home_there_is_no_cache(tiny_folder, monkeypatch, expected, capsys):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def home():
        raise RuntimeError("no home folder")

    monkeypatch.setattr(engine_file_cache.Path, "home", home)
    np.testing.assert_array_equal(Engine(tiny_folder).logits(IDS), expected)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_relative_cache_folder_is_not_taken(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(cache_folder()) == "/somewhere/.cache/mobilemoe/engine"


def test_bf16_weights_are_rounded_once(tmp_path, kept, rewrites, tiny_folder, capsys):
    convert(tiny_folder, tmp_path / "bf16", format="bf16")
    convert(tmp_path / "bf16", tmp_path / "int4", format="int4", group_axis="in")
    with pytest.raises(UsageError, match="BF16"):
        Engine(tmp_path / "bf16")
    assert not kept.exists()
    expected = Engine(tmp_path / "int4").logits(IDS)
    for _ in range(2):
        np.testing.assert_array_equal(Engine(tmp_path / "bf16", quantize="int4").logits(IDS), expected)
    assert len(rewrites) == 2
    assert capsys.readouterr().err.count("rounding") == 1


def test_an_engine_folder_is_used_in_place(tiny_folder, tmp_path, kept, rewrites, expected):
    write_engine_folder(tiny_folder, tmp_path / "engine")
    rewrites.clear()
    np.testing.assert_array_equal(Engine(tmp_path / "engine").logits(IDS), expected)
    assert rewrites == []
    assert not files_in(kept)
    text = (tmp_path / "engine/config.json").read_text()
    for key, value in (("vocab_size", 16383), ("rope_theta", 1234.0), ("routed_scaling_factor", 1.7)):
        values = json.loads(text) | {key: value}
        (tmp_path / "engine/config.json").write_text(json.dumps(values))
        with pytest.raises(MobileMoEError, match=f"{tmp_path / 'engine'}.*differ in {key}"):
            Engine(tmp_path / "engine")
    (tmp_path / "engine/config.json").write_text(text)
    path = tmp_path / "engine/model.mobilemoe"
    data = path.read_bytes()
    path.write_bytes(data[:-5000] + bytes(5000))
    with pytest.raises(CheckpointError, match="is damaged"):
        Engine(tmp_path / "engine")
    path.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=r"model\.mobilemoe"):
        Engine(tmp_path / "engine")


def test_weights_beside_an_engine_file_come_first(tiny_folder, tmp_path, kept, expected):
    """An engine file beside newer weights would be a model of the past."""
    folder = shutil.copytree(tiny_folder, tmp_path / "both")
    (folder / "model.mobilemoe").write_bytes(b"of the past")
    np.testing.assert_array_equal(Engine(folder).logits(IDS), expected)


def test_a_damaged_checkpoint_is_named_and_nothing_is_kept(tiny_folder, tmp_path, kept):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    data = (folder / "model.safetensors").read_bytes()
    for bad in (b"", data[:-1], data[:4], b"\xff" * 100, data.replace(b"router", b"ROUTER", 1)):
        (folder / "model.safetensors").write_bytes(bad)
        with pytest.raises(CheckpointError, match=str(folder)) as caught:
            Engine(folder)
        assert len(str(caught.value).splitlines()) == 1
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Engine(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json"):
        Engine(folder)
    assert not files_in(kept)


def test_nano_gives_its_first_token_after_a_fifth_of_a_second_of_work():
    script = (
        "import mobilemoe, time\n"
        "began = time.process_time()\n"
        "next(mobilemoe.load('nano').stream('The old man', max_new_tokens=2))\n"
        "print(time.process_time() - began)"
    )

    def seconds() -> float:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return float(done.stdout)

    # The first fills the cache, and other processes, which have the same caches of the processor, may slow down some.
    assert any(seconds() < 0.2 for _ in range(20))
