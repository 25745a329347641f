"""The PyTorch model: exact and differentiable, one file per part."""

from mobilemoe.model.kv_cache import KVCache
from mobilemoe.model.transformer import MobileMoE

__all__ = ["KVCache", "MobileMoE"]
