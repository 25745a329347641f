"""An engine file that is written to while it is mapped ends in a sentence, not in a signal or in wrong text."""

import os
import shutil

import numpy as np
import pytest

from mobilemoe.engine import ENGINE_FILE, Engine, write_engine_folder
from mobilemoe.errors import CheckpointError


@pytest.fixture
def folder(tiny_folder, tmp_path):
    write_engine_folder(tiny_folder, tmp_path / "model")
    return tmp_path / "model"


def cut(path):
    os.truncate(path, 0)


def written_anew(path):
    """What `cp other model.mobilemoe` does."""
    data = path.read_bytes()
    path.write_bytes(data[::-1])


def longer(path):
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("change", [cut, written_anew, longer])
def test_a_file_that_was_changed_in_place_is_named_before_it_is_read_again(change, folder):
    engine = Engine(folder)
    session = engine.session()
    session.append([1, 2, 3])
    change(folder / ENGINE_FILE)
    for call in (
        lambda: session.append([4]),
        lambda: engine.logits([1, 2, 3]),
        lambda: engine.loglikelihood([1, 2], [3]),
        lambda: engine.generate_ids([1, 2], max_new_tokens=3),
    ):
        with pytest.raises(CheckpointError, match=r"model\.mobilemoe was changed while the model was in use"):
            call()


def test_a_file_that_is_replaced_or_removed_goes_on_as_it_was(folder, tmp_path):
    engine = Engine(folder)
    expected = engine.logits([1, 2, 3])
    shutil.copy(folder / ENGINE_FILE, tmp_path / "other")
    os.replace(tmp_path / "other", folder / ENGINE_FILE)
    np.testing.assert_array_equal(engine.logits([1, 2, 3]), expected)
    (folder / ENGINE_FILE).unlink()
    np.testing.assert_array_equal(engine.logits([1, 2, 3]), expected)


def test_no_descriptor_is_left_behind(folder):
    def count():
        return len(os.listdir("/proc/self/fd"))

    Engine(folder)
    before = count()
    for _ in range(5):
        Engine(folder)
    assert count() <= before
