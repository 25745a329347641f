"""What a run does when numbers go wrong: steps with a loss spike are skipped, and NaN or infinity is traced back.

B rows, T tokens, N = B T.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mobilemoe.data.loader import Batch
from mobilemoe.errors import TrainError
from mobilemoe.train.parallel.replicas import updated

HISTORY = 50  # accepted steps, whose median gradient norm a spike is compared with
FEWEST = 10  # accepted steps before any step is judged, since norms fall fast at the start


class SpikeGuard:
    """Decides which steps to skip: their gradient norm is not finite, or above `factor` times the recent median.

    It gives up after `limit` skipped steps in a row. Without a factor nothing is skipped.
    """

    def __init__(self, factor: float | None, limit: int) -> None:
        self._factor, self._limit = factor, limit
        self._norms: deque[float] = deque(maxlen=HISTORY)
        self._skipped = 0

    def skips(self, norm: float, step: int) -> bool:
        """Whether step `step` (counted from 1), whose gradient norm is `norm`, is to be skipped.

        Raises TrainError when too many steps in a row are skipped.
        """
        if self._factor is None:
            return False
        median = statistics.median(self._norms) if len(self._norms) >= FEWEST else math.inf
        if math.isfinite(norm) and norm <= self._factor * median:
            self._norms.append(norm)
            self._skipped = 0
            return False
        self._skipped += 1
        if self._skipped >= self._limit:
            raise TrainError(
                f"{self._skipped} steps in a row were skipped up to step {step}, whose gradient norm is {norm:.3g} "
                f"(the median of the steps taken is {median:.3g}, spike_factor {self._factor:g}): remove the newest "
                "checkpoints to continue from before the loss rose, and lower train.learning_rate or raise "
                "train.spike_factor"
            )
        return True

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON values, for `load_state_dict`."""
        return {"norms": list(self._norms), "skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._norms = deque(map(float, state["norms"]), maxlen=HISTORY)
        self._skipped = int(state["skipped"])


def explain_nonfinite(
    model: nn.Module,
    parts: Sequence[Batch],
    backward: Callable[[Batch], object],
    *,
    step: int,
    loss: float,
    norm: float,
    domains: Sequence[str],
    begins: Mapping[str, Sequence[int]],
) -> str:
    """One sentence on why step `step` (counted from 1) gave a `loss` or gradient `norm` that is not finite.

    The micro-batches `parts` are computed again with `backward`, which adds gradients to the weights as the step did.
    The sentence names the first tensor that is not finite and the text that it was computed from: its source, one of
    `domains`, and the place of the batch, which starts at the loader's positions `begins`. Gradients are cleared.
    """
    where = _first_weight(model) or _first_of_parts(model, parts, backward, domains)
    sources = ", ".join(f"{name} {list(position)}" for name, position in begins.items())
    return (
        f"step {step} gave loss {loss} and gradient norm {norm}: {where or _NOTHING}; its batch begins at {sources} "
        "(epoch, shard, skip, offset); the last checkpoint stands: look at that text, or lower train.learning_rate"
    )


_NOTHING = "computed again, every tensor here is finite, so it is a sum over micro-batches or processes that is not"


def _first_weight(model: nn.Module) -> str | None:
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if not _is_finite(weight):
            return f"the weight {name} was not finite before"
    return None


def _first_of_parts(
    model: nn.Module, parts: Sequence[Batch], backward: Callable[[Batch], object], domains: Sequence[str]
) -> str | None:
    """The fault of the first micro-batch that has one. All are computed, since all processes have to do the same."""
    found: list[str] = []
    first_row = 0
    for part in parts:
        model.zero_grad(set_to_none=True)
        with _watched(model) as outputs:
            backward(part)
        wrong = [name for name, weight in model.named_parameters() if not _is_finite(updated(weight).grad)]
        if outputs:
            name, tensor = outputs[0]
            place = _place(tensor, part, first_row, domains)
            found.append(f"the first output that is not finite is that of {name}{place}")
        elif wrong:  # gradients are made from the last layer to the first, so the last name in the list came first
            found.append(f"the first gradient that is not finite is that of {wrong[-1]}, from row {first_row} on")
        first_row += len(part.tokens_BT)
    model.zero_grad(set_to_none=True)
    return found[0] if found else None


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Collects every module output that is not finite, with the module's name, in the order of computation."""
    seen: list[tuple[str, Tensor]] = []

    def look(name: str, module: nn.Module, inputs: object, output: object) -> None:
        seen.extend((name, tensor.detach()) for tensor in _tensors(output) if not _is_finite(tensor))

    hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules()]
    try:
        # Compiled blocks run uncompiled here, since hooks inside compiled code are not called.
        with torch.compiler.set_stance("force_eager"):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def _place(tensor: Tensor, part: Batch, first_row: int, domains: Sequence[str]) -> str:
    """Words for the first token whose values are not finite, where the tensor is [B, T, ...] or [N, ...]."""
    rows, tokens = part.tokens_BT.shape
    if tensor.shape[:2] == (rows, tokens):
        tensor = tensor.flatten(0, 1)
    if tensor.shape[0] != rows * tokens:
        return f", from row {first_row} on"
    first = int((~tensor.isfinite()).flatten(1).any(dim=1).nonzero()[0])
    row, token = divmod(first, tokens)
    return f", in row {first_row + row} of the batch at token {token}, of {domains[part.domains_BT[row, token]]}"


def _is_finite(tensor: Tensor | None) -> bool:
    if tensor is None:
        return True
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return bool(local.isfinite().all())
