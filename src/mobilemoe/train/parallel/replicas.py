"""Weights that every process holds whole: each process updates a part of them, and then all have the new weights.

Gradients are summed while the backward pass goes on, each sum in the process that updates this part of the weights. The
new parts are gathered while the next forward pass goes on. That sends as much as summing all gradients in every process
would, but no process repeats the update of another, or keeps its moments (ZeRO, arXiv 1910.02054, stage 1).

What belongs to one block travels in one exchange: hundreds of small ones cost more than their bytes, since each waits
for the slowest process while it occupies part of the GPU.
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
from mobilemoe.train.parallel.collectives import Exchange, all_gather, one_exchange, reduce_scatter

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
    """Sums the gradients of a model over all processes, as soon as those of a block are there, and spreads new weights.

    FSDP does so for the weights that it shards; here the others join in. While `due` is false, as it is in every
    micro-batch but the last, nothing is sent that can wait: gradients add up in each process, or in each replica.
    """

    def __init__(self, model: MobileMoE, processes: int) -> None:
        self._model, self._due = model, True
        self._summing: list[tuple[Exchange, list[Tensor]]] = []  # with what is sent, which has to live as long
        self._arriving: dict[Tensor, Exchange] = {}  # new weights by parameter
        self._split: dict[Tensor, DTensor] = {}
        self._blocks: list[list[Tensor]] = []  # the split parameters of each, in the order in which they are needed
        self._block: dict[Tensor, int] = {}
        self._ready: list[set[Tensor]] = []  # of each block: whose gradients are there
        self._whole: list[Tensor] = []  # gradients of tensors that are not split
        if processes == 1:
            return
        for parameter in model.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.register_post_accumulate_grad_hook(self._collect)
                part = updated(parameter)
                if isinstance(part, DTensor):
                    self._split[parameter] = part
        if self._split:
            for module in (model.model.embed_tokens, *model.model.layers):
                module.register_forward_pre_hook(self._wait_for_module)
                self._add_block(module)
            model.model.norm.register_forward_pre_hook(lambda *_: self.wait_for_weights())
            self._add_block(model)

    def _add_block(self, module: nn.Module) -> None:
        """Makes a block of those parameters of a module that are in no other."""
        block: list[Tensor] = [p for p in module.parameters() if p in self._split and p not in self._block]
        self._block |= dict.fromkeys(block, len(self._blocks))
        self._blocks.append(block)
        self._ready.append(set())

    def due(self, last: bool) -> None:
        """Says whether the next backward pass is the `last` one before the gradients are used."""
        self._due = last
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_all_reduce(last)

    def wait(self) -> None:
        """Makes what follows on the device wait until all gradients have been summed."""
        for block in range(len(self._blocks)):
            self._sum(block)  # what is left of blocks of which some parameters got no gradient
        for dtype in dict.fromkeys(gradient.dtype for gradient in self._whole):
            same = [gradient for gradient in self._whole if gradient.dtype == dtype]
            with one_exchange() as exchange:
                for gradient in same:
                    dist.all_reduce(gradient, async_op=True)
            self._summing.append((exchange, same))
        self._whole.clear()
        for exchange, _ in self._summing:
            exchange.wait()
        self._summing.clear()

    @torch.no_grad()
    def spread(self) -> None:
        """Sends the parts that this process has updated to the others, in the order in which they are needed."""
        for block in filter(None, self._blocks):
            with one_exchange() as exchange:
                for parameter in block:
                    all_gather(parameter.detach(), self._split[parameter].to_local(), async_op=True)
            self._arriving |= dict.fromkeys(block, exchange)

    def wait_for_weights(self) -> None:
        """Makes what follows on the device wait for all new weights; a forward pass waits by itself, block by block."""
        self._wait_for([*self._arriving])

    def _wait_for_module(self, module: nn.Module, inputs: object) -> None:
        self._wait_for([*module.parameters()])

    def _wait_for(self, parameters: list[Tensor]) -> None:
        for exchange in dict.fromkeys(self._arriving.pop(p) for p in parameters if p in self._arriving):
            exchange.wait()

    def _collect(self, parameter: Tensor) -> None:
        """Takes note of a gradient, and sends those of its block when it is the last of them."""
        if not self._due or parameter.grad is None:
            return
        if parameter not in self._split:
            self._whole.append(parameter.grad)
            return
        block = self._block[parameter]
        self._ready[block].add(parameter)
        if len(self._ready[block]) == len(self._blocks[block]):
            self._sum(block)

    def _sum(self, block: int) -> None:
        """Sends the gradients of a block that are there, in the same order in all processes."""
        ready = [parameter for parameter in self._blocks[block] if parameter in self._ready[block]]
        if not ready:
            return
        self._ready[block].clear()
        sent: list[Tensor] = []
        with one_exchange() as exchange:
            for parameter in ready:
                whole, part = parameter.grad, self._split[parameter]
                assert whole is not None
                own = torch.empty_like(part.to_local(), requires_grad=False)
                sent.append(whole.contiguous())
                reduce_scatter(own, sent[-1], async_op=True)
                part.grad = DTensor.from_local(own, part.device_mesh, part.placements, run_check=False)
                parameter.grad = None
        self._summing.append((exchange, sent))
