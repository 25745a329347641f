"""The limits that a model must keep, and the column of the table that each is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mobilemoe.config_rules import is_finite
from mobilemoe.errors import UsageError

MOST_PROMPT, MOST_CONTEXT = 2**20, 2**30  # tokens; with more, counts of FLOPs leave 64 bits
DEFAULT_TOKENS = 500e9  # the longest of the paper's runs


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """The limits; None means no limit. Raises UsageError for a value that is not a positive number.

    memory: bytes of the process where the device's profile has them (`Device.process_bytes`), else of the weights' file
    and the KV cache of `context` tokens. max_memory: the same, but a model may be larger, with what does not fit of its
    routed experts in flash (`flash`). decode: least tokens/s after `context` tokens. ttft: most seconds to the first
    token, for a prompt of `prompt` tokens. Both are met only with the profile's error as a margin. flops: most per
    decoded token, 2 N_act. Training has `tokens`, or those that `train_flops` = 6 N_act D allow, by default 500e9.
    """

    memory: float | None = None
    max_memory: float | None = None
    decode: float | None = None
    ttft: float | None = None
    flops: float | None = None
    prompt: int = 1024
    context: int = 4096
    train_flops: float | None = None
    tokens: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (is_finite(value) and value > 0):
                raise UsageError(f"{name} is {value}, but must be a number above 0")
        for name, most in (("prompt", MOST_PROMPT), ("context", MOST_CONTEXT)):
            if getattr(self, name) > most:
                raise UsageError(f"{name} is {getattr(self, name)}, but may be no more than {most}")
        if self.memory is not None and self.max_memory is not None:
            raise UsageError("give either `memory`, for models that fit into it, or `max_memory`, for larger ones too")
        if self.train_flops is not None and self.tokens is not None:
            raise UsageError("give either `train_flops` or `tokens`: the one follows from the other for each model")

    @property
    def limit_active(self) -> bool:
        """Whether anything limits or charges for active parameters; memory and tokens do not."""
        return any(limit is not None for limit in (self.decode, self.ttft, self.flops, self.train_flops))


class Limit(NamedTuple):
    """An upper or lower bound on a column of the table."""

    column: str
    at_most: bool


LIMITS = {
    "memory": Limit("memory", True),
    "max_memory": Limit("least_memory", True),
    "decode": Limit("decode_least", False),
    "ttft": Limit("ttft_most", True),
    "flops": Limit("flops", True),
}


def given(constraints: Constraints) -> list[str]:
    """The names of the limits that are set."""
    return [name for name in LIMITS if getattr(constraints, name) is not None]
