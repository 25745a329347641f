"""The limits of this machine, measured in the same process as the speeds that are compared with them."""

from __future__ import annotations

from dataclasses import dataclass

from mobilemoe.engine.native import native, our_errors


@dataclass(frozen=True)
class Machine:
    """The limits for a number of threads: bytes/s read from memory, int8 multiply-adds/s. None: unknown."""

    bytes_per_s: float | None
    multiply_adds_per_s: float | None

    def better(self, other: Machine) -> Machine:
        """The higher limits of two measurements, since other programs can only lower them."""
        peak = max(self.multiply_adds_per_s or 0, other.multiply_adds_per_s or 0)
        return Machine(max(self.bytes_per_s or 0, other.bytes_per_s or 0) or None, peak or None)


def measure_machine(threads: int) -> Machine:
    """Takes about 2 s and 1 GiB of memory. Raises MemoryError if there is less."""
    with our_errors():
        bytes_per_s, multiply_adds_per_s = native.machine_speed(threads)
    return Machine(bytes_per_s, multiply_adds_per_s or None)
