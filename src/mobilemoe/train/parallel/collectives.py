"""Collective operations, by the names that this version of torch has for them: newer versions warn of the older."""

import torch.distributed as dist

_renamed = hasattr(dist, "all_gather_single")
all_gather = getattr(dist, "all_gather_single" if _renamed else "all_gather_into_tensor")
reduce_scatter = getattr(dist, "reduce_scatter_single" if _renamed else "reduce_scatter_tensor")
