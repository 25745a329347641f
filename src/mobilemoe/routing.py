"""Ways to route tokens otherwise than a model was trained, to make it faster at some cost in quality."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from mobilemoe.config import ModelConfig
from mobilemoe.errors import UsageError

Skip = Literal["pair", "token", "random"]


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What the native engine does otherwise than the model's router says; by default nothing.

    experts_per_token: fewer experts than the model's, whose weights then make up for the others.

    cache_prior: experts that are in memory under `max_memory` are preferred with this strength, lambda of Skliar et al.
    (arXiv 2412.00099): for the choice, their logits are raised by lambda times the layer's average range of logits. The
    best `always_top` of a token (default: half of its experts) are chosen in any case, and the weights of the chosen
    ones are the router's own. Prompts are routed as usual. cached_experts: instead of a real cache, of which
    `max_memory` is the reason, imitates one of so many experts in each layer (LRU) for every token, prompts included:
    for measuring.

    capacity: in prompts and scored texts only this share (above 0, up to 1) of the pairs of a token and one of its
    experts is computed; the others add nothing. skip: which ones these are, of all texts in a pass. "pair": those with
    the lowest weights. "token": batch-prioritised routing of Riquelme et al. (arXiv 2106.05974), by which an expert
    takes at most this share of what it would have if all had equally many, and tokens with low weights are skipped
    first. "random": as many as with "pair", but any. Tokens that are written one by one are computed whole.

    With cache_prior or capacity a text depends on what is computed before or beside it, and nothing is guessed.
    """

    experts_per_token: int | None = None
    cache_prior: float = 0.0
    always_top: int | None = None
    cached_experts: int | None = None
    capacity: float | None = None
    skip: Skip = "pair"

    @property
    def depends_on_others(self) -> bool:
        """Whether a text's results depend on the texts before it, or on those in the same pass."""
        return self.cache_prior > 0 or self.capacity is not None

    def check_for(self, config: ModelConfig, *, max_memory: int | None, speculate: str) -> None:
        """UsageError for values out of their ranges, and for what this model or these options cannot do."""
        if self == Routing():
            return
        if config.ffn_type == "dense":
            raise UsageError("the model is dense: it has no experts whose routing could be changed")
        chosen = config.num_experts_per_tok
        self._check_count("experts_per_token", 1, chosen, "those of the model")
        chosen = self.experts_per_token or chosen
        self._check_count("always_top", 0, chosen, "the experts of a token")
        self._check_count("cached_experts", 1, config.num_local_experts, "the experts of a layer")
        strength: Any = self.cache_prior  # the annotations are not enforced
        share: Any = 1 if self.capacity is None else self.capacity
        if not (isinstance(strength, int | float) and 0 <= strength < math.inf):
            raise UsageError(f"cache_prior is {strength!r}, but must be 0 (off) or more")
        if not (isinstance(share, int | float) and 0 < share <= 1):
            raise UsageError(f"capacity is {share!r}, but must be above 0 and at most 1")
        if self.skip not in get_args(Skip):
            raise UsageError(f"skip is {self.skip!r}, but must be {' or '.join(map(repr, get_args(Skip)))}")
        if self.cached_experts is not None and max_memory is not None:
            raise UsageError("cached_experts imitates a cache of experts, but with max_memory there is a real one")
        if self.cache_prior > 0 and self.cached_experts is None and max_memory is None:
            raise UsageError("cache_prior prefers experts that are in memory, and all of them are: give max_memory too")
        if self.depends_on_others and speculate in ("lookup", "draft"):
            raise UsageError(
                f"speculate is {speculate!r}, but with `cache_prior` or `capacity` guesses would change the text"
            )

    def native_options(self) -> dict[str, Any]:
        """The arguments of the compiled engine."""
        return {
            "experts_per_token": self.experts_per_token or 0,
            "cache_prior": float(self.cache_prior),
            "always_top": -1 if self.always_top is None else self.always_top,
            "cached_experts": self.cached_experts or 0,
            "capacity": float(self.capacity or 0),
            "skip": self.skip,
        }

    def _check_count(self, name: str, least: int, most: int, what: str) -> None:
        value = getattr(self, name)
        if value is not None and not (isinstance(value, int) and least <= value <= most):
            raise UsageError(f"{name} is {value!r}, but must be a whole number from {least} to {most}, {what}")


class RoutingUse(NamedTuple):
    """Counts since the engine was opened.

    `hits` and `misses`: chosen experts that the imitated cache had, or not. `pairs`: of a token and one of its experts,
    in prompts under a capacity, and those of them that were `skipped`.
    """

    hits: int
    misses: int
    pairs: int
    skipped: int
