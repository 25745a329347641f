"""Statistics of the routers: the load of each expert in all and by source, how even it is, and the selection bias.

Everything is counted on the model's device without waiting for it. All counts are sums, which processes can add up.

L MoE layers, K numbers of each, G domains (the data's sources), E experts, A active experts per token, N tokens, of
which S are a sample.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilemoe.files import write_atomic
from mobilemoe.model.block import MoE
from mobilemoe.model.router import Routing

SAMPLE = 128  # tokens of each call that the entropy of scores is estimated from: precise to two digits, and cheap
REPORT_FILE = "router.json"


class RouterHealth:
    """Counts over a step, which `end_step` ends, and over a window of many steps, which `report` ends.

    `layers` are a model's MoE layers, already on their device; `domains` the names that `domains_N` counts in.
    """

    def __init__(self, layers: Sequence[MoE], domains: Sequence[str]) -> None:
        self.layers, self.domains = layers, tuple(domains)
        weight_ED = layers[0].router.weight
        self.experts = weight_ED.shape[0]
        shape = (len(layers), len(self.domains), self.experts)
        self._load_LGE = torch.zeros(shape, dtype=torch.int64, device=weight_ED.device)
        self._window_LGE = torch.zeros_like(self._load_LGE)
        # Sums over sampled tokens, and how many they were.
        self._entropy_L2 = torch.zeros(len(layers), 2, dtype=torch.float64, device=weight_ED.device)
        self._window_L2 = torch.zeros_like(self._entropy_L2)

    @torch.no_grad()
    def add(self, routings: Sequence[Routing], domains_N: Tensor) -> None:
        """Counts one forward pass: each layer's routing of N tokens, and each token's domain."""
        experts_LNA = torch.stack([routing.experts_NA for routing in routings]).long()
        place_LNA = domains_N[:, None] * self.experts + experts_LNA
        place_LP = place_LNA.flatten(1)
        # Unlike bincount, this does not wait for a GPU; sums of integers do not depend on their order.
        self._load_LGE.flatten(1).scatter_add_(1, place_LP, torch.ones_like(place_LP))
        stride = math.ceil(len(domains_N) / SAMPLE)
        logits_LSE = torch.stack([routing.logits_NE[::stride] for routing in routings])
        softmax = self.layers[0].router.config.router_score == "softmax"
        scores_LSE = logits_LSE if softmax else torch.nn.functional.logsigmoid(logits_LSE)
        share_LSE = scores_LSE.log_softmax(dim=-1)  # of each score in the token's sum of scores
        entropy_LS = -(share_LSE.exp() * share_LSE).sum(dim=-1) / math.log(self.experts)
        self._entropy_L2[:, 0] += entropy_LS.sum(dim=1)
        self._entropy_L2[:, 1] += entropy_LS.shape[1]

    @property
    def load_LE(self) -> Tensor:
        """(token, expert) pairs of each expert in this step so far, for the load balance."""
        return self._load_LGE.sum(dim=1)

    @property
    def counters(self) -> tuple[Tensor, Tensor]:
        """What several processes have to sum in place before `load_LE` and `end_step` count what all have done."""
        return self._load_LGE, self._entropy_L2

    def end_step(self) -> Tensor:
        """The numbers [K, L] of the step, which ends here: what `step_row` makes a row of. Waits for nothing."""
        numbers_KL = _numbers(self.load_LE, self._entropy_L2, self.layers)
        self._window_LGE += self._load_LGE
        self._window_L2 += self._entropy_L2
        self._load_LGE.zero_()
        self._entropy_L2.zero_()
        return numbers_KL

    def report(self) -> dict[str, Any]:
        """The statistics of the window, all steps since the last report, as JSON values; a new window begins.

        `summary`'s lists, `load` [L, E], `load_by_domain` (name to [L, E]) and `bias` ([L, E], or None).
        """
        load_LGE, entropy_L2 = self._window_LGE + self._load_LGE, self._window_L2 + self._entropy_L2
        self._window_LGE.zero_()
        self._window_L2.zero_()
        layers = summary(load_LGE.sum(dim=1), entropy_L2, self.layers)
        biases = [layer.expert_bias for layer in self.layers]
        return {
            **layers,
            "load": load_LGE.sum(dim=1).tolist(),
            "load_by_domain": {name: load_LGE[:, place].tolist() for place, name in enumerate(self.domains)},
            "bias": None if biases[0] is None else [bias_E.tolist() for bias_E in biases if bias_E is not None],
        }


NAMES = (  # the K numbers of a layer, as `summary` explains them
    *("load_variation", "largest_load", "dead", "load_entropy", "score_entropy"),
    *("bias_min", "bias_max", "bias_std"),
)


def step_row(numbers_KL: list[list[float]]) -> dict[str, Any]:
    """What the metrics say of a step, whose `end_step` gave `numbers_KL`.

    `load_variation` (mean over layers) and `dead_experts` (sum), and under `router` the lists that `summary` has.
    """
    layers = _by_name(numbers_KL)
    variations = layers["load_variation"]
    return {
        "load_variation": sum(variations) / len(variations),
        "dead_experts": sum(layers["dead"]),
        "router": {name: [_short(value) for value in values] for name, values in layers.items()},
    }


def summary(load_LE: Tensor, entropy_L2: Tensor, layers: Sequence[MoE]) -> dict[str, list[float]]:
    """Numbers of each layer, as lists, by name.

    load_variation: std / mean over experts; largest_load: largest / mean; dead: experts without a token; load_entropy:
    entropy of the load over ln E, 1 being even; score_entropy: the same of a token's scores, mean over tokens;
    bias_min, bias_max, bias_std: of the selection bias over experts (0 where a model has none).
    """
    return _by_name(_numbers(load_LE, entropy_L2, layers).tolist())


def _by_name(numbers_KL: list[list[float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = dict(zip(NAMES, numbers_KL, strict=True))
    return found | {"dead": [int(count) for count in found["dead"]]}


@torch.no_grad()
def _numbers(load_LE: Tensor, entropy_L2: Tensor, layers: Sequence[MoE]) -> Tensor:
    """The numbers of `NAMES` for each layer [K, L], on the device."""
    load_LE = load_LE.double()
    mean_L = load_LE.mean(dim=1)
    share_LE = load_LE / load_LE.sum(dim=1, keepdim=True)
    bias_LE = torch.stack(
        [
            load_E.new_zeros(load_E.shape) if layer.expert_bias is None else layer.expert_bias.double()
            for layer, load_E in zip(layers, load_LE, strict=True)
        ]
    )
    columns = (
        load_LE.std(dim=1, correction=0) / mean_L,
        load_LE.amax(dim=1) / mean_L,
        (load_LE == 0).sum(dim=1),
        -torch.special.xlogy(share_LE, share_LE).sum(dim=1) / math.log(load_LE.shape[1]),
        entropy_L2[:, 0] / entropy_L2[:, 1],
        bias_LE.amin(dim=1),
        bias_LE.amax(dim=1),
        bias_LE.std(dim=1, correction=0),
    )
    return torch.stack([column.double() for column in columns])


def write_report(run: Path, step: int, report: dict[str, Any]) -> None:
    """Writes what `RouterHealth.report` returned after `step` steps into the folder of the run."""
    write_atomic(run / REPORT_FILE, json.dumps({"step": step, **report}) + "\n")


def _short(value: float) -> float:
    """Rounds to four digits, to keep rows short: each has eight such lists."""
    return value if isinstance(value, int) else float(f"{value:.4g}")
