"""What compression costs: compares models with the parent of the same shape and tokenizer that they were made from.

C models, L MoE layers, T tokens, A active experts per token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.config import ModelConfig
from mobilemoe.data.sources import Document
from mobilemoe.errors import DataError, UsageError
from mobilemoe.evaluate.compare.bits_per_byte import Score, sum_by_domain
from mobilemoe.evaluate.compare.logits import bits, choose_window, compare_logits, encode_for_all, windows_of
from mobilemoe.evaluate.compare.paired import Comparison
from mobilemoe.evaluate.experts.expert_use import choose_experts, torch_model
from mobilemoe.load import Model

Array = NDArray[np.float64]
Logits = NDArray[np.float32]
Choices = NDArray[np.int64]


@dataclass(frozen=True)
class Cost:
    """A model compared with its parent on the texts of a domain; `divergence` is KL(parent || model) in nats per token.

    agreement: the share of tokens for which both have the same likeliest next token. shared_L, jaccard_L: for each
    layer the share of a token's experts that both chose, and the experts that both chose over those that either chose;
    means over tokens, None where they were not compared.
    """

    bits_per_byte: float
    divergence: float
    agreement: float
    shared_L: tuple[float, ...] | None
    jaccard_L: tuple[float, ...] | None

    @property
    def shared(self) -> float | None:
        """The mean of `shared_L` over layers."""
        return None if self.shared_L is None else float(np.mean(self.shared_L))

    def as_json(self) -> dict[str, Any]:
        return {
            "bits_per_byte": self.bits_per_byte,
            "divergence": self.divergence,
            "agreement": self.agreement,
            "experts_shared": self.shared,
            "experts_shared_by_layer": self.shared_L,
            "experts_jaccard_by_layer": self.jaccard_L,
        }


@dataclass(frozen=True)
class Compression:
    """The result of `compression_table`: costs by model, then by domain and for "all".

    parent_bits_per_byte, tokens: by domain. without_experts: why a model's expert choices were not compared.
    benchmarks: by model, its scores minus the parent's; empty until `with_benchmarks`.
    """

    parent_bits_per_byte: dict[str, float]
    tokens: dict[str, int]
    costs: dict[str, dict[str, Cost]]
    without_experts: dict[str, str]
    benchmarks: dict[str, Comparison] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "parent_bits_per_byte": self.parent_bits_per_byte,
            "models": {
                name: {domain: cost.as_json() for domain, cost in costs.items()} for name, costs in self.costs.items()
            },
            "without_experts": self.without_experts,
            "benchmarks": {name: found.as_json() for name, found in self.benchmarks.items()},
        }

    @property
    def heads(self) -> list[str]:
        """The headings of `rows`."""
        return ["", "parent", *self.costs]

    def rows(self) -> Iterator[list[str]]:
        """A table with one row for each quantity, and a column for the parent and for each of its models."""
        domains = sorted(self.tokens, key=lambda name: (name != "all", name))
        for domain in domains:
            costs = [each[domain] for each in self.costs.values()]
            of = "" if domain == "all" else f", {domain}"
            parent = f"{self.parent_bits_per_byte[domain]:.4f}"
            yield [f"bits per byte{of}", parent, *(f"{cost.bits_per_byte:.4f}" for cost in costs)]
            yield [f"KL, nats a token{of}", "", *(f"{cost.divergence:.4f}" for cost in costs)]
            yield [f"same greedy token{of}", "", *(f"{cost.agreement:.2%}" for cost in costs)]
            if any(cost.shared_L for cost in costs):
                yield [f"experts in common in fp32{of}", "", *(_percent(cost.shared) for cost in costs)]
        whole = [each["all"] for each in self.costs.values()]
        for layer in range(max(len(cost.shared_L or ()) for cost in whole)):
            shares = [_percent(cost.shared_L[layer] if cost.shared_L else None) for cost in whole]
            yield [f"experts in common in fp32, layer {layer}", "", *shares]
        yield from self._benchmark_rows()

    def _benchmark_rows(self) -> Iterator[list[str]]:
        for name in sorted({key for found in self.benchmarks.values() for key in found.differences}):
            found = [
                self.benchmarks[model].differences.get(name) if model in self.benchmarks else None
                for model in self.costs
            ]
            # Each model has its own examples in common with the parent, so the parent may have several means.
            parents = sorted({f"{each.b:.2%}" for each in found if each is not None})
            cells = [
                f"{each.a:.2%} ({each.difference:+.2%}, {each.low:+.2%} to {each.high:+.2%})" if each else "-"
                for each in found
            ]
            yield [name, " / ".join(parents), *cells]

    def with_benchmarks(self, differences: Mapping[str, Comparison]) -> Compression:
        """The same with `differences` to the parent's scores, for models named here; UsageError for another name."""
        for name in differences:
            if name not in self.costs:
                raise UsageError(f"{name!r} has results, but is none of the models: {', '.join(self.costs)}")
        return replace(self, benchmarks=dict(differences))


def compression_table(
    parent: Model,
    models: Mapping[str, Model],
    path: Path | str,
    *,
    experts: bool = False,
    window: int | None = None,
    on_text: Callable[[int], None] | None = None,
) -> Compression:
    """The costs of `models`, by name, over the texts of a JSONL file: lines, windows and errors are those of
    `score_file`.

    The text is read once, and the parent computed once for all models. The default window is the shortest context, but
    at most half a GB of logits for each model. With `experts` the choices of experts are compared too, as the PyTorch
    models make them: for this a model that runs on the native engine is read a second time, and computed in fp32.
    UsageError if the models do not encode a text to the same tokens.
    """
    if not models:
        raise UsageError("there is no model to compare with the parent: give at least one")
    everyone = [parent, *models.values()]
    window = choose_window(everyone, window)
    without = {name: reason for name, model in models.items() if (reason := _why_no_experts(parent, model, experts))}
    readers = [_Reader(parent, len(without) < len(models))]
    readers += [_Reader(model, name not in without) for name, model in models.items()]

    def compare(place: str, document: Document) -> _Sums:
        ids, size = encode_for_all(everyone, place, document)
        text = _Sums(bytes=size, tokens=len(ids) - 1, texts=1)
        for before, targets in windows_of(ids, window):
            (parent_TV, parent_LTA), *others = (reader(before) for reader in readers)
            found = compare_logits(parent_TV, [logits_TV for logits_TV, _ in others], targets)
            if not np.isfinite(found.nats_CT).all():
                raise DataError(f"{place}: a model gives this text no probabilities, but NaN")
            text.add(
                _Sums(
                    bits=bits(found.parent_logprobs_T),
                    bits_C=np.array([bits(logprobs_T) for logprobs_T in found.logprobs_CT]),
                    nats_C=found.nats_CT.sum(axis=1),
                    agreed_C=found.agreed_CT.sum(axis=1),
                    overlap_C2L=_overlaps(parent_LTA, [experts_LTA for _, experts_LTA in others]),
                )
            )
        return text

    sums = sum_by_domain(Path(path), _Sums, compare, on_text)
    costs = {
        name: {domain: text.cost(number, name not in without) for domain, text in sums.items()}
        for number, name in enumerate(models)
    }
    return Compression(
        {domain: text.bits_per_byte for domain, text in sums.items()},
        {domain: text.tokens for domain, text in sums.items()},
        costs,
        without,
    )


def overlap(ours_LTA: Choices, theirs_LTA: Choices) -> Array:
    """Sums over tokens, by layer, of |both| / A and of |both| / |either|: [2, L]."""
    active = ours_LTA.shape[2]
    both_LT = (ours_LTA[..., :, None] == theirs_LTA[..., None, :]).sum(axis=(2, 3))
    return np.array([(both_LT / active).sum(axis=1), (both_LT / (2 * active - both_LT)).sum(axis=1)])


def _overlaps(parent_LTA: Choices | None, models: Sequence[Choices | None]) -> Array | float:
    """`overlap` for each model: [C, 2, L]. Zeros for a model that is not compared, 0.0 if none is."""
    if parent_LTA is None:
        return 0.0
    nothing = np.zeros((2, len(parent_LTA)))
    return np.array([nothing if theirs_LTA is None else overlap(parent_LTA, theirs_LTA) for theirs_LTA in models])


@dataclass
class _Sums(Score):
    """A score of the parent, with sums for each model; 0.0 stands for an array of zeros."""

    bits_C: Any = 0.0
    nats_C: Any = 0.0
    agreed_C: Any = 0.0
    overlap_C2L: Any = 0.0

    def cost(self, number: int, with_experts: bool) -> Cost:
        shared_L, jaccard_L = (self.overlap_C2L[number] / self.tokens).tolist() if with_experts else (None, None)
        return Cost(
            bits_per_byte=float(self.bits_C[number] / self.bytes),
            divergence=max(0.0, float(self.nats_C[number] / self.tokens)),
            agreement=float(self.agreed_C[number] / self.tokens),
            shared_L=None if shared_L is None else tuple(shared_L),
            jaccard_L=None if jaccard_L is None else tuple(jaccard_L),
        )


class _Reader:
    """Gives a model's logits_TV and, if wanted, its experts_LTA; a PyTorch model gives both in one forward pass."""

    def __init__(self, model: Model, with_experts: bool) -> None:
        self._model = model
        self._torch_form = torch_model(model) if with_experts else None

    def __call__(self, ids: Sequence[int]) -> tuple[Logits, Choices | None]:
        if self._torch_form is None:
            return self._model.logits(ids), None
        logits_TV, experts_LTA = choose_experts(self._torch_form, ids)
        if self._model.engine:
            logits_TV = self._model.logits(ids)
        return logits_TV, experts_LTA


def _why_no_experts(parent: Model, model: Model, wanted: bool) -> str | None:
    if not wanted:
        return "they were not asked for"
    ours, theirs = _shape(model.config), _shape(parent.config)
    if not model.config.is_moe:
        return "it has no experts"
    if ours != theirs:
        return "its experts are not those of the parent: {} layers of {} experts, {} a token, not {}, {}, {}".format(
            *ours, *theirs
        )
    for each, name in ((parent, "the parent"), (model, "it")):
        if each.engine and not each.config.is_quantized:
            return f"{name} was rounded to INT4 while it was loaded: save it with `mobilemoe quantize`"
    return None


def _shape(config: ModelConfig) -> tuple[int, int, int]:
    return config.num_hidden_layers, config.num_local_experts, config.num_experts_per_tok


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
