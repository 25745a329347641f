"""Models that differ only in weights, config or a link's target are never confused in the cache."""

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

from cached_engines import IDS, LOAD, files_in
from mobilemoe.checkpoint import convert
from mobilemoe.engine import Engine, engine_file_cache
from mobilemoe.engine.native import native
from mobilemoe.errors import CheckpointError
from mobilemoe.evaluate.models.scorer import ModelScorer
from mobilemoe.hub import ASSETS
from mobilemoe.load import load
from mobilemoe.tokenizer import Tokenizer
from tiny_model import write_model

pytest_plugins = ["cached_engines"]


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
    monkeypatch.setattr("mobilemoe.engine.fingerprints._SETTLED", settled)
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
    monkeypatch.setattr("mobilemoe.engine.fingerprints._SETTLED", 0.0)
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
    save = engine_file_cache.save_checkpoint

    def save_and_change(*arguments, **options):
        save(*arguments, **options)
        replace_in_place(weights, later)

    with monkeypatch.context() as patch:
        patch.setattr(engine_file_cache, "save_checkpoint", save_and_change)
        before = Engine(folders[0], quantize="int4").logits(IDS)
    assert "changed while it was read" in capsys.readouterr().err
    assert not files_in(kept)
    after = Engine(folders[0], quantize="int4").logits(IDS)
    np.testing.assert_array_equal(after, Engine(folders[1], quantize="int4").logits(IDS))
    assert not np.array_equal(before, after)
