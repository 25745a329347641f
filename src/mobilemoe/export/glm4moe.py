"""A model of ours as a plain Glm4MoeForCausalLM checkpoint in BF16, for runtimes that load no code of ours."""

from __future__ import annotations

from pathlib import Path

from mobilemoe.checkpoint import Checkpoint, Report, SafetensorsFile, int4
from mobilemoe.export.glm4moe_layout import Tensor, check_fits, glm4moe_config, tensors
from mobilemoe.export.stock import Floats
from mobilemoe.export.stock_folder import StockWeights, Stored, write_stock_folder


def write_glm4moe(folder: Path, out: Path) -> Report:
    """Writes the checkpoint in `folder` as the new folder `out`, tokenizer files beside it; reports the error.

    Weights are BF16, so that INT4 weights are rounded; those of the router and its bias are fp32. UsageError where
    Glm4Moe does not compute what the model does, CheckpointError as for Checkpoint.open, TokenizerError.
    """
    with Checkpoint.open(folder) as source:
        check_fits(source.config)
        config = glm4moe_config(source.config)
        return write_stock_folder(source, out, config, tensors(source.config), _encode, _decode)


def _encode(stock: StockWeights, name: str, tensor: Tensor) -> Stored:
    if ".mlp.gate." in name:
        return {name: (("F32", tensor.shape), lambda: stock.floats(tensor))}
    return {name: (("BF16", tensor.shape), lambda: int4.to_bf16(stock.floats(tensor)))}


def _decode(file: SafetensorsFile, name: str) -> Floats:
    return int4.to_float32(file.array(name), file.tensors[name].dtype)
