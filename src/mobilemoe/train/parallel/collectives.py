"""Collective operations, by the names that this version of torch has for them: newer versions warn of the older."""

from contextlib import AbstractContextManager
from typing import Protocol

import torch.distributed as dist

_renamed = hasattr(dist, "all_gather_single")
all_gather = getattr(dist, "all_gather_single" if _renamed else "all_gather_into_tensor")
reduce_scatter = getattr(dist, "reduce_scatter_single" if _renamed else "reduce_scatter_tensor")


class Exchange(Protocol):
    """What is under way between processes; `wait` makes what follows on the device wait for its end."""

    def wait(self) -> object: ...


def one_exchange() -> AbstractContextManager[Exchange]:
    """Operations of one kind that are called inside travel together. PyTorch offers this under a private name alone."""
    together: AbstractContextManager[Exchange] = dist.distributed_c10d._coalescing_manager(async_ops=True)
    return together
