"""Several processes on one model: FSDP2 shards, HSDP replicas of groups of shards, expert parallelism within a group.

Each process takes its own rows of the same global batch. The loss is divided by the targets of the global batch, so
gradients are summed over processes, never averaged, and the result is that of one process up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import Shard

from mobilemoe.checkpoint.container import Array
from mobilemoe.errors import ConfigError
from mobilemoe.model import MobileMoE
from mobilemoe.model.block import MoE
from mobilemoe.train.estimate import architecture, replicas
from mobilemoe.train.parallel.expert_parallel import part_experts
from mobilemoe.train.parallel.rank_failure import stop_all_on_failure
from mobilemoe.train.parallel.replicas import split_updates
from mobilemoe.train.recipe import Recipe

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class World:
    """The processes of a run, as seen by number `rank` of `size`, which computes on `device`.

    `mesh` (replicate, shard) says how they share the model. It is None for a single process.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and messages for all."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """The rows of the global batch that this process computes."""
        each = batch_size // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, numbers: Tensor) -> Tensor:
        """`numbers` added up over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process. All get the same answer, and none waits for its device."""
        if self.size == 1:
            return flag
        count = torch.tensor(int(flag))
        dist.all_reduce(count)
        return bool(count)

    def first(self, value: _Value) -> _Value:
        """Returns in every process the `value` that the first process passes."""
        if self.size == 1:
            return value
        given = [value]
        dist.broadcast_object_list(given, src=0, device=torch.device("cpu"))
        return given[0]

    def wait(self) -> None:
        """Waits until every process has called this."""
        self.any(False)


@contextmanager
def join(recipe: Recipe) -> Iterator[World]:
    """The processes that `torchrun` started, or this one alone.

    Their communicators stay open, also for the next stage of a pipeline: closing those of several GPUs may wait for
    ever. `mobilemoe` ends its process without that. Raises ConfigError if the recipe's batch or its distribution cannot
    be divided among the processes.
    """
    size, rank, local = (int(os.environ.get(name, at)) for name, at in _ENVIRONMENT)
    _check(recipe, size)
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    with stop_all_on_failure(rank, size):
        groups = replicas(recipe, architecture(recipe.model), size)
        mesh = init_device_mesh(device.type, (groups, size // groups), mesh_dim_names=("replicate", "shard"))
        world = World(rank, size, device, mesh)
        yield world
        world.wait()  # here, where it is noticed if another process fails before its end


_ENVIRONMENT = (
    ("WORLD_SIZE", 1),
    ("RANK", 0),
    ("LOCAL_RANK", 0),
)  # what torchrun sets, with the values that hold without it


def shard(model: MobileMoE, world: World, recipe: Recipe) -> None:
    """Shards `model`, which is the same in every process, over `world`; its forward pass gathers it block by block.

    Replicas that are whole need no shards: each process updates a part of the weights (`replicas.py`), for which the
    model moves to the device here. Nor do adapters: all that is learnt and sent is small.
    """
    mesh, parallel = world.mesh, recipe.distributed.expert_parallel
    if mesh is None or recipe.lora is not None:
        return
    if mesh["shard"].size() == 1:
        model.to(world.device)
        split_updates(model, mesh["replicate"])
        return
    if model.config.num_local_experts % parallel:
        raise ConfigError(
            f"distributed.expert_parallel is {parallel}, "
            f"which does not divide the {model.config.num_local_experts} experts"
        )
    experts = None
    if parallel > 1:
        sizes = (mesh["shard"].size() // parallel, parallel)
        experts = mesh._unflatten(1, sizes, ("expert_shard", "expert"))
        experts["expert_shard", "expert"]._flatten("whole")  # so that a sum over both is one exchange
    half = torch.bfloat16 if recipe.train.precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # Routers compute in fp32. A group of shards has one precision, and a group of its own for each router would break
    # the compiled code of its block in two. They are small, so each process keeps them whole (`replicas.py`).
    kept_whole: set[nn.Parameter] = {layer.router.weight for layer in model.moe_layers()}

    def split(module: nn.Module, shard_mesh: DeviceMesh, dimension: int = 0) -> None:
        fully_shard(
            module,
            mesh=shard_mesh,
            mp_policy=policy,
            shard_placement_fn=lambda _: Shard(dimension),
            ignored_params=kept_whole,
        )

    whole = _data_mesh(mesh, "shard")
    for block in model.model.layers:
        feed_forward = block.feed_forward
        if isinstance(feed_forward, MoE) and experts is not None:
            part_experts(feed_forward.experts, experts["expert"])
            holders = _data_mesh(experts, "expert_shard")
            if holders.size() > 1:
                # Not along the experts' dimension, which expert parallelism has split already.
                split(feed_forward.experts, holders, dimension=1)
            else:  # nobody else has them, and all tokens come to them: their gradients are whole
                kept_whole.update(feed_forward.experts.parameters())
        split(block, whole)
    split(model, whole)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sums


def _data_mesh(mesh: DeviceMesh, dimension: str) -> DeviceMesh:
    """The mesh of replicas and shards, or of the shards alone if there is one replica."""
    return mesh["replicate", dimension] if mesh["replicate"].size() > 1 else mesh[dimension]


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales the gradients so that their norm over all processes is at most `max_norm`; returns the norm before."""
    groups = [*by_mesh(parameter for parameter in parameters if parameter.grad is not None).values()]
    norms = [_norm(group) for group in groups]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, max_norm, norm)
    return norm


def by_mesh(parameters: Iterable[nn.Parameter]) -> dict[DeviceMesh | None, list[nn.Parameter]]:
    """Parameters grouped by the mesh they are sharded over, since PyTorch's fused operations cannot mix meshes."""
    groups: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.device_mesh if isinstance(parameter, DTensor) else None, []).append(parameter)
    return groups


@torch.no_grad()
def fill(place: Tensor, values: Array) -> None:
    """Copies the whole tensor `values` into `place`, or the part of it that this process holds."""
    if isinstance(place, DTensor):
        shape, offset = compute_local_shape_and_global_offset(place.shape, place.device_mesh, place.placements)
        values = values[tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))]
        place = place.to_local()
    copy = np.array(values)  # files are mapped read-only, and torch wants writable arrays
    place.copy_(torch.from_numpy(copy))


def _norm(group: list[nn.Parameter]) -> Tensor:
    norm = nn.utils.get_total_norm([parameter.grad for parameter in group if parameter.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _check(recipe: Recipe, size: int) -> None:
    table, train = recipe.distributed, recipe.train
    groups = table.replicate or 1
    if size % (groups * table.expert_parallel):
        raise ConfigError(
            f"distributed.replicate {groups} times expert_parallel {table.expert_parallel} does not divide "
            f"the number of processes, {size}: torchrun starts several"
        )
    if train.batch_size % size or train.batch_size // size % (train.micro_batch_size or 1):
        raise ConfigError(
            f"train.batch_size is {train.batch_size}, which {size} processes cannot share evenly"
            + (f" in micro-batches of {train.micro_batch_size} rows" if train.micro_batch_size else "")
        )
    if size > 1 and recipe.draft is not None:
        raise ConfigError(f"a draft head is small: it is trained by one process, and not by {size}")
    if table.expert_parallel > 1 and recipe.lora is not None:
        raise ConfigError("lora keeps the whole model in each process: set distributed.expert_parallel to 1")
    if table.expert_parallel > 1 and train.capacity_factor is not None:
        raise ConfigError("distributed.expert_parallel drops no tokens: set it to 1, or take out train.capacity_factor")
