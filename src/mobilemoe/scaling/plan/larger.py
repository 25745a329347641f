"""Whether a model larger than memory pays: the best of them beside the best that fits."""

from __future__ import annotations

from typing import NamedTuple

from mobilemoe.scaling.plan.candidates import Candidate


class Larger(NamedTuple):
    """The best model that fits into memory, and the best that does not; None where none keeps to the limits.

    pays: whether the larger is better by more than the law's error. verdict: that as a sentence.
    """

    fits: Candidate | None
    larger: Candidate | None
    pays: bool
    verdict: str


def weigh(fits: Candidate | None, larger: Candidate | None, error: float, digits: int) -> Larger:
    """Whether `larger` pays: its loss, priors included, is less by more than the law's `error`."""

    def told(candidate: Candidate) -> str:
        predicted, speed = candidate.loss + candidate.prior, candidate.decode or 0.0
        return f"loss {predicted:.{digits}f}, {speed:.3g} tok/s, {candidate.memory / 1e9:.2f} GB"

    if larger is None:
        return Larger(fits, None, False, "no model larger than memory keeps to the limits")
    beyond = f"{told(larger)} with {larger.held:.0%} of its experts in memory"
    if fits is None:
        return Larger(None, larger, True, f"nothing that fits keeps to the limits; larger than memory does: {beyond}")
    gain = fits.loss + fits.prior - larger.loss - larger.prior
    both = f"the best that fits has {told(fits)}; the best larger than memory {beyond}"
    if gain > error:
        return Larger(fits, larger, True, f"larger than memory pays, {gain:.{digits}f} nats: {both}")
    why = f"{gain:+.{digits}f} nats, within the law's error of {error:.2g}" if gain > 0 else "it gains nothing"
    return Larger(fits, larger, False, f"larger than memory does not pay ({why}): {both}")
