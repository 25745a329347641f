"""A draft head comes back from its file as it was rounded, goes with its model, and is refused if it does not fit."""

import shutil

import numpy as np
import pytest

from checkpoint_models import MICRO, logical
from mobilemoe.checkpoint import Checkpoint, SafetensorsFile, convert, int4, save_checkpoint, write_safetensors
from mobilemoe.checkpoint.draft import DRAFT, DraftFile, DraftShape, open_draft, write_draft
from mobilemoe.engine.engine_file_cache import write_engine_folder
from mobilemoe.errors import CheckpointError

SHAPE = DraftShape(MICRO.hidden_size, 96, 32, (0, 1))
SHORTLIST = np.arange(32) * 3


def matrices(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPE.matrices.items()}


@pytest.fixture
def model(tmp_path):
    """The folder of an INT4 model with a draft head."""
    save_checkpoint(tmp_path / "model", MICRO, logical(MICRO).__getitem__, format="int4")
    write_draft(tmp_path / "model" / DRAFT, matrices().__getitem__, SHORTLIST, SHAPE.layers)
    return tmp_path / "model"


def test_it_comes_back_as_int4_rounds_it(model):
    draft = open_draft(model, MICRO)
    assert draft is not None
    assert draft.shape == SHAPE
    assert draft.shortlist_K.tolist() == SHORTLIST.tolist()
    for name, w in matrices().items():
        np.testing.assert_array_equal(draft.weight(name), int4.dequantize(*int4.quantize(w)))


def test_stock_safetensors_reads_it(model):
    numpy_of = pytest.importorskip("safetensors.numpy")
    found = numpy_of.load_file(model / DRAFT)
    assert {name: tensor.shape for name, tensor in found.items()} == {n: s for n, (_, s) in SHAPE.tensors.items()}


def test_a_model_without_one_has_none(model):
    (model / DRAFT).unlink()
    assert open_draft(model, MICRO) is None


@pytest.mark.parametrize("format", ["int4", "bf16"])
def test_conversions_take_it_along(model, tmp_path, format):
    convert(model, tmp_path / "to", format=format)
    assert (tmp_path / "to" / DRAFT).read_bytes() == (model / DRAFT).read_bytes()


def test_an_engine_folder_takes_it_along(model, tmp_path):
    write_engine_folder(model, tmp_path / "to")
    assert (tmp_path / "to" / DRAFT).read_bytes() == (model / DRAFT).read_bytes()


def test_a_changed_byte_is_found(model):
    with Checkpoint.open(model) as checkpoint:
        assert checkpoint.verify()[DRAFT] is True
    data = bytearray((model / DRAFT).read_bytes())
    data[-1] ^= 1
    (model / DRAFT).write_bytes(data)
    with Checkpoint.open(model) as checkpoint:
        assert checkpoint.verify()[DRAFT] is False


def rewritten(model, change=None, metadata=None) -> None:
    """Writes the file of `model` anew, with other arrays or metadata."""
    with SafetensorsFile(model / DRAFT) as file:
        arrays = {name: np.array(file.array(name)) for name in file.tensors}
        dtypes = {name: info.dtype for name, info in file.tensors.items()}
        kept = {"draft": file.metadata["draft"]}
    if change is not None:
        change(arrays)
    specs = {name: (dtypes[name], array.shape) for name, array in arrays.items()}
    write_safetensors(model / DRAFT, specs, arrays.__getitem__, kept if metadata is None else metadata)


def descending(arrays) -> None:
    arrays["shortlist"] = arrays["shortlist"][::-1].copy()


def beyond(arrays) -> None:
    arrays["shortlist"][-1] = MICRO.vocab_size


def narrower(arrays) -> None:
    arrays["head.qweight"] = arrays["head.qweight"][:, :-16].copy()


FAULTS = {
    "descending": (descending, "ascending ids below 96"),
    "beyond the vocabulary": (beyond, "ascending ids below 96"),
    "narrower": (narrower, "'head.qweight' is ('U8', (32, 16)), but a draft head for a model of width 64 needs"),
    "missing": (lambda arrays: arrays.pop("in_proj.qweight"), "'in_proj.qweight' is missing, but"),
    "another layer": (lambda arrays: arrays.update(layers=np.array([0, 2], np.int32)), "numbers of layers below 2"),
    "a layer before": (lambda arrays: arrays.update(layers=np.array([1, 0], np.int32)), "ascending numbers of layers"),
    "without layers": (lambda arrays: arrays.pop("layers"), "layers is missing"),
    "fewer layers": (lambda arrays: arrays.update(layers=arrays["layers"][:1]), "'first_proj.qweight' is"),
    "without a shortlist": (lambda arrays: arrays.pop("shortlist"), "shortlist is missing"),
    "odd": (lambda arrays: arrays.update(shortlist=arrays["shortlist"][:-1]), "no multiple of 32"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_refused_by_name(model, name):
    change, message = FAULTS[name]
    rewritten(model, change)
    with pytest.raises(CheckpointError) as refused:
        DraftFile(model / DRAFT, MICRO)
    assert str(model / DRAFT) in str(refused.value)
    assert message in str(refused.value)


def test_another_file_is_no_draft_head(model):
    shutil.copyfile(model / "model.safetensors", model / DRAFT)
    with pytest.raises(CheckpointError, match="no draft head of this version"):
        open_draft(model, MICRO)
    write_draft(model / DRAFT, matrices().__getitem__, SHORTLIST, SHAPE.layers)
    rewritten(model, metadata={"draft": "mobilemoe-draft-int8"})
    with pytest.raises(CheckpointError, match="mobilemoe-draft-int8"):
        open_draft(model, MICRO)


def test_weights_that_are_not_finite_leave_no_file(tmp_path):
    broken = matrices() | {"head": np.full(SHAPE.matrices["head"], np.nan, np.float32)}
    with pytest.raises(CheckpointError, match="head of the draft head"):
        write_draft(tmp_path / DRAFT, broken.__getitem__, SHORTLIST, SHAPE.layers)
    assert not (tmp_path / DRAFT).exists()
