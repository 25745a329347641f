"""Expert parallelism: each process of a group holds some of the experts, and all tokens of the group come to them.

Every process gathers the tokens of the group, computes its own experts for those that chose them, and the sums go back
to the tokens' processes. What is sent is the same in every step, whatever the routers choose. Sending each token only
where its experts are would be 2 A / G times as much, and needs sizes that change in every step.

N tokens of this process, M = G N tokens of a group, D hidden, E experts, A active experts per token, G processes of a
group, L = E / G experts of each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.placement_types import Shard
from torch.utils.checkpoint import checkpoint

from mobilemoe.model.experts import Compute, Experts
from mobilemoe.train.parallel.collectives import all_gather, reduce_scatter

ROOM = 1.5  # the most pairs, over those of an even load, whose activations are kept for the backward pass


def part_experts(experts: Experts, mesh: DeviceMesh) -> None:
    """Leaves each process of `mesh` its part of the `experts`, which every process has whole; drops no token."""
    for name, weight in [*experts.named_parameters()]:
        part = distribute_tensor(weight.detach(), mesh, [Shard(0)], src_data_rank=None)  # nothing is sent
        setattr(experts, name, nn.Parameter(part, weight.requires_grad))
    experts.exchange = Exchange(mesh, len(experts.gate_up_proj) // mesh.size())


class Exchange:
    """Brings the tokens of a group of processes to the `local` experts of this one, and the sums back.

    The host reads once a layer how many pairs there are, so that no more memory is taken than they need. It is counted
    before the tokens are sent, which keeps the device busy meanwhile. New routers may send nearly all tokens to one
    process. There the tokens of one process are computed after the other, and computed again in the backward pass, so
    that no process holds more than `ROOM` times the activations of an even load.
    """

    def __init__(self, mesh: DeviceMesh, local: int) -> None:
        self.group, self.processes, self.local = mesh.get_group(), mesh.size(), local
        self.first = mesh.get_local_rank() * local

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the numbers of pairs would be new code in every step
    def __call__(self, compute: Compute, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """y_ND as `Experts` gives it: `compute` is that of the experts that are here."""
        expert_MA = _gathered(experts_NA, self.group) - self.first
        expert_MA = torch.where((expert_MA >= 0) & (expert_MA < self.local), expert_MA, self.local)
        counted_G = _Reading((expert_MA < self.local).view(self.processes, -1).sum(1))
        x_MD: Tensor = _Gather.apply(x_ND, self.group)  # type: ignore[no-untyped-call]
        weights_MA: Tensor = _Gather.apply(weights_NA, self.group)  # type: ignore[no-untyped-call]
        pairs_G = counted_G.wait()
        if sum(pairs_G) <= ROOM * experts_NA.numel():
            y_MD = compute(x_MD, expert_MA, weights_MA, sum(pairs_G))
        else:
            parts = zip(*(whole.chunk(self.processes) for whole in (x_MD, expert_MA, weights_MA)), pairs_G, strict=True)
            y_MD = torch.cat(
                [checkpoint(compute, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
            )
        y_ND: Tensor = _SumOfParts.apply(y_MD, self.group)  # type: ignore[no-untyped-call]
        return y_ND


class _Reading:
    """Numbers on their way to the host: `wait` waits for them, and for no work that follows them."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self._event = numbers, None
        if numbers.is_cuda:
            self._numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> list[int]:
        if self._event is not None:
            self._event.synchronize()
        read: list[int] = self._numbers.tolist()
        return read


def _gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What all processes of the group have, in their order along the first dimension."""
    whole = x.new_empty(dist.get_world_size(group) * len(x), *x.shape[1:])
    all_gather(whole, x.contiguous(), group)
    return whole


def _sum_of_parts(whole: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This process's part of the sum of what all processes of the group have."""
    part = whole.new_empty(len(whole) // dist.get_world_size(group), *whole.shape[1:])
    reduce_scatter(part, whole.contiguous(), group=group)
    return part


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sum_of_parts(grads[0], ctx.group), None


class _SumOfParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _sum_of_parts(whole, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _gathered(grads[0], ctx.group), None
