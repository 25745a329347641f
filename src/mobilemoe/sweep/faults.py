"""Decides whether a run stopped by its own fault or by the machine's, which may be another when the sweep resumes."""

from __future__ import annotations

import torch

from mobilemoe.errors import MachineError

_MEMORY = "there is not enough memory: fewer --processes need less"
_SIGNS = {  # parts of the messages of RuntimeErrors of torch and CUDA, and what they mean
    "out of memory": _MEMORY,
    "allocate memory": _MEMORY,
    "ALLOC_FAILED": _MEMORY,
    "busy or unavailable": "the GPU is taken by another process",
    "No CUDA GPUs are available": "there is no GPU any more",
    "No space left on device": "there is no room on the disk",
    "can't start new thread": "the system allows no more threads: fewer --processes need less",
}


def machine_fault(fault: BaseException) -> str | None:
    """What the machine lacks, in words; None if the run itself is at fault."""
    if isinstance(fault, MachineError):
        return str(fault)
    if isinstance(fault, MemoryError | torch.OutOfMemoryError):
        return _MEMORY
    if isinstance(fault, OSError):
        return f"{fault.filename or 'a file'}: {fault.strerror or fault}"
    if isinstance(fault, RuntimeError):
        return next((meaning for sign, meaning in _SIGNS.items() if sign in str(fault)), None)
    return None
