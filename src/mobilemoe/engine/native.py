"""The compiled engine, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mobilemoe.errors import CheckpointError, ConfigError, MobileMoEError, UsageError

try:
    from mobilemoe.engine import _native as native
except ImportError as missing:  # a source tree whose extension was never built
    raise MobileMoEError(f"the native engine is not built ({missing}): run pip install . in the source tree") from None

# Built before these sources changed?
if getattr(native, "ENGINE_VERSION", None) != 3 or getattr(native, "INTERFACE_VERSION", None) != 8:
    raise MobileMoEError("the compiled engine is older or newer than the sources: run pip install . in the source tree")

__all__ = ["native", "our_error", "our_errors"]

_KINDS: dict[str, type[Exception]] = {  # by the code of the compiled engine
    "usage": UsageError,
    "config": ConfigError,
    "file": CheckpointError,
    "memory": MemoryError,
    "full": UsageError,
    "numerics": UsageError,
}


@contextmanager
def our_errors() -> Iterator[None]:
    """Turns errors of the compiled engine into those of `mobilemoe.errors`."""
    try:
        yield
    except native.NativeError as fault:
        raise our_error(fault) from None


def our_error(fault: native.NativeError) -> Exception:
    """The same error as one of ours."""
    return _KINDS[fault.code](str(fault))
