"""Fits the constants of a device to measured seconds, by least squares of the relative errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mobilemoe.config import ModelConfig
from mobilemoe.errors import MobileMoEError, UsageError
from mobilemoe.profile.device import CONSTANTS, Device, Work, decode_work, prefill_work

_PARTS = ("plain", "routed", "attention")  # of Work
_STEPS = 300
_TINY = 1e-12  # makes a matrix of zeros invertible
_DAMPING = 1e-3, 1e6  # initially, and the limit at which no step helps any more
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A measurement of one model: `seconds` for a token that attends to `tokens` keys, or for a prompt of `tokens`."""

    model: str
    shape: ModelConfig
    kind: Literal["decode", "prefill"]
    tokens: int
    seconds: float

    @property
    def work(self) -> Work[int]:
        return (decode_work if self.kind == "decode" else prefill_work)(self.shape, self.tokens)

    def predicted(self, device: Device) -> float:
        """The seconds that the device predicts."""
        of = device.decode_seconds if self.kind == "decode" else device.prefill_seconds
        return of(self.shape, self.tokens)

    def error(self, device: Device) -> float:
        """The relative error of the prediction: 0.1 means 10% too long."""
        return self.predicted(device) / self.seconds - 1


def fit_device(timings: Sequence[Timing], *, name: str, threads: int, source: str) -> Device:
    """The device whose predictions come nearest to `timings`, by least squares of ln(predicted / measured).

    Gauss-Newton steps, damped, on the logarithms of the constants, which keeps them positive. Raises UsageError
    if the timings do not determine one of the constants, MobileMoEError if they scatter too much to know one within a
    factor of 2.
    """
    works = [timing.work for timing in timings]
    plain, routed, attention = (np.array([getattr(w, part) for w in works], float) for part in _PARTS)
    seconds = np.array([timing.seconds for timing in timings])
    decodes = np.array([timing.kind == "decode" for timing in timings], bool)
    needed = [(plain * decodes, attention * decodes), (plain * ~decodes, attention * ~decodes)]
    if len(timings) < len(CONSTANTS) or not (routed.any() and all(work.any() for works in needed for work in works)):
        raise UsageError(
            "a device is fitted to at least five timings: of decoding and of prefill, and of routed experts"
        )

    def linearised(logs: Floats) -> tuple[Floats, Floats]:
        """ln(predicted / measured) [P], and its derivatives with respect to the logarithms of the constants [P, 5]."""
        bandwidth, attention_rate, linear_rate, prefill_attention_rate, routed_cost = np.exp(logs)
        rate = np.where(decodes, bandwidth, linear_rate)
        extra_s = routed_cost * routed / rate
        weights_s = plain / rate + extra_s
        attention_s = attention / np.where(decodes, attention_rate, prefill_attention_rate)
        total_s = weights_s + attention_s
        by_constant = [
            -weights_s * decodes,
            -attention_s * decodes,
            -weights_s * ~decodes,
            -attention_s * ~decodes,
            extra_s,
        ]
        return np.log(total_s / seconds), (np.array(by_constant) / total_s).T

    start = [(work / seconds).max() for works in needed for work in works]  # start: as if each part took all the time
    logs, (damping, hopeless) = np.log([*start, 1.0]), _DAMPING
    residual, jacobian = linearised(logs)
    for _ in range(_STEPS):
        normal = jacobian.T @ jacobian + damping * np.eye(len(logs))
        step = np.linalg.solve(normal, -jacobian.T @ residual)
        tried = linearised(logs + step)
        if tried[0] @ tried[0] < residual @ residual:
            logs, (residual, jacobian), damping = logs + step, tried, damping / 3
        elif damping > hopeless:
            break
        else:
            damping *= 4
    variance = residual @ residual / max(len(timings) - len(logs), 1)
    uncertainty = np.sqrt(variance * np.diag(np.linalg.inv(jacobian.T @ jacobian + _TINY * np.eye(len(logs)))))
    if (uncertainty > np.log(2)).any():
        constant = CONSTANTS[int(uncertainty.argmax())]
        raise MobileMoEError(f"the timings scatter too much to tell {constant}: measure again while nothing else runs")
    constants = dict(zip(CONSTANTS, np.exp(logs).tolist(), strict=True))
    return Device(name=name, threads=threads, source=source, **constants)
