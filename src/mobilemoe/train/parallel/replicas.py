"""Weights that every process holds whole: each process updates a part of them, and then all have the new weights.

Gradients are summed while the backward pass goes on, each sum in the process that updates this part of the weights. The
new parts are gathered while the next forward pass goes on. That sends as much as summing all gradients in every process
would, but no process repeats the update of another, or keeps its moments (ZeRO, arXiv 1910.02054, stage 1).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard

from mobilemoe.model import MobileMoE
from mobilemoe.train.parallel.collectives import all_gather, reduce_scatter

_PART = "_updated_part"  # the attribute of a parameter that `split_updates` sets


def updated(parameter: nn.Parameter) -> nn.Parameter:
    """What this process updates of a parameter: all that it holds, or the part that `split_updates` gave it."""
    part: nn.Parameter = getattr(parameter, _PART, parameter)
    return part


def split_updates(model: MobileMoE, mesh: DeviceMesh) -> None:
    """Gives each process of `mesh` its part of every matrix to update; the parts share memory with the weights.

    A tensor whose first dimension the processes cannot share evenly is updated whole by each, as are all vectors.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1 and len(parameter) % mesh.size() == 0:
            part = parameter.detach().chunk(mesh.size())[mesh.get_local_rank()]
            setattr(parameter, _PART, nn.Parameter(DTensor.from_local(part, mesh, [Shard(0)], run_check=False)))


class Replicas:
    """Sums the gradients of a model over all processes, as soon as each gradient is there, and spreads new weights.

    FSDP does so for the weights that it shards; here the others join in. While `due` is false, as it is in every
    micro-batch but the last, nothing is sent that can wait: gradients add up in each process, or in each replica.
    """

    def __init__(self, model: MobileMoE, processes: int) -> None:
        self._model, self._due = model, True
        self._summing: list[tuple[dist.Work, Tensor]] = []
        self._arriving: dict[Tensor, dist.Work] = {}  # new weights by parameter
        self._split: dict[Tensor, DTensor] = {}
        if processes == 1:
            return
        for parameter in model.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.register_post_accumulate_grad_hook(self._send)
                part = updated(parameter)
                if isinstance(part, DTensor):
                    self._split[parameter] = part
        if self._split:
            for module in (model.model.embed_tokens, *model.model.layers):
                module.register_forward_pre_hook(self._wait_for_module)
            model.model.norm.register_forward_pre_hook(lambda *_: self.wait_for_weights())

    def due(self, last: bool) -> None:
        """Says whether the next backward pass is the `last` one before the gradients are used."""
        self._due = last
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_all_reduce(last)

    def wait(self) -> None:
        """Makes what follows on the device wait until all gradients sent have been summed."""
        for work, _ in self._summing:
            work.wait()
        self._summing.clear()

    @torch.no_grad()
    def spread(self) -> None:
        """Sends the parts that this process has updated to the others, in the order in which they are needed."""
        for parameter, part in self._split.items():
            self._arriving[parameter] = all_gather(parameter.detach(), part.to_local(), async_op=True)

    def wait_for_weights(self) -> None:
        """Makes what follows on the device wait for all new weights; a forward pass waits by itself, block by block."""
        self._wait_for([*self._arriving])

    def _wait_for_module(self, module: nn.Module, inputs: object) -> None:
        self._wait_for([*module.parameters()])

    def _wait_for(self, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            work = self._arriving.pop(parameter, None)
            if work is not None:
                work.wait()

    def _send(self, parameter: Tensor) -> None:
        whole, part = parameter.grad, self._split.get(parameter)
        if not self._due or whole is None:
            return
        if part is not None:
            own = torch.empty_like(part.to_local(), requires_grad=False)
            work = reduce_scatter(own, whole.contiguous(), async_op=True)
            part.grad = DTensor.from_local(own, part.device_mesh, part.placements, run_check=False)
            parameter.grad = None
        else:
            sent = dist.all_reduce(whole, async_op=True)
            assert sent is not None
            work = sent
        self._summing.append((work, whole))
