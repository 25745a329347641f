"""The promise of train: a damaged checkpoint is refused by name, and the one before it is usable."""

import shutil
from pathlib import Path

import pytest

from mobilemoe.checkpoint.run_folder import step_folder
from mobilemoe.errors import TrainError
from mobilemoe.train.loop import train
from train_runs import assert_same

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")

DAMAGE = {
    "a bit of the weights": lambda folder: flip(folder / "model.safetensors", 50_000),
    "a bit of the weights' header": lambda folder: flip(folder / "model.safetensors", 100),
    "a bit of the moments": lambda folder: flip(folder / "optimizer.safetensors", -1),
    "weights cut short": lambda folder: cut(folder / "model.safetensors"),
    "moments cut short": lambda folder: cut(folder / "optimizer.safetensors"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no moments": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "half a state": lambda folder: cut(folder / "state.json"),
    "half a config": lambda folder: cut(folder / "config.json"),
    "an empty state": lambda folder: (folder / "state.json").write_text("{}"),
    "a state of another step": lambda folder: swap(folder / "state.json", '"step": 10', '"step": 11'),
    "another config": lambda folder: swap(folder / "config.json", '"rope_theta": 500000.0', '"rope_theta": 50000.0'),
}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def swap(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused_naming_the_folder_to_remove(damage, recipe, unbroken, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(unbroken(), run)
    newest = step_folder(run, 10)
    damage(newest)
    with pytest.raises(TrainError) as caught:
        train(recipe(), run)
    assert f"remove {newest} to continue from the checkpoint before it" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_removing_the_damaged_checkpoint_goes_on_from_the_one_before(recipe, unbroken, tmp_path):
    shutil.copytree(unbroken(), tmp_path / "run")
    shutil.rmtree(step_folder(tmp_path / "run", 10))
    train(recipe(), tmp_path / "run")
    assert_same(tmp_path / "run", unbroken())
