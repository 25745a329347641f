"""Engine files: made once, kept in the cache, made again when damaged, and done without where nothing can be kept."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mobilemoe.checkpoint import convert
from mobilemoe.engine import Engine, cache, cache_folder, is_whole, write_engine_folder
from mobilemoe.engine.native import native
from mobilemoe.errors import CheckpointError, ConfigError, MobileMoEError, UsageError
from mobilemoe.evaluate.models.scorer import ModelScorer
from mobilemoe.hub import ASSETS
from mobilemoe.load import load
from mobilemoe.tokenizer import Tokenizer
from tiny_model import write_model

IDS = [1, 2, 3, 500, 16_000]
LOAD = (
    "import sys, hashlib\n"
    "from mobilemoe.engine import Engine\n"
    "logits = Engine(sys.argv[1], threads=1).logits([1, 2, 3, 500, 16_000])\n"
    "print(hashlib.sha256(logits.tobytes()).hexdigest())"
)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mobilemoe" / "engine"


@pytest.fixture
def rewrites(monkeypatch):
    """Notes every rewriting of a checkpoint."""
    calls = []
    rewrite = cache._rewrite
    monkeypatch.setattr(cache, "_rewrite", lambda folder, *rest: calls.append(folder) or rewrite(folder, *rest))
    return calls


def files_in(kept):
    """The engine files of a cache."""
    return sorted(kept.glob("*.mobilemoe"))


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


def replace_in_place(path, data):
    """Other bytes of the same size, in the same inode and with the same time of modification."""
    before = path.stat()
    assert len(data) == before.st_size
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def save_bare(source, target):
    """The model as others save it: no hash anywhere, and files of the year 1970, as Nix makes them."""
    target.mkdir()
    shutil.copy(source / "config.json", target)
    save_file(load_file(source / "model.safetensors"), target / "model.safetensors")
    for path in target.iterdir():
        os.utime(path, (1, 1))
    return target


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Two models of one shape, in files of the same size and times, and what each computes by itself."""
    root = tmp_path_factory.mktemp("twins")
    folders = [save_bare(write_model(root / f"{seed}", seed=seed), root / f"bare-{seed}") for seed in (1, 2)]
    assert len({(path / "model.safetensors").stat().st_size for path in folders}) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", "/dev/null")
        return [(folder, Engine(folder).logits(IDS)) for folder in folders]


def test_models_that_differ_in_nothing_but_their_weights_are_kept_apart(kept, twins):
    for _ in range(2):
        for folder, logits in twins:
            np.testing.assert_array_equal(Engine(folder).logits(IDS), logits)
    assert len(files_in(kept)) == 2


@pytest.mark.parametrize("settled", [0.0, -1e9])  # remembered at once, or never
def test_weights_replaced_in_place_are_other_weights(tmp_path, kept, twins, monkeypatch, settled):
    monkeypatch.setattr("mobilemoe.engine.known._SETTLED", settled)
    (first, one), (second, other) = twins
    folder = shutil.copytree(first, tmp_path / "model")
    np.testing.assert_array_equal(Engine(folder).logits(IDS), one)
    time.sleep(0.02)  # longer than the clock of files takes for a step
    replace_in_place(folder / "model.safetensors", (second / "model.safetensors").read_bytes())
    np.testing.assert_array_equal(Engine(folder).logits(IDS), other)


def test_a_link_that_leads_elsewhere_is_another_model(tmp_path, kept, twins):
    """As the Hub's cache has it: the folder of a version is links to files named by their hashes."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for source, logits in twins:
        for name in ("config.json", "model.safetensors"):
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(source / name)
        np.testing.assert_array_equal(Engine(folder).logits(IDS), logits)


def test_a_hash_in_the_header_that_belongs_to_other_weights_is_not_believed(tmp_path, kept, twins):
    """A tool that merges or trains may keep the metadata of the file that it read."""
    folders = []
    for source, _ in twins:
        folder = shutil.copytree(source, tmp_path / source.name)
        tensors = load_file(source / "model.safetensors")
        save_file(tensors, folder / "model.safetensors", metadata={"sha256": "0" * 64, "header_sha256": "1" * 64})
        folders.append(folder)
    for folder, (_, logits) in zip(folders, twins, strict=True):
        np.testing.assert_array_equal(Engine(folder).logits(IDS), logits)


@pytest.mark.parametrize(
    "change", [{"rope_theta": 1234.0}, {"norm_topk_prob": None}, {"routed_scaling_factor": 1.7}, {"rms_norm_eps": 0.01}]
)
def test_another_config_is_another_model(tmp_path, kept, twins, change):
    folder = shutil.copytree(twins[0][0], tmp_path / "model")
    Engine(folder)
    values = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        values[key] = not values.get(key, False) if value is None else value
    (folder / "config.json").write_text(json.dumps(values))
    changed = Engine(folder).logits(IDS)
    monkey = subprocess.run(
        [sys.executable, "-c", LOAD, folder], capture_output=True, env=os.environ | {"XDG_CACHE_HOME": "/dev/null"}
    )
    assert monkey.stdout.decode().strip() == hashlib.sha256(changed.tobytes()).hexdigest()
    assert not np.array_equal(changed, twins[0][1])
    assert len(files_in(kept)) == 2


def test_rounded_twins_are_kept_apart(tmp_path, kept, twins):
    folders = []
    for folder, _ in twins:
        convert(folder, tmp_path / f"{folder.name}-bf16", format="bf16")
        folders.append(save_bare(tmp_path / f"{folder.name}-bf16", tmp_path / folder.name))
    first = [Engine(folder, quantize="int4").logits(IDS) for folder in folders]
    assert not np.array_equal(*first)
    for folder, logits in zip(folders, first, strict=True):
        np.testing.assert_array_equal(Engine(folder, quantize="int4").logits(IDS), logits)
    replace_in_place(folders[0] / "model.safetensors", (folders[1] / "model.safetensors").read_bytes())
    np.testing.assert_array_equal(Engine(folders[0], quantize="int4").logits(IDS), first[1])


def test_an_engine_file_under_another_models_name_is_not_taken(kept, twins):
    (first, one), (second, other) = twins
    Engine(first)
    (path,) = files_in(kept)
    Engine(second)
    (another,) = set(files_in(kept)) - {path}
    shutil.copyfile(another, path)
    np.testing.assert_array_equal(Engine(first).logits(IDS), one)
    np.testing.assert_array_equal(Engine(second).logits(IDS), other)


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


def test_what_was_read_once_is_not_read_again(tiny_folder, kept, monkeypatch):
    monkeypatch.setattr("mobilemoe.engine.known._SETTLED", 0.0)
    Engine(tiny_folder)
    Engine(tiny_folder)
    for name in ("checkpoint_fingerprint", "verify", "repack"):
        monkeypatch.setattr(cache.native, name, None)
    Engine(tiny_folder)


@pytest.mark.parametrize("damage", ["[1, 2]", "{", '{"x": 5}', ""])
def test_a_damaged_memory_of_what_was_read_does_no_harm(tiny_folder, kept, monkeypatch, expected, damage):
    monkeypatch.setattr("mobilemoe.engine.known._SETTLED", 0.0)
    Engine(tiny_folder)
    (kept / "known.json").write_text(damage)
    np.testing.assert_array_equal(Engine(tiny_folder).logits(IDS), expected)


def test_the_source_can_be_read_anew(tmp_path, kept, twins):
    (first, _), (second, _) = twins
    folder = shutil.copytree(first, tmp_path / "model")
    engine = Engine(folder)
    engine.check_source()
    replace_in_place(folder / "model.safetensors", (second / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="changed since"):
        engine.check_source()


def test_no_scores_are_kept_of_weights_that_were_taken_for_others(tmp_path, kept, twins, monkeypatch):
    """The memory of what was read is made to lie: it takes the second model for the first."""
    monkeypatch.setattr("mobilemoe.engine.known._SETTLED", 0.0)
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder, _ in twins]
    for folder in folders:
        Tokenizer.load(ASSETS / "nano").save(folder)
        Engine(folder)
    remembered = json.loads((kept / "known.json").read_text())
    prints = [native.checkpoint_fingerprint(str(folder)).hex() for folder in folders]
    lies = {key: prints[0] if value == prints[1] else value for key, value in remembered.items()}
    (kept / "known.json").write_text(json.dumps(lies))
    model = load(folders[1])
    assert model.engine.fingerprint == prints[0]
    with pytest.raises(CheckpointError, match="changed"):
        ModelScorer(model, "second")
    scorer = ModelScorer(load(folders[1]), "second")  # the truth is remembered now
    assert scorer.settings["weights"] == prints[1] == scorer.loaded.engine.fingerprint


def test_weights_that_change_while_they_are_rounded_are_not_kept(tmp_path, kept, twins, monkeypatch, capsys):
    folders = []
    for folder, _ in twins:
        convert(folder, tmp_path / folder.name, format="bf16")
        folders.append(tmp_path / folder.name)
    weights, later = folders[0] / "model.safetensors", (folders[1] / "model.safetensors").read_bytes()
    save = cache.save_checkpoint

    def save_and_change(*arguments, **options):
        save(*arguments, **options)
        replace_in_place(weights, later)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "save_checkpoint", save_and_change)
        before = Engine(folders[0], quantize="int4").logits(IDS)
    assert "changed while it was read" in capsys.readouterr().err
    assert not files_in(kept)
    after = Engine(folders[0], quantize="int4").logits(IDS)
    np.testing.assert_array_equal(after, Engine(folders[1], quantize="int4").logits(IDS))
    assert not np.array_equal(before, after)


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

        monkeypatch.setattr(cache, "_rewrite", rewrite)
    np.testing.assert_array_equal(Engine(tiny_folder).logits(IDS), expected)
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "rewritten in memory" in told


def test_without_a_home_there_is_no_cache(tiny_folder, monkeypatch, expected, capsys):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def home():
        raise RuntimeError("no home folder")

    monkeypatch.setattr(cache.Path, "home", home)
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


def test_nano_gives_its_first_token_within_a_fifth_of_a_second():
    script = (
        "import mobilemoe, time\n"
        "began = time.perf_counter()\n"
        "next(mobilemoe.load('nano').stream('The old man', max_new_tokens=2))\n"
        "print(time.perf_counter() - began)"
    )

    def seconds() -> float:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return float(done.stdout)

    # The first fills the cache, and other processes may get in the way of some.
    assert any(seconds() < 0.2 for _ in range(20))
