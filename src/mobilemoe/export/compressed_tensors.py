"""INT4 as it is in a Glm4Moe checkpoint of the kind that the compressed-tensors library calls pack-quantized.

vLLM, SGLang and transformers read it. A matrix is three tensors: words of eight 4-bit values, fp16 scales for groups
of 32 inputs, and its shape. The embedding and the head cannot be packed there, and are fp16, as the scales must be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mobilemoe.checkpoint import Checkpoint, Report, SafetensorsFile, int4
from mobilemoe.config import GROUP_SIZE, ModelConfig
from mobilemoe.export.glm4moe_layout import Tensor, check_fits, glm4moe_config, tensors
from mobilemoe.export.stock import Floats
from mobilemoe.export.stock_folder import (
    VALUES_IN_WORD,
    StockWeights,
    Stored,
    check_packable,
    from_offset_words,
    offset_words,
    to_f16,
    write_stock_folder,
)


def write_compressed_tensors(folder: Path, out: Path) -> Report:
    """Writes the INT4 checkpoint in `folder` as the new folder `out`, tokenizer files beside it; reports the error.

    The 4-bit values and scales of all projections stay as they are; the embedding and the head are rounded to fp16.
    UsageError if experts are grouped along their outputs, or where Glm4Moe does not compute what the model does;
    CheckpointError as for Checkpoint.open, TokenizerError.
    """
    with Checkpoint.open(folder) as source:
        check_fits(source.config)
        check_packable(source, "compressed-tensors")
        config = compressed_tensors_config(source.config)
        return write_stock_folder(source, out, config, tensors(source.config), _encode, _decode)


def compressed_tensors_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json: that of Glm4Moe, and what compressed-tensors asks for.

    The type is float16 because runtimes keep the scales in the type of the model: bfloat16 would round them.
    """
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": GROUP_SIZE,
        "dynamic": False,
    }
    return glm4moe_config(config) | {
        "dtype": "float16",
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head"],
        },
    }


def _encode(stock: StockWeights, name: str, tensor: Tensor) -> Stored:
    if name.endswith("_proj.weight"):
        outputs, inputs = tensor.shape
        packed, scale, shape = _packed_names(name)
        return {
            packed: (
                ("I32", (outputs, inputs // VALUES_IN_WORD)),
                lambda: offset_words(stock.int4(tensor)[0]).view("<i4"),
            ),
            scale: (("F16", (outputs, inputs // GROUP_SIZE)), lambda: stock.int4(tensor)[1]),
            shape: (("I64", (2,)), lambda: np.array(tensor.shape, np.int64)),
        }
    if ".mlp.gate." in name:
        return {name: (("F32", tensor.shape), lambda: stock.floats(tensor))}
    if name.endswith("norm.weight"):
        return {name: (("BF16", tensor.shape), lambda: int4.to_bf16(stock.floats(tensor)))}
    return {name: (("F16", tensor.shape), lambda: to_f16(stock.floats(tensor), tensor.weight or name))}


def _decode(file: SafetensorsFile, name: str) -> Floats:
    if name in file.tensors:
        return int4.to_float32(file.array(name), file.tensors[name].dtype)
    packed, scale, _ = _packed_names(name)
    return int4.dequantize(from_offset_words(file.array(packed)), file.array(scale))


def _packed_names(name: str) -> tuple[str, str, str]:
    return f"{name}_packed", f"{name}_scale", f"{name}_shape"
