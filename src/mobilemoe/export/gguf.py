"""A GGUF file that stock llama.cpp runs: weights, tokenizer, chat template and stop ids of a model of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import Checkpoint, Differences, Report
from mobilemoe.config import GROUP_SIZE
from mobilemoe.errors import CheckpointError, MissingExtraError, UsageError
from mobilemoe.export.gguf_blocks import TYPES, Type, decode, encode, q4_0
from mobilemoe.export.gguf_layout import Tensor, architecture, metadata, scaling_metadata, tensors
from mobilemoe.export.gguf_vocabulary import add_vocabulary
from mobilemoe.export.stock import Floats, matrices
from mobilemoe.files import atomic_file, read_text, refuse_existing
from mobilemoe.progress import each

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

Matrices = Callable[[str], Floats]
_FILE_TYPES = {"q4_0": 2, "q8_0": 7, "bf16": 32}  # llama.cpp's numbers of "mostly this type"
_MAX_CARD_BYTES = 2**20


def write_gguf(folder: Path, path: Path, type: Type | None = None) -> Report:
    """Writes the checkpoint in `folder` as the new file `path`; reports the error of each kind, read back from it.

    type: of all matrices; None: "q4_0" for INT4 weights, which is exact but for experts grouped along their output
    (they are rounded anew), and "bf16" for others. Norms, the router and its bias are kept in fp32.
    Raises UsageError where llama.cpp has no architecture for the model, CheckpointError, TokenizerError,
    MissingExtraError; MobileMoEError if `path` exists.
    """
    try:
        from gguf import GGUFWriter
    except ModuleNotFoundError:
        raise MissingExtraError("exporting to GGUF", "export") from None
    if type is not None and type not in TYPES:
        raise UsageError(f"--type is {type!r}, but must be one of {', '.join(TYPES)}")
    refuse_existing(path, UsageError)
    with Checkpoint.open(folder) as source:
        config = source.config
        type = type or ("q4_0" if config.is_quantized else "bf16")
        arch = architecture(config)
        writer = GGUFWriter(None, arch)
        _add_general(writer, folder, type)
        for key, value in metadata(config, arch).items():
            _add(writer, f"{arch}.{key}", value)
        for key, value in scaling_metadata(config).items():
            _add(writer, key, value)
        add_vocabulary(writer, folder, config)
        layout, matrix = list(tensors(config)), matrices(source)
        for tensor in layout:
            _declare(writer, tensor, type)
        with atomic_file(path) as part:
            writer.write_header_to_file(Path(part.name))
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in each(layout, "tensors written"):
                writer.write_tensor_data(_stored(source, matrix, tensor, type))
            writer.close()
        return _compare(source, matrix, path, layout, type)


def _add_general(writer: GGUFWriter, folder: Path, type: Type) -> None:
    card = folder / "README.md"
    text = read_text(card, CheckpointError, _MAX_CARD_BYTES) if card.is_file() else ""
    heading = next((line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")), None)
    writer.add_name(heading or folder.resolve().name)
    if text:
        writer.add_description(text)
    writer.add_file_type(_FILE_TYPES[type])
    writer.add_quantization_version(2)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _ggml(type: Type) -> GGMLQuantizationType:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[type.upper()]


def _declare(writer: GGUFWriter, tensor: Tensor, type: Type) -> None:
    from gguf import quant_shape_to_byte_shape

    if not tensor.is_matrix:
        count = int(np.prod(tensor.shape))
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), 4 * count)
        return
    if tensor.shape[-1] % GROUP_SIZE and type != "bf16":
        raise UsageError(f"{tensor.name} has rows of {tensor.shape[-1]}, no multiple of {GROUP_SIZE}: use --type bf16")
    if type == "bf16":
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.uint16), 2 * int(np.prod(tensor.shape)), _ggml(type)
        )
        return
    shape = quant_shape_to_byte_shape(tensor.shape, _ggml(type))
    writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), int(np.prod(shape)), _ggml(type))


def _stored(source: Checkpoint, matrix: Matrices, tensor: Tensor, type: Type) -> npt.NDArray[Any]:
    """The bytes of `tensor`; INT4 that lies along the inputs becomes Q4_0 as it is."""
    weight = None if tensor.weight is None else source.weights[tensor.weight]
    if type == "q4_0" and weight is not None and weight.lies_along_inputs(source.config.expert_group_axis):
        nibbles, scales = (source.array(name) for name in weight.int4_names)
        return q4_0(nibbles[..., _rows(tensor), :], scales[..., _rows(tensor), :])
    w = _exact(matrix, tensor)
    return encode(w, type, tensor.weight or tensor.name) if tensor.is_matrix else w


def _exact(matrix: Matrices, tensor: Tensor) -> npt.NDArray[np.float32]:
    """What `tensor` stands for, in fp32."""
    if tensor.values is not None:
        return tensor.values
    if tensor.weight is None:
        return np.full(tensor.shape, tensor.fill, np.float32)
    w = matrix(tensor.weight)
    return np.ascontiguousarray(w[_rows(tensor)] if w.ndim == 1 else w[..., _rows(tensor), :])


def _rows(tensor: Tensor) -> npt.NDArray[np.intp] | slice:
    return slice(None) if tensor.rows is None else tensor.rows


def _compare(source: Checkpoint, matrix: Matrices, path: Path, layout: list[Tensor], type: Type) -> Report:
    """How far the file's weights are from the source's, by kind."""
    from gguf import GGUFReader

    found = Differences()
    for tensor, read in each(list(zip(layout, GGUFReader(path).tensors, strict=True)), "weights compared"):
        if tensor.weight is None:
            continue
        kind = source.weights[tensor.weight].kind
        for wanted, data in _pieces(_exact(matrix, tensor), np.asarray(read.data)):
            found.add(kind, wanted, decode(data, type) if tensor.is_matrix else np.asarray(data, np.float32))
    return found.report()


def _pieces(w: npt.NDArray[Any], data: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """An expert at a time, so that no whole stack of them is expanded twice."""
    yield from zip(w, data, strict=True) if w.ndim == 3 else [(w, data)]
