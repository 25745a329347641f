"""Every model of a space with its costs, as arrays; and one of them, as the plan gives it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mobilemoe import accounting
from mobilemoe.accounting import WeightBits
from mobilemoe.config import ModelConfig
from mobilemoe.profile.device import Device
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.runs import Points
from mobilemoe.scaling.plan.flash import ASSUMED_BANDWIDTH, PASS_TOKENS, Storage, decode_speed, prompt_seconds
from mobilemoe.scaling.plan.limits import DEFAULT_TOKENS, LIMITS, Constraints
from mobilemoe.scaling.plan.space import Shapes, Space, departure
from mobilemoe.scaling.plan.vocabulary import text_of_tokens

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Stated assumptions, in nats a token, added to the law's loss where models are ranked.
# Weights: INT4 costs the paper's models 2.3 to 2.8 points of their average (spec section 5); S to M to L are 8.9 and
# 4.4 points (section 6), for which the paper's law has .045 and .033 nats: some .015 nats for 2.5 points.
WEIGHT_BITS_PRIOR: dict[int, float] = {4: 0.015, 8: 0.0, 16: 0.0}
# g = 16: "costs ~50% more wall-clock for < 0.01 loss" (spec section 4), and training FLOPs do not see wall-clock.
FINEST, FINEST_PRIOR = 16, 0.01


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The best architecture of its E, g, s and bits. Bytes, seconds and plain counts; losses in nats a token."""

    config: ModelConfig
    experts: int
    granularity: int
    shared: int
    weight_bits: int
    kv_bits: int
    loss: float
    low: float
    high: float
    prior: float  # stated assumptions on bits and granularity, see Table.prior
    preference: float  # for the family's depth and heads, see Table.preference
    score: float  # loss + prior + preference, to the digits that the law's error warrants
    bits_per_byte: float | None  # of the loss, where several vocabularies are compared; else None
    equivalent: bool  # loss + prior within the law's error of the least
    memory: float  # what the limit is held against: the process, where the device's profile has it, or weights + kv
    weights: float
    kv: float
    held: float  # share of the routed experts that are in memory: 1 unless the model is larger than max_memory
    flops: float
    decode: float | None  # tokens/s
    decode_least: float | None  # with the profile's error as a margin
    ttft: float | None
    ttft_most: float | None
    n_active: float
    n_total: float
    tokens: float
    departure: float  # of depth and heads from the family's habits, in doublings
    outside: tuple[str, ...]  # in what respect it is outside the law's domain; empty: inside

    def as_json(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name != "config"}
        return {**values, "config": self.config.to_dict()}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Candidates, one at each place of the arrays; its shape is shapes[block] at `place`."""

    shapes: tuple[Shapes, ...]
    by_text: bool  # several vocabularies are comparable, since all is counted in tokens of the first
    storage: Storage
    block: NDArray[np.int64]
    place: NDArray[np.int64]
    experts: Array
    granularity: Array
    shared: Array
    width: Array
    vocab_size: Array
    tied: Array
    text: Array  # that one of the model's tokens holds, in tokens of the first vocabulary; 1 where it is not known
    weight_bits: Array
    kv_bits: Array
    departure: Array  # of depth and heads from the family's habits, see space.departure
    n_active: Array  # a tied embedding once, an untied one by its output head: F_inf = 2 N_act
    n_total: Array
    n_law: Array  # N as the law counts it: without the embedding where its runs did, or with the first vocabulary's
    weights: Array  # bytes
    kv: Array  # bytes at `context`
    memory: Array  # bytes of the process where the device's profile has them, else weights + kv
    least_memory: Array  # bytes of the process with no more routed experts than a token visits in one layer
    held: Array  # share of the routed experts that are in memory
    routed: Array  # bytes of all routed experts
    routed_token: Array  # bytes of those that a token visits
    passes: Array  # of the prompt, which are computed one after the other
    flops: Array  # of one decoded token, without attention
    decode_whole: Array  # tokens/s with all in memory; nan without a device, as the next five
    ttft_whole: Array  # s
    decode: Array  # tokens/s, of the first vocabulary, after `context` tokens
    decode_least: Array  # with the profile's error as a margin
    ttft: Array  # s
    ttft_most: Array

    def __len__(self) -> int:
        return len(self.place)

    @property
    def prior(self) -> Array:
        """Stated assumptions in nats, which are added to the law's loss."""
        bits = sum(cost * (self.weight_bits == bits) for bits, cost in WEIGHT_BITS_PRIOR.items())
        return cast(Array, bits + FINEST_PRIOR * (self.granularity >= FINEST))

    def preference(self, error: float) -> Array:
        """What the family's depth and heads are preferred by, in nats: `error` for a departure of a doubling or more.

        It never exceeds the law's error, so that it decides only among models that the law cannot tell apart.
        """
        return error * np.minimum(self.departure, 1)

    def tokens(self, constraints: Constraints) -> Array:
        """D of each candidate in its own tokens: the given number of the first vocabulary's, or what the training FLOPs
        allow, C / (6 N_act).
        """
        if constraints.train_flops is not None:
            return constraints.train_flops / (6 * self.n_active)
        return (constraints.tokens or DEFAULT_TOKENS) / self.text

    def points(self, constraints: Constraints) -> Points:
        return Points(
            n_active=self.n_law / 1e9,
            tokens=self.text * self.tokens(constraints) / 1e9,
            experts=self.experts,
            granularity=self.granularity,
            shared=self.shared,
        )

    def allowed(self, constraints: Constraints, without: str = "") -> Mask:
        """Which candidates keep to every limit, except for the limit `without`."""
        allowed = np.ones(len(self), bool)
        for name, limit in LIMITS.items():
            bound, values = getattr(constraints, name), getattr(self, limit.column)
            if bound is not None and name != without:
                allowed &= values <= bound if limit.at_most else values >= bound
        return allowed

    def under(self, max_memory: float | None) -> Table:
        """The same models in a process of at most `max_memory` bytes (None: of any), with the speeds that they have
        there.
        """
        storage = self.storage
        resident = self.memory - storage.process_weights * self.routed
        held = np.ones(len(self))
        if max_memory is not None:
            larger = self.memory > max_memory
            room = (max_memory - resident[larger]) / (storage.process_weights * np.maximum(self.routed[larger], 1))
            held[larger] = np.clip(room, 0, 1)
        decode = decode_speed(self.decode_whole, held, self.routed_token / self.text, storage.bandwidth)
        ttft = prompt_seconds(self.ttft_whole, held, self.routed, self.passes, storage.bandwidth)
        return replace(
            self,
            held=held,
            decode=decode,
            decode_least=decode * storage.margin,
            ttft=ttft,
            ttft_most=ttft / storage.margin,
        )

    def comparable(self, config: ModelConfig) -> Mask:
        """Which candidates have the tying of `config`, and its vocabulary unless these are compared by text: other
        losses cannot be compared with its own.
        """
        alike = self.by_text | (self.vocab_size == config.vocab_size)
        return np.asarray(alike & (self.tied == config.tie_word_embeddings))

    def take(self, mask: Mask) -> Table:
        """The candidates that the mask selects."""
        names = {field.name for field in fields(self)} - {"shapes", "by_text", "storage"}
        values: dict[str, Any] = {name: getattr(self, name)[mask] for name in names}
        return replace(self, **values)


def tabulate(space: Space, law: Law, device: Device | None, constraints: Constraints) -> Table:
    """Computes every model of the space at each number of bits, with its speed under `max_memory`; no limit is applied
    yet.
    """
    shapes, text = tuple(space.shapes()), text_of_tokens(space.vocabularies)
    first = space.vocabularies[0]
    blocks = [
        _columns(block, index, bits, kv_bits, law, device, constraints, *_text_of(block, text, first))
        for index, block in enumerate(shapes)
        for bits in space.weight_bits
        for kv_bits in space.kv_bits
    ]
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    storage = Storage()
    if device is not None:
        bandwidth = device.flash_bandwidth or ASSUMED_BANDWIDTH
        storage = Storage(bandwidth, device.process_bytes(1.0, 0.0), 1 - (device.error or 0.0))
    table = Table(shapes=shapes, by_text=text is not None, storage=storage, **columns)
    return table.under(constraints.max_memory)


def _text_of(shapes: Shapes, text: dict[int, float] | None, first: int) -> tuple[float, int]:
    """The text that a token of these models holds, and the vocabulary whose embedding the law counts."""
    own = int(shapes.vocab_size[0])
    return (1.0, own) if text is None else (text[own], first)


def _columns(
    shapes: Shapes,
    block: int,
    bits: WeightBits,
    kv_bits: int,
    law: Law,
    device: Device | None,
    constraints: Constraints,
    text: float,
    counted: int,
) -> dict[str, NDArray[Any]]:
    context, prompt = (math.ceil(length / text) for length in (constraints.context, constraints.prompt))
    flops = np.asarray(accounting.decode_flops(shapes), np.float64)
    # A body counts for the law as if it had the embedding of the vocabulary that losses are for.
    without = 0 if law.counts_embedding is False else counted
    embedding = (shapes.vocab_size - without) * shapes.hidden_size
    weights = np.asarray(accounting.file_bytes(shapes, bits), np.float64)
    kv = np.asarray(accounting.kv_bytes(shapes, context, kv_bits), np.float64)
    memory, process_weights = weights + kv, 1.0
    experts = [part for part in accounting.parts(shapes) if part.name.startswith("routed experts")]
    routed = sum((part.stored_bytes(bits) for part in experts), start=np.zeros(len(shapes)))
    visited = sum((part.stored_bytes(bits) * part.active // part.count for part in experts), np.zeros(len(shapes)))
    decode = ttft = np.full(len(shapes), np.nan)
    if device is not None:
        # The profile is for INT4 weights; the time of others grows with their bytes.
        added = accounting.decode_bytes(shapes, 0, weight_bits=bits) - accounting.decode_bytes(shapes, 0)
        decode = np.asarray(text / (device.decode_seconds(shapes, context) + added / device.weight_bandwidth))
        ttft = np.asarray(device.prefill_seconds(shapes, prompt))
        memory, process_weights = device.process_bytes(weights, kv), device.process_bytes(1.0, 0.0)
    absent = routed - visited / shapes.num_hidden_layers
    return {
        "block": np.full(len(shapes), block),
        "place": np.arange(len(shapes)),
        "experts": shapes.experts.astype(np.float64),
        "granularity": shapes.granularity.astype(np.float64),
        "shared": shapes.shared.astype(np.float64),
        "width": shapes.hidden_size.astype(np.float64),
        "vocab_size": shapes.vocab_size.astype(np.float64),
        "tied": np.full(len(shapes), float(shapes.tie_word_embeddings)),
        "text": np.full(len(shapes), text),
        "weight_bits": np.full(len(shapes), float(bits)),
        "kv_bits": np.full(len(shapes), float(kv_bits)),
        "departure": departure(shapes),
        "n_active": flops / 2,
        "n_total": np.asarray(accounting.total_parameters(shapes), np.float64),
        "n_law": flops / 2 - embedding,
        "weights": weights,
        "kv": kv,
        "memory": memory,
        "least_memory": memory - process_weights * absent,
        "held": np.ones(len(shapes)),
        "routed": routed,
        "routed_token": visited,
        "passes": np.full(len(shapes), math.ceil(prompt / PASS_TOKENS)),
        "flops": flops,
        "decode_whole": decode,
        "ttft_whole": ttft,
        **dict.fromkeys(("decode", "decode_least"), decode),
        **dict.fromkeys(("ttft", "ttft_most"), ttft),
    }


def groups(table: Table) -> Iterator[NDArray[np.int64]]:
    """The places of the models that share E, g, s and bits, group by group."""
    names = ("experts", "granularity", "shared", "weight_bits", "kv_bits")
    _, group = np.unique(np.stack([getattr(table, name) for name in names]), axis=1, return_inverse=True)
    order = np.argsort(group, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
