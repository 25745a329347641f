"""The benchmark of `mobilemoe bench`: models side by side, with cold starts and the limits of the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mobilemoe import paper
from mobilemoe.engine import Engine
from mobilemoe.errors import UsageError
from mobilemoe.load import Model
from mobilemoe.profile.batch_speed import measure_batch
from mobilemoe.profile.cold import ColdStart, cold_start, forget_peak_rss, peak_rss_bytes
from mobilemoe.profile.guesses import Guesses, measure_guesses
from mobilemoe.profile.machine import Machine, measure_machine
from mobilemoe.profile.sampling_speed import PROMPT, STEPS, measure_sampling
from mobilemoe.profile.speed import DECODED, Subject, measure
from mobilemoe.profile.tokens import Tokens, tokens_for


@dataclass(frozen=True)
class Workload:
    """What is measured: prompts of these lengths, and decoding at these depths. Each is repeated, and the median
    counts.
    """

    lengths: tuple[int, ...]
    depths: tuple[int, ...]
    repeats: int
    dummy: bool  # pseudo-random tokens in place of text
    sample: bool = False  # the kinds of sampling too
    sequences: tuple[int, ...] = ()  # decoding of so many texts at once too
    cold: bool = True  # new processes that load the model beside this one

    @property
    def steps(self) -> int:
        """How often `run` reports progress, for each model."""
        return self.repeats * (len({*self.lengths, *self.depths}) + self.cold) + 1 + self.sample + bool(self.sequences)


@dataclass(frozen=True)
class Result:
    """One model's speeds, without the lengths that exceed its context."""

    subject: Subject
    tokens: Tokens
    cold: ColdStart
    rss_tokens: int  # of context when the memory was measured
    guesses: Guesses | None
    sampling: dict[str, float]  # microseconds a token by mode, if that was asked for
    batch: dict[int, float]  # tokens per second over all texts by how many are decoded at once, if that was asked for

    @property
    def engine(self) -> Engine:
        return self.subject.engine

    def values(self, machine: Machine) -> dict[str, Any]:
        """The result as JSON values."""
        s = self.subject
        values: dict[str, Any] = {
            "model": s.name,
            "input": self.tokens.source,
            "prefill": [
                {"tokens": n, "tok_s": s.prefill_speed(n), "mfu": s.mfu(n, machine)} for n in sorted(s.prefill)
            ],
            "decode": [{"depth": n, "tok_s": s.decode_speed(n), "mbu": s.mbu(n, machine)} for n in sorted(s.decode)],
            "guesses": None if self.guesses is None else self.guesses.values(),
            "ttft_cold_s": self.cold.from_import_s,
            "ttft_load_s": self.cold.from_load_s,
            "peak_rss_bytes": self.cold.peak_rss_bytes,
        }
        if (use := self.engine.expert_use) is not None:
            values["experts"] = {
                "in_memory": use.places,
                "all": use.experts,
                "hit_rate": s.hit_rate(),
                "bytes_read_per_token": s.read_bytes(),
            }
        if self.sampling:
            values["sampling"] = [{"mode": mode, "microseconds": us} for mode, us in self.sampling.items()]
        if self.batch:
            values["batch"] = [{"sequences": count, "tok_s": speed} for count, speed in self.batch.items()]
        return values


@dataclass(frozen=True)
class Ratio:
    """A speed relative to the baseline's; `paper` has the paper's ratios by device, if it measured this point."""

    kind: str  # "prefill" or "decode"
    tokens: int
    ratio: float
    paper: dict[str, float]


def run(
    models: Sequence[tuple[str, Model, dict[str, Any]]], workload: Workload, on_step: Callable[[str], None]
) -> tuple[list[Result], Machine]:
    """Measures named models, each with the options of `load` that it was opened with. They take turns."""
    if not workload.cold:
        forget_peak_rss()  # what writing a model's files took
    subjects, texts = [], []
    for name, model, _ in models:
        engine = model.engine
        assert engine  # bench opens models with no other backend
        if engine.context < 2:
            raise UsageError(f"{name} has a context of {engine.context} token, which leaves nothing to measure")
        longest = max(*workload.lengths, *workload.depths) + DECODED
        if workload.sample:
            longest = max(longest, PROMPT + STEPS)
        longest = min(engine.context, longest)
        texts.append(tokens_for(model, longest, dummy=workload.dummy))
        subjects.append(Subject(name, engine, texts[-1].ids))
    threads = subjects[0].engine.threads
    on_step("the machine's limits")
    # What is measured for them takes more memory than there may be.
    unlimited = all(options["max_memory"] is None for _, _, options in models)
    before = measure_machine(threads) if unlimited else Machine(None, None)
    measure(subjects, workload.lengths, workload.depths, workload.repeats, on_step)
    guesses, sampling, batches = [], [], []
    for (name, model, _), subject in zip(models, subjects, strict=True):
        guesses.append(measure_guesses(model, workload.repeats, dummy=workload.dummy))
        on_step(f"{name}: guessed tokens")
        sampling.append(measure_sampling(subject.engine, subject.ids, workload.repeats) if workload.sample else {})
        if workload.sample:
            on_step(f"{name}: sampling")
        counts = workload.sequences
        batches.append(measure_batch(subject.engine, subject.ids, counts, workload.repeats) if counts else {})
        if counts:
            on_step(f"{name}: several texts at once")
    starts = [[] if workload.cold else [ColdStart(None, None, peak_rss_bytes())] for _ in models]
    for _ in range(workload.repeats if workload.cold else 0):
        for (name, model, options), tokens, found in zip(models, texts, starts, strict=True):
            found.append(cold_start(str(model.folder.absolute()), options, tokens.ids, is_text=tokens.is_text))
            on_step(f"{name}: cold start")
    results = [
        Result(subject, tokens, _middle(found), len(tokens.ids), *measured)
        for subject, tokens, found, *measured in zip(subjects, texts, starts, guesses, sampling, batches, strict=True)
    ]
    return results, before.better(measure_machine(threads)) if unlimited else before


def _middle(starts: Sequence[ColdStart]) -> ColdStart:
    return ColdStart(
        _median(start.from_import_s for start in starts),
        _median(start.from_load_s for start in starts),
        max(start.peak_rss_bytes for start in starts),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def ratios(result: Result, baseline: Result) -> list[Ratio]:
    """The ratios at every point that both have."""
    ours, theirs = result.subject, baseline.subject
    lengths, depths = sorted({*ours.prefill} & {*theirs.prefill}), sorted({*ours.decode} & {*theirs.decode})
    found = [("prefill", n, ours.prefill_speed(n) / theirs.prefill_speed(n)) for n in lengths]
    found += [("decode", n, ours.decode_speed(n) / theirs.decode_speed(n)) for n in depths]
    phones = paper.PHONE_RATIOS if theirs.name == paper.PHONE_BASELINE else {}
    return [
        Ratio(kind, n, ratio, {device: by[kind][n] for device, by in phones.items() if n in by[kind]})
        for kind, n, ratio in found
    ]
