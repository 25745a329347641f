"""INT4 as it is in MLX's affine layout: 4 bits in groups of 32 inputs, where a value q stands for q * scale + bias.

Its q runs from 0 to 15, so bias = -8 * scale gives our -8 to 7. Two architectures of MLX-LM compute what ours do.
`glm4_moe` is in MLX Swift too, but passes over the scaling of RoPE and wants a head beside the embedding. `dots1`
scales, and needs no head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mobilemoe.checkpoint import Checkpoint, Report, SafetensorsFile, int4
from mobilemoe.config import GROUP_SIZE, ModelConfig
from mobilemoe.errors import UsageError
from mobilemoe.export.glm4moe_layout import Tensor, check_fits, glm4moe_config, tensors
from mobilemoe.export.stock import Floats
from mobilemoe.export.stock_folder import (
    VALUES_IN_WORD,
    StockWeights,
    Stored,
    check_packable,
    offset_words,
    to_f16,
    write_stock_folder,
)

_ZERO = 8  # the value of MLX that stands for our zero


def write_mlx(folder: Path, out: Path) -> Report:
    """Writes the INT4 checkpoint in `folder` as the new folder `out`, tokenizer files beside it; reports the error.

    The 4-bit values and scales of all matrices stay as they are. UsageError if experts are grouped along their outputs,
    or where MLX-LM does not compute what the model does; CheckpointError as for Checkpoint.open, TokenizerError.
    """
    with Checkpoint.open(folder) as source:
        config = source.config
        check_fits(config)
        check_packable(source, "MLX")
        if config.num_experts_per_tok == 1 and config.norm_topk_prob:
            raise UsageError("MLX-LM does not normalise the weight of a single expert: num_experts_per_tok is 1")
        return write_stock_folder(source, out, mlx_config(config), mlx_tensors(config), _encode, _decode)


def mlx_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json: that of Glm4Moe with the keys that MLX-LM reads. Its types are those of the tensors."""
    keys = glm4moe_config(config) | {
        "dtype": "float16",
        "rope_scaling": None,
        "quantization": {"group_size": GROUP_SIZE, "bits": 4, "mode": "affine"},
    }
    if config.rope_scaling is None:
        return keys | {"tie_word_embeddings": False}
    scaling = {"rope_type": "llama3", **vars(config.rope_scaling)}
    return keys | {"architectures": ["Dots1ForCausalLM"], "model_type": "dots1", "rope_scaling": scaling}


def mlx_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors by the names of MLX-LM, the experts of a layer in one, before INT4 makes three of each matrix."""
    found = tensors(config, stacked=True)
    if config.rope_scaling is None:
        return {name.replace(".mlp.experts.", ".mlp.switch_mlp."): tensor for name, tensor in found.items()}
    if config.tie_word_embeddings:
        del found["lm_head.weight"]
    return found


def _encode(stock: StockWeights, name: str, tensor: Tensor) -> Stored:
    if ".mlp.gate." in name:
        return {name: (("F32", tensor.shape), lambda: stock.floats(tensor))}
    if len(tensor.shape) == 1:
        return {name: (("F16", tensor.shape), lambda: to_f16(stock.floats(tensor), tensor.weight or name))}
    *outputs, inputs = tensor.shape
    grouped = (*outputs, inputs // GROUP_SIZE)
    scales, biases = _scale_names(name)
    return {
        name: (("U32", (*outputs, inputs // VALUES_IN_WORD)), lambda: offset_words(stock.int4(tensor)[0])),
        scales: (("F16", grouped), lambda: stock.int4(tensor)[1]),
        biases: (("F16", grouped), lambda: to_f16(np.float32(-_ZERO) * stock.int4(tensor)[1], tensor.weight or name)),
    }


def _decode(file: SafetensorsFile, name: str) -> Floats:
    words = file.array(name)
    if words.dtype != np.uint32:
        return int4.to_float32(words, file.tensors[name].dtype)
    scales, biases = (file.array(at).astype(np.float32)[..., None] for at in _scale_names(name))
    q = np.stack([words >> np.uint32(4 * at) & np.uint32(15) for at in range(VALUES_IN_WORD)], axis=-1)
    w: Floats = q.reshape(*scales.shape[:-1], GROUP_SIZE).astype(np.float32) * scales + biases
    return w.reshape(*words.shape[:-1], -1)


def _scale_names(name: str) -> tuple[str, str]:
    stem = name.removesuffix("weight")
    return f"{stem}scales", f"{stem}biases"
