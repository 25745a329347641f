"""The architectures that `plan` chooses among, as arrays, so that `accounting` counts all of them at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mobilemoe.accounting import IntArray, WeightBits
from mobilemoe.config import ModelConfig
from mobilemoe.config_rope import RopeScaling
from mobilemoe.errors import UsageError
from mobilemoe.presets import DENSE, LLAMA3_IDS, family_experts, family_knobs, family_kv_heads, family_member
from mobilemoe.scaling.law.law import Law

MOST = 2**24  # of any value; with more, counts of bytes leave 64 bits
VOCABULARY = 128_256  # the family's (spec section 1)
RATIO = 40  # of width to layers in the family (spec section 1)
WIDTHS = tuple(range(256, 4097, 128))  # kernels and caches like multiples of 128
RATIOS = tuple(RATIO * 1.05**step for step in range(-10, 11))  # 25 to 65: steps so small that a limit is used up to 5%
EXPERTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
GRANULARITIES = (1, 2, 4, 8, 16)
HEAD_DIM = 64  # of the family
HEAD_DIMS = (HEAD_DIM, 128)
LEAST_KV_HEADS, MOST_KV_HEADS = 2, 8
MOST_SHARING = 8  # query heads that share a KV head


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Models of one kind, one for each entry of the arrays: an `accounting.Shape`, with the E, g and s of each
    (`presets.family_member`)."""

    experts: IntArray
    granularity: IntArray
    shared: IntArray
    vocab_size: IntArray
    hidden_size: IntArray
    num_hidden_layers: IntArray
    num_attention_heads: IntArray
    num_key_value_heads: IntArray
    head_dim: IntArray
    intermediate_size: IntArray
    intermediate_size_mlp: IntArray
    num_local_experts: IntArray
    num_experts_per_tok: IntArray
    ffn_type: Literal["moe", "dense"]
    tie_word_embeddings: bool
    qk_norm: str = "head"
    layer_types: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.hidden_size)

    @property
    def is_moe(self) -> bool:
        return self.ffn_type == "moe"

    @property
    def has_expert_bias(self) -> bool:
        return self.is_moe

    def window(self, layer: int) -> None:
        """None: every layer attends to all tokens."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What may vary. E = 1 is the dense model, with g = 1 and s = 0; an odd g has no shared expert.

    `ratios` are width over layers, `head_dims` the widths of a head. The number of KV heads divides the query heads, is
    2 to 8, and leaves 2 to 8 query heads for each; the family's own number is always among them. Raises UsageError
    for a value that no model can have.
    """

    experts: tuple[int, ...] = EXPERTS
    granularities: tuple[int, ...] = GRANULARITIES
    shared: tuple[int, ...] = (0, 1)
    widths: tuple[int, ...] = WIDTHS
    ratios: tuple[float, ...] = RATIOS
    head_dims: tuple[int, ...] = HEAD_DIMS
    vocabularies: tuple[int, ...] = (VOCABULARY,)
    tied: tuple[bool, ...] = (True,)
    weight_bits: tuple[WeightBits, ...] = (4,)
    kv_bits: tuple[int, ...] = (8,)

    def __post_init__(self) -> None:
        for field, values in vars(self).items():
            name = {"vocabularies": "vocabulary"}.get(field, field)  # as the verb's option has it
            if not values:
                raise UsageError(f"{name} is empty, but a plan needs at least one value for it")
            if name not in ("shared", "tied") and min(values) <= 0:
                raise UsageError(f"{name} holds {min(values)}, but must be above 0")
            if max(values) > MOST:
                raise UsageError(f"{name} holds {max(values)}, but may hold no more than {MOST}")
            if repeated := [value for value in values if values.count(value) > 1]:
                raise UsageError(f"{name} holds {repeated[0]} more than once")
        for name, known in (("weight_bits", (4, 8, 16)), ("kv_bits", (8, 16)), ("shared", (0, 1))):
            if wrong := [value for value in getattr(self, name) if value not in known]:
                raise UsageError(f"{name} holds {wrong[0]}, but must be of {', '.join(map(str, known))}")
        if wrong := [width for width in self.widths if width % HEAD_DIM]:
            raise UsageError(f"widths holds {wrong[0]}, but must be multiples of {HEAD_DIM}")

    def known_to(self, law: Law) -> Space:
        """The space with only those E, g and s that `law` can choose among (`Law.known`)."""
        return dataclasses.replace(
            self,
            experts=law.known("experts", self.experts),
            granularities=law.known("granularity", self.granularities),
            shared=law.known("shared", self.shared),
        )

    def shapes(self) -> Iterator[Shapes]:
        """Every model of the space; vocabularies, dense models and mixtures, tied and untied ones come separately."""
        moe = [knobs for knobs in family_knobs(self.experts, self.granularities, self.shared) if knobs != DENSE]
        for tied in self.tied:
            for vocabulary in self.vocabularies:
                geometries = np.array(list(self._geometries(vocabulary)), dtype=np.int64)
                if 1 in self.experts:
                    yield _shapes(geometries, [DENSE], tied)
                if moe:
                    yield _shapes(geometries, moe, tied)

    def _geometries(self, vocabulary: int) -> Iterator[tuple[int, ...]]:
        """(vocabulary, width, layers, heads, KV heads, head_dim)."""
        for width in self.widths:
            for layers in dict.fromkeys(math.ceil(width / ratio) for ratio in self.ratios):
                for head_dim in self.head_dims:
                    if width % head_dim:
                        continue
                    heads = width // head_dim
                    for kv_heads in kv_choices(heads):
                        if kv_heads < LEAST_KV_HEADS and head_dim != HEAD_DIM:
                            continue  # a prime number of heads, which wide heads alone lead to
                        yield vocabulary, width, layers, heads, kv_heads, head_dim


def kv_choices(heads: int) -> list[int]:
    """The numbers of KV heads that `heads` query heads may have."""
    fitting = [
        kv for kv in range(LEAST_KV_HEADS, MOST_KV_HEADS + 1) if heads % kv == 0 and 2 <= heads // kv <= MOST_SHARING
    ]
    return sorted({*fitting, family_kv_heads(heads)})


def _shapes(geometries: IntArray, knobs: list[tuple[int, int, int]], tied: bool) -> Shapes:
    """Each geometry with each (E, g, s)."""
    vocab_size, width, layers, heads, kv_heads, head_dim = np.tile(geometries, (len(knobs), 1)).T
    experts, granularity, shared = np.repeat(np.array(knobs, dtype=np.int64), len(geometries), axis=0).T
    is_moe = knobs[0][0] > 1
    ffn = family_experts(width, experts, granularity, shared)
    if not is_moe:
        ffn |= {"num_local_experts": np.zeros_like(width), "num_experts_per_tok": np.zeros_like(width)}
    return Shapes(
        experts=experts,
        granularity=granularity,
        shared=shared,
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        **ffn,
        ffn_type="moe" if is_moe else "dense",
        tie_word_embeddings=tied,
    )


def departure(shapes: Shapes) -> NDArray[np.float64]:
    """How far depth and heads are from the family's, in doublings; 0 for the family itself.

    No law here depends on depth or heads.
    """
    layers = -(-shapes.hidden_size // RATIO)
    heads, place = np.unique(shapes.hidden_size // HEAD_DIM, return_inverse=True)
    habit = HEAD_DIM * np.array([family_kv_heads(int(count)) for count in heads])[place]
    depth = np.log2(shapes.num_hidden_layers / layers)
    kv_width = np.log2(shapes.num_key_value_heads * shapes.head_dim / habit)
    wide_heads = np.log2(shapes.head_dim / HEAD_DIM)
    return np.asarray(np.abs(depth) + np.abs(kv_width) + np.abs(wide_heads))


def config_of(shapes: Shapes, index: int, context: int) -> ModelConfig:
    """The config of the model at `index`, with the family's RoPE; with its control ids if the vocabulary is the
    family's.
    """
    s = shapes
    vocab_size = int(s.vocab_size[index])
    config = family_member(
        int(s.hidden_size[index]),
        expansion=int(s.experts[index]),
        granularity=int(s.granularity[index]),
        shared=bool(s.shared[index]),
        layers=int(s.num_hidden_layers[index]),
        vocab_size=vocab_size,
        rope_scaling=RopeScaling(),
        tie_word_embeddings=s.tie_word_embeddings,
        **(LLAMA3_IDS if vocab_size == VOCABULARY else {}),
    )
    return dataclasses.replace(
        config,
        num_attention_heads=int(s.num_attention_heads[index]),
        num_key_value_heads=int(s.num_key_value_heads[index]),
        head_dim=int(s.head_dim[index]),
        max_position_embeddings=max(config.max_position_embeddings, context),
    )
