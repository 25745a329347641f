"""Gradients of weights that every process holds whole, summed over the processes while the backward pass goes on."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


class GradientSums:
    """Sums the gradients of a model over all processes, as soon as each gradient is there.

    FSDP does so for the weights that it shards; here the others join in. While `due` is false, as it is in every
    micro-batch but the last, nothing is sent that can wait: gradients add up in each process, or in each replica.
    """

    def __init__(self, model: nn.Module, processes: int) -> None:
        self._model, self._due = model, True
        self._pending: list[tuple[dist.Work, Tensor]] = []
        if processes > 1:
            for parameter in model.parameters():
                if parameter.requires_grad and not isinstance(parameter, DTensor):
                    parameter.register_post_accumulate_grad_hook(self._send)

    def due(self, last: bool) -> None:
        """Says whether the next backward pass is the `last` one before the gradients are used."""
        self._due = last
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_all_reduce(last)

    def wait(self) -> None:
        """Makes what follows on the device wait until everything sent has arrived."""
        for work, _ in self._pending:
            work.wait()
        self._pending.clear()

    def _send(self, parameter: Tensor) -> None:
        if self._due and parameter.grad is not None:
            work = dist.all_reduce(parameter.grad, async_op=True)
            assert work is not None
            self._pending.append((work, parameter.grad))
