"""Measures random models of a few shapes with the native engine, and fits the constants of this machine to them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mobilemoe.checkpoint import write_random
from mobilemoe.config import ModelConfig
from mobilemoe.engine import Engine, write_engine_folder
from mobilemoe.files import scratch_folder
from mobilemoe.presets import family_member
from mobilemoe.profile.device import Device
from mobilemoe.profile.fit_device import Timing, fit_device
from mobilemoe.profile.speed import DECODED, Subject, measure

_SEED = 1
_MOST_ERROR = 0.9  # that a profile records: with more no limit on speed could be met


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What to measure: the shapes that the constants are fitted to, and one to check them with.

    Prefill of prompts of `lengths`, and decoding after one token and after each of them; `repeats` times. The fastest
    counts, because other programs can only slow it down.
    """

    fitted: Mapping[str, ModelConfig]
    checked: Mapping[str, ModelConfig]
    lengths: tuple[int, ...]
    repeats: int

    @property
    def steps(self) -> int:
        """How often `measure_device` reports progress."""
        return (len(self.fitted) + len(self.checked)) * (1 + self.repeats * (1 + len(self.lengths)))


# Below a minute on two idle cores. Active weights of 80 to 160 MB: more than a cache holds, and the width of S.
STANDARD = Trial(
    fitted={
        "dense": family_member(768, expansion=1),
        "moe": family_member(768, expansion=4),
    },
    checked={"check": family_member(640, vocab_size=65_536)},
    lengths=(512, 3072),  # longer ones would show attention better, but take too long
    repeats=3,
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A device, the timings that it was fitted to, and those of the shape that was not fitted."""

    device: Device
    fitted: list[Timing]
    checked: list[Timing]

    @property
    def worst_error(self) -> float:
        """The largest relative error in predicting the unseen shape."""
        return max(abs(timing.error(self.device)) for timing in self.checked)


def measure_device(
    name: str, trial: Trial, threads: int | None = None, on_step: Callable[[str], None] = lambda what: None
) -> Measured:
    """Writes the shapes of the trial into a temporary folder, measures them in turns and fits the constants.

    threads: one per core by default. Raises UsageError for an impossible number, OSError if the disk is full,
    MobileMoEError if other programs disturb too much.
    """
    shapes = {**trial.fitted, **trial.checked}
    with scratch_folder() as scratch:
        subjects = []
        for model, shape in shapes.items():
            on_step(f"{model}: writing random weights")
            subjects.append(_subject(scratch, model, shape, threads, max(trial.lengths) + DECODED))
        measure(subjects, trial.lengths, (0, *trial.lengths), trial.repeats, on_step)
    engine = subjects[0].engine
    timings = [timing for subject in subjects for timing in _timings(subject)]
    fitted = [timing for timing in timings if timing.model in trial.fitted]
    checked = [timing for timing in timings if timing.model in trial.checked]
    source = f"measured with the native engine on {engine.isa}"
    device = fit_device(fitted, name=name, threads=engine.threads, source=source)
    measured = Measured(device=device, fitted=fitted, checked=checked)
    return replace(measured, device=replace(device, error=min(measured.worst_error, _MOST_ERROR)))


def _subject(folder: Path, model: str, shape: ModelConfig, threads: int | None, count: int) -> Subject:
    """An engine on random weights, whose engine file is in `folder` and not in the user's cache."""
    write_random(folder / "int4", shape, seed=_SEED, format="int4", group_axis="out")
    write_engine_folder(folder / "int4", folder / model)
    shutil.rmtree(folder / "int4")
    ids = np.random.default_rng(_SEED).integers(0, shape.vocab_size, count)
    return Subject(model, Engine(folder / model, threads=threads), ids.tolist())


def _timings(subject: Subject) -> list[Timing]:
    model, shape = subject.name, subject.engine.config
    prefill = [
        Timing(model=model, shape=shape, kind="prefill", tokens=length, seconds=length * min(took))
        for length, took in subject.prefill.items()
    ]
    decode = [  # at the middle of the tokens that were decoded
        Timing(model=model, shape=shape, kind="decode", tokens=depth + DECODED // 2, seconds=min(took))
        for depth, took in subject.decode.items()
    ]
    return prefill + decode
