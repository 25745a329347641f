"""Triton kernels for training on a GPU; each is tested against a plain PyTorch version."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_HAS_TRITON = find_spec("triton") is not None  # looked up once, since torch.compile cannot trace it


def usable(x: Tensor) -> bool:
    """Whether the kernels take `x`: bf16 or fp32 on a GPU with Triton."""
    return _HAS_TRITON and x.is_cuda and x.dtype in (torch.bfloat16, torch.float32)


def launcher(kernel: Any) -> Any:
    """`kernel` wrapped for a `triton_op`, so that torch.compile sees it; Triton's interpreter runs it unwrapped."""
    from triton.runtime.jit import JITFunction  # type: ignore[import-untyped]

    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel
