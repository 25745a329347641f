"""`mobilemoe bench`: how fast a model is on this machine."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from mobilemoe.cli import options
from mobilemoe.config import GroupAxis
from mobilemoe.counted import counted
from mobilemoe.errors import ModelNotFoundError, UsageError
from mobilemoe.files import check_replaceable
from mobilemoe.load import Model
from mobilemoe.presets import PRESETS, preset
from mobilemoe.progress import Progress

if TYPE_CHECKING:
    from mobilemoe.profile.benchmark import Ratio, Result, Workload
    from mobilemoe.profile.machine import Machine

LENGTHS = (128, 512, 2048, 4096)
PAPERS_LENGTHS = (1024, 4096)  # measured too when models are compared
SHORT_NAMES = {"olmoe": "olmoe-1b-7b"}
MOST_REPEATS = 1000
MOST_SEQUENCES = 256


@options.grouped
def bench(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model's folder, nano, or a Hub id; with --random a preset.")
    ],
    *,
    random: Annotated[
        bool, typer.Option("--random", help=f"Take random weights of a preset's shape ({', '.join(PRESETS)}).")
    ] = False,
    compare: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Presets to measure beside it, such as mobilellm-pro,olmoe.")
    ] = None,
    group_axis: Annotated[
        str | None,
        typer.Option(help="Direction of the INT4 groups of random experts: 'out' (as released, the default) or 'in'."),
    ] = None,
    prefill: Annotated[
        str | None, typer.Option(metavar="LENGTHS", help="Prompt lengths in tokens, such as 128,512.")
    ] = None,
    depths: Annotated[
        str | None, typer.Option(metavar="DEPTHS", help="Context lengths to decode at, in tokens, such as 0,1024.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Number of measurements; the median counts.")] = 3,
    sample: Annotated[
        bool, typer.Option("--sample", help="Measure the microseconds a token of each kind of sampling too.")
    ] = False,
    sequences: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Decode so many texts at once too, such as 1,2,4,8.")
    ] = None,
    dummy: Annotated[bool, typer.Option("--dummy", help="Use pseudo-random tokens instead of text.")] = False,
    engine: options.EngineOptions,
    routing: options.RoutingOptions,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the speeds as a PNG.")] = None,
    json: options.JsonOption = False,
) -> None:
    """Measure speed and memory of a model, and what share of the machine's limits it reaches.

    Prefill (reading a prompt) and decode (writing) are in tokens per second. MFU is the share of the machine's int8
    multiply-adds that prefill uses. MBU is the share of its read bandwidth that decoding uses; it can exceed 100% if
    the weights fit in the CPU's caches. With --max-memory neither is measured, but how many of the experts were in
    memory, and how much was read for a token; nor is the first token, for which a second process would have to load the
    model beside this one. A model that reads text also continues one with guessed tokens and
    without. In --json, MFU is null if the engine does not compute in int8. --sample adds the time that choosing a token
    from its logits takes: greedily, and with each setting of `mobilemoe run`. --sequences adds the tokens per second of
    several texts that are continued at once, summed over them.

    Example: mobilemoe bench nano --prefill 128,512
    """
    from mobilemoe.profile import benchmark, picture

    wanted = [(SHORT_NAMES.get(model, model) if random else model, random)]
    if compare is not None and engine.max_memory is not None:
        raise UsageError("--max-memory is for one model in a process: leave --compare out")
    if compare is not None:
        wanted += [(SHORT_NAMES.get(name, name), True) for name in compare.split(",")]
    lengths = LENGTHS if compare is None else tuple(sorted({*LENGTHS, *PAPERS_LENGTHS}))
    lengths = _numbers("--prefill", prefill, 1) or lengths
    workload = benchmark.Workload(
        lengths,
        _numbers("--depths", depths, 0) or (0, *lengths),
        repeats,
        dummy,
        sample,
        _numbers("--sequences", sequences, 1, MOST_SEQUENCES),
        engine.max_memory is None,
    )
    if not any(is_random for _, is_random in wanted):
        options.refuse_idle("is for random weights: leave it out, or add --random", group_axis=group_axis)
    group_axis = group_axis or "out"
    _check(wanted, group_axis, repeats)
    if png is not None:
        picture.drawing()
        check_replaceable(png, "PNG")
    used = vars(engine) | {"routing": vars(routing.routing())}
    models = [(name, _load(name, is_random, group_axis, engine, routing), used) for name, is_random in wanted]
    steps, total = itertools.count(), 1 + workload.steps * len(models)
    with Progress() as progress:
        results, machine = benchmark.run(models, workload, lambda what: progress.tell(next(steps), total, what))
    if png is not None:
        picture.draw_speeds(results, machine, png)
    compared = [(baseline, benchmark.ratios(results[0], baseline)) for baseline in results[1:]]
    if json:
        options.print_json(_values(results[0], machine, compared))
        return
    for result in results:
        _print(result, machine, workload)
    for baseline, found in compared:
        _print_ratios(results[0], baseline, found)
    peak = machine.multiply_adds_per_s
    if machine.bytes_per_s is not None:
        print(f"read bandwidth {machine.bytes_per_s / 1e9:.1f} GB/s", end="")
        print(f", int8 peak {peak / 1e9:,.0f} G multiply-adds/s" if peak else "")


def _numbers(option: str, text: str | None, least: int, most: int | None = None) -> tuple[int, ...]:
    """The numbers of an option, sorted and each once; none if the option is not given."""
    if text is None:
        return ()
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"{option} is {text!r}, but must be whole numbers with commas between them") from None
    if numbers[0] < least:
        raise UsageError(f"{option} is {text!r}, but none of them may be below {least}")
    if most is not None and numbers[-1] > most:
        raise UsageError(f"{option} is {text!r}, but none of them may be above {most}")
    return tuple(numbers)


def _check(wanted: Sequence[tuple[str, bool]], group_axis: str, repeats: int) -> None:
    """Checks, before anything is written or measured, that random models have presets and that the options are
    possible.
    """
    for name, is_random in wanted:
        if is_random:
            preset(name)
    if group_axis not in ("in", "out"):
        raise UsageError(f"--group-axis is {group_axis!r}, but must be 'in' or 'out'")
    if not 1 <= repeats <= MOST_REPEATS:
        raise UsageError(f"--repeats is {repeats}, but must be from 1 to {MOST_REPEATS}")


def _load(
    name: str, is_random: bool, group_axis: str, engine: options.EngineOptions, routing: options.RoutingOptions
) -> Model:
    from mobilemoe.profile.random_model import random_model

    def tell(sentence: str) -> None:
        print(f"mobilemoe: {sentence}", file=sys.stderr)

    if is_random:
        folder = str(random_model(name, cast(GroupAxis, group_axis), tell))
        return options.load_model(folder, "native", engine, routing)
    try:
        return options.load_model(name, "native", engine, routing)
    except ModelNotFoundError:
        if name not in PRESETS:
            raise
        raise UsageError(f"{name} is a shape without weights: add --random to measure it with random ones") from None


def _values(result: Result, machine: Machine, compared: Sequence[tuple[Result, list[Ratio]]]) -> dict[str, Any]:
    engine = result.engine
    values = result.values(machine) | {
        "threads": engine.threads,
        "isa": engine.isa,
        "bytes_per_s": machine.bytes_per_s,
        "multiply_adds_per_s": machine.multiply_adds_per_s,
    }
    if compared:
        values["compared"] = [
            baseline.values(machine) | {"ratios": [vars(ratio) for ratio in found]} for baseline, found in compared
        ]
    return values


def _print(result: Result, machine: Machine, workload: Workload) -> None:
    s, engine = result.subject, result.engine
    print(f"{s.name}: {counted(engine.threads, 'thread')}, {engine.isa}, {result.tokens.source}")
    table = Table("tokens", "prefill tok/s", "MFU", "decode tok/s", "MBU")
    for column in table.columns:
        column.justify = "right"
    for n in sorted({*s.prefill, *s.decode}):
        mfu = s.mfu(n, machine) if n in s.prefill else None
        mbu = s.mbu(n, machine) if n in s.decode else None
        table.add_row(
            f"{n:,}",
            f"{s.prefill_speed(n):,.1f}" if n in s.prefill else "",
            "" if mfu is None else f"{mfu:.1%}",
            f"{s.decode_speed(n):,.1f}" if n in s.decode else "",
            "" if mbu is None else f"{mbu:.1%}",
        )
    options.plain_console().print(table)
    for what, wanted, measured in (("prefill", workload.lengths, s.prefill), ("decode", workload.depths, s.decode)):
        if left_out := [f"{n:,}" for n in wanted if n not in measured]:
            print(f"left out: {what} at {', '.join(left_out)}, which the context of {engine.context:,} has no room for")
    if (guesses := result.guesses) is not None:
        print(f"guessed tokens     {guesses.speed / guesses.plain_speed:.2f} times plain decoding of a text", end="")
        print(f", {guesses.drafts.accepted:,} of {guesses.drafts.proposed:,} were right")
    if workload.cold:
        print(f"first token        {result.cold.from_import_s:.3f} s from before `import mobilemoe`", end="")
        print(f", {result.cold.from_load_s:.3f} s from load(), in a new process")
    if (use := engine.expert_use) is not None:
        print(f"experts in memory  {use.places:,} of {use.experts:,}", end="")
        if (hit_rate := s.hit_rate()) is not None and (read := s.read_bytes()) is not None:
            print(f": {hit_rate:.1%} of those that decoding visits, and {read / 1e6:,.1f} MB read for a token", end="")
        print()
    where = f"after {result.rss_tokens:,} tokens there" if workload.cold else "in this process since it was opened"
    print(f"peak memory        {result.cold.peak_rss_bytes / 1e6:,.0f} MB, {where}")
    if result.sampling:
        _print_sampling(result)
    if result.batch:
        _print_batch(result)
    print()


def _print_sampling(result: Result) -> None:
    greedy = result.sampling["greedy"]
    table = Table("sampling", "us a token", "more than greedy")
    for column in table.columns[1:]:
        column.justify = "right"
    for mode, microseconds in result.sampling.items():
        more = "" if mode == "greedy" else f"{microseconds - greedy:+,.0f}"
        table.add_row(mode, f"{microseconds:,.0f}", more)
    options.plain_console().print(table)


def _print_batch(result: Result) -> None:
    table = Table("texts at once", "tok/s over all", "times")
    for column in table.columns:
        column.justify = "right"
    fewest = next(iter(result.batch.values()))
    for count, speed in result.batch.items():
        table.add_row(f"{count:,}", f"{speed:,.1f}", f"{speed / fewest:.2f}")
    options.plain_console().print(table)


def _print_ratios(result: Result, baseline: Result, found: Sequence[Ratio]) -> None:
    from mobilemoe import paper

    devices = list(paper.PHONE_RATIOS) if any(ratio.paper for ratio in found) else []
    print(f"how many times as fast {result.subject.name} is as {baseline.subject.name}")
    table = Table("", "tokens", "here", *(f"paper, {device}" for device in devices))
    for column in table.columns[1:]:
        column.justify = "right"
    for ratio in found:
        on_phones = (f"{ratio.paper[device]:.2f}" if device in ratio.paper else "" for device in devices)
        table.add_row(ratio.kind, f"{ratio.tokens:,}", f"{ratio.ratio:.2f}", *on_phones)
    options.plain_console().print(table)
    if baseline.subject.name == paper.PHONE_BASELINE:
        best = ", ".join(f"{kind} {ratio}" for kind, ratio in paper.BEST_RATIOS.items())
        print(f"The paper compares MobileMoE-S with MobileLLM-Pro; its best ratios: {best}")
    print()
