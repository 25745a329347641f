"""Which tensors a checkpoint holds: names, dtypes and shapes from a config (spec 3.1, 3.2, 3.5).

A weight has one canonical name, that of the BF16 layout, and one logical shape: [out, in] for matrices, [E, in, out]
for experts. INT4 files keep the same weights as pairs of nibbles and scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mobilemoe.checkpoint.container import Spec
from mobilemoe.config import GROUP_SIZE, GroupAxis, ModelConfig
from mobilemoe.errors import CheckpointError

Kind = Literal["embedding", "attention", "router", "routed", "shared", "dense", "norm", "head"]
Storage = Literal["matrix", "experts", "router", "vector"]


@dataclass(frozen=True)
class Weight:
    """One logical weight: its canonical name and shape, which part of the model it belongs to, and how it is stored."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    storage: Storage

    @property
    def is_quantizable(self) -> bool:
        """Whether INT4 files store it as nibbles and scales."""
        return self.storage in ("matrix", "experts")

    def lies_along_inputs(self, axis: GroupAxis | None) -> bool:
        """Whether groups of its inputs share a scale in a file whose experts are grouped along `axis`, None in BF16."""
        return self.is_quantizable and axis is not None and (axis == "in" or self.storage != "experts")

    @property
    def int4_names(self) -> tuple[str, str]:
        """Names of the nibbles and of the scales in an INT4 file."""
        if self.storage == "experts":
            stem = self.name.removesuffix("_proj")
            return f"{stem}_qweight", f"{stem}_scale"
        stem = self.name.removesuffix("weight")
        return f"{stem}qweight", f"{stem}weight_scale"


def weights(config: ModelConfig) -> dict[str, Weight]:
    """Every weight of the model by its canonical name, from the embedding to the last norm or output head."""
    return {weight.name: weight for weight in _weights(config)}


def _weights(config: ModelConfig) -> Iterator[Weight]:
    d = config.hidden_size
    yield Weight("model.embed_tokens.weight", (config.vocab_size, d), "embedding", "matrix")
    for layer in range(config.num_hidden_layers):
        yield from _attention(config, f"model.layers.{layer}")
        yield from _feed_forward(config, f"model.layers.{layer}")
    yield Weight("model.norm.weight", (d,), "norm", "vector")
    if not config.tie_word_embeddings:
        yield Weight("lm_head.weight", (config.vocab_size, d), "head", "matrix")


def _attention(config: ModelConfig, layer: str) -> Iterator[Weight]:
    d = config.hidden_size
    q_width, kv_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    yield Weight(f"{layer}.input_layernorm.weight", (d,), "norm", "vector")
    shapes = {"q": (q_width, d), "k": (kv_width, d), "v": (kv_width, d), "o": (d, q_width)}
    for letter, shape in shapes.items():
        yield Weight(f"{layer}.self_attn.{letter}_proj.weight", shape, "attention", "matrix")
    if config.qk_norm in ("head_weight", "projection_weight"):
        for letter, width in (("q", q_width), ("k", kv_width)):
            size = config.head_dim if config.qk_norm == "head_weight" else width
            yield Weight(f"{layer}.self_attn.{letter}_norm.weight", (size,), "norm", "vector")


def _feed_forward(config: ModelConfig, layer: str) -> Iterator[Weight]:
    d, width, ffn = config.hidden_size, config.intermediate_size, f"{layer}.feed_forward"
    yield Weight(f"{layer}.post_attention_layernorm.weight", (d,), "norm", "vector")
    if not config.is_moe:
        yield from _swiglu(ffn, d, width, "dense")
        return
    experts = config.num_local_experts
    yield Weight(f"{ffn}.router.weight", (experts, d), "router", "router")
    if config.has_expert_bias:
        yield Weight(f"{ffn}.expert_bias", (experts,), "router", "vector")
    yield Weight(f"{ffn}.experts.gate_up_proj", (experts, d, 2 * width), "routed", "experts")
    yield Weight(f"{ffn}.experts.down_proj", (experts, width, d), "routed", "experts")
    if config.intermediate_size_mlp:
        yield from _swiglu(f"{ffn}.shared_expert", d, config.intermediate_size_mlp, "shared")


def _swiglu(stem: str, d: int, width: int, kind: Kind) -> Iterator[Weight]:
    yield Weight(f"{stem}.gate_proj.weight", (width, d), kind, "matrix")
    yield Weight(f"{stem}.up_proj.weight", (width, d), kind, "matrix")
    yield Weight(f"{stem}.down_proj.weight", (d, width), kind, "matrix")


def stored_tensors(weight: Weight, axis: GroupAxis | None) -> dict[str, Spec]:
    """The tensors that keep `weight` in a file: BF16 layout for axis None, else INT4 with experts grouped along it.

    CheckpointError if the grouped dimension is not a multiple of 32.
    """
    if axis is None or not weight.is_quantizable:
        return {weight.name: ("F32" if weight.storage == "router" else "BF16", weight.shape)}
    *leading, columns = weight.shape
    if weight.storage == "experts" and axis == "in":
        experts, inputs, outputs = weight.shape
        leading, columns = [experts, outputs], inputs
    if columns % GROUP_SIZE:
        raise CheckpointError(
            f"{weight.name} would be grouped along a dimension of {columns}, not a multiple of {GROUP_SIZE}: "
            "keep this model in bf16"
        )
    nibbles, scales = weight.int4_names
    return {
        nibbles: ("U8", (*leading, columns // 2)),
        scales: ("F16", (*leading, columns // GROUP_SIZE)),
    }


def tensor_table(config: ModelConfig) -> dict[str, Spec]:
    """Every tensor of the checkpoint that `config` describes: INT4 if it has an expert_group_axis, else BF16."""
    table: dict[str, Spec] = {}
    for weight in _weights(config):
        table.update(stored_tensors(weight, config.expert_group_axis))
    return table
