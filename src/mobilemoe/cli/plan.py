"""`mobilemoe plan`: which architecture to train for a device."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from mobilemoe.cli.options import JsonOption, print_json
from mobilemoe.cli.quantity import BYTES, COUNTS, quantity
from mobilemoe.counted import counted
from mobilemoe.errors import ConfigError, UsageError
from mobilemoe.files import check_replaceable, refuse_existing, write_atomic

if TYPE_CHECKING:
    from mobilemoe.profile.device import Device
    from mobilemoe.scaling.law.law import Law
    from mobilemoe.scaling.plan.plan import Plan

TYING = {"tied": (True,), "untied": (False,), "both": (True, False)}
THIS_MACHINE = "this-machine"  # what `mobilemoe profile device` calls it
WIDTH = 120  # of the table where the output is no terminal


def plan(
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory of the process where the --device has it, else of weights and KV cache: 1.0GB, 900MB or 1GiB."
        ),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            help="The same limit, but models may be larger, their other experts read from flash; needs --decode."
        ),
    ] = None,
    flash: Annotated[
        str | None, typer.Option(help="Speed of the flash in bytes a second for --max-memory, such as 1.5GB.")
    ] = None,
    decode: Annotated[
        float | None, typer.Option(help="Least decode speed in tokens per second, after --context tokens.")
    ] = None,
    ttft: Annotated[
        float | None, typer.Option(help="Most seconds to the first token, for a prompt of --prompt tokens.")
    ] = None,
    flops: Annotated[str | None, typer.Option(help="Most FLOPs per decoded token (2 N_act), such as 0.6e9.")] = None,
    prompt: Annotated[int, typer.Option(help="Length of the prompt in tokens.")] = 1024,
    context: Annotated[int, typer.Option(help="Size of the KV cache in tokens.")] = 4096,
    device: Annotated[
        str | None, typer.Option(help="Name of a device (galaxy-s25, iphone-16-pro, your own) or its .toml file.")
    ] = None,
    train_flops: Annotated[
        str | None, typer.Option(help="Training compute in FLOPs (6 N_act D), such as 8e20.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Training tokens, such as 300B, instead of --train-flops.")] = None,
    law: Annotated[
        str, typer.Option(help="The scaling law: a file from `mobilemoe fit --out`, or a published one.")
    ] = "paper-joint",
    vocabulary: Annotated[
        str,
        typer.Option(help="Vocabulary sizes, the law's own first, such as 128256,65536: compared by bits per byte."),
    ] = "128256",
    tying: Annotated[
        str, typer.Option(help="Whether embedding and output head share weights: tied, untied or both.")
    ] = "tied",
    weight_bits: Annotated[str, typer.Option(help="Bits per weight: 4, 8 or 16, or several, such as 4,8.")] = "4",
    kv_bits: Annotated[str, typer.Option(help="Bits per number in the KV cache: 8 or 16.")] = "8",
    top: Annotated[int, typer.Option(help="Number of architectures to list.")] = 10,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a recipe for the first one, for `mobilemoe train`.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything as one HTML page.")] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw loss against memory, FLOPs and time as a PNG.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Find the architecture with the lowest predicted loss within limits on memory, speed and training compute.

    A scaling law predicts the loss. Without --train-flops or --tokens, training is assumed to have 500 billion tokens.

    Example: mobilemoe plan --memory 1.0GB --decode 40 --ttft 1.5 --device galaxy-s25 --train-flops 8e20
    """
    from mobilemoe.scaling.plan import report as plan_report
    from mobilemoe.scaling.plan.limits import Constraints
    from mobilemoe.scaling.plan.plan import plan as make_plan
    from mobilemoe.scaling.plan.recipe import recipe_text
    from mobilemoe.scaling.plan.space import Space
    from mobilemoe.scaling.report import pictures

    constraints = Constraints(
        memory=quantity("--memory", memory, BYTES, "1.0GB or 900MB"),
        max_memory=quantity("--max-memory", max_memory, BYTES, "1.0GB or 900MB"),
        decode=decode,
        ttft=ttft,
        flops=quantity("--flops", flops, COUNTS, "0.6e9"),
        prompt=prompt,
        context=context,
        train_flops=quantity("--train-flops", train_flops, COUNTS, "8e20"),
        tokens=quantity("--tokens", tokens, COUNTS, "300B"),
    )
    if tying not in TYING:
        raise UsageError(f"--tying is {tying!r}, but must be one of {', '.join(TYING)}")
    space = Space(
        vocabularies=_numbers("--vocabulary", vocabulary),
        tied=TYING[tying],
        weight_bits=cast(Any, _numbers("--weight-bits", weight_bits)),
        kv_bits=_numbers("--kv-bits", kv_bits),
    )
    if write is not None:
        refuse_existing(write, UsageError)
        if not re.fullmatch(r"\w[\w.-]*", write.stem):
            raise UsageError(f"--write {write}: the recipe's name must be of letters, digits, '.', '_' and '-'")
    if report is not None or png is not None:
        pictures.drawing()
    if report is not None:
        check_replaceable(report, "page")
    if png is not None:
        check_replaceable(png, "PNG")
    machine = _device(device, decode is not None or ttft is not None)
    if (bandwidth := quantity("--flash", flash, BYTES, "1.5GB")) is not None:
        if machine is None or max_memory is None:
            raise UsageError(
                "--flash is the speed of what --max-memory leaves in flash: give --max-memory and --device too"
            )
        machine = replace(machine, flash_bandwidth=bandwidth)
    found = make_plan(constraints, law=_law(law), device=machine, space=space, top=top)
    if report is not None:
        plan_report.write_report(found, report)
    if png is not None:
        write_atomic(png, plan_report.draw(found))
    if write is not None and found.candidates:
        write_atomic(write, recipe_text(found, write.stem))
    if json:
        print_json(found.as_json())
    elif found.candidates:
        _print(found)
        if write is not None:
            print(f"written to {write}: mobilemoe train {write} --plan")
    if not found.candidates:
        raise ConfigError(f"no candidate fits: {'; '.join(found.infeasible)}")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} is {text!r}, but must be whole numbers with commas between them") from None


def _law(name: str) -> Law:
    from mobilemoe.scaling.law.law import Law
    from mobilemoe.scaling.law.published import published

    return Law.load(name) if Path(name).is_file() or name.endswith(".json") else published(name)


def _device(name: str | None, needed: bool) -> Device | None:
    """The device that was named, or this machine's own profile where a limit needs one."""
    from mobilemoe.profile.device import device, saved_path

    if name is not None:
        return device(name)
    if not needed:
        return None
    if saved_path(THIS_MACHINE).is_file():
        return device(THIS_MACHINE)
    raise UsageError(
        "--decode and --ttft need --device: give a name such as galaxy-s25, or measure this machine first with "
        "`mobilemoe profile device`"
    )


def _print(found: Plan) -> None:
    from mobilemoe.scaling.plan.report import equivalent_text, headings, relief_text, row, vocabulary_text

    table = Table(*headings(found))
    for index, column in enumerate(table.columns):
        column.justify = "left" if index == 1 else "right"
    for rank, candidate in enumerate(found.candidates, 1):
        table.add_row(*row(rank, candidate, found.digits))
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    considered = f"{counted(len(found.table), 'model')} considered in {found.seconds:.1f} s"
    print(f"{considered}; = is equivalent to the best, ! is outside the law's domain")
    print(equivalent_text(found))
    for best in found.vocabularies:
        print(vocabulary_text(best, found.digits))
    if found.larger is not None:
        print(found.larger.verdict)
    if found.runner_up:
        print(f"runner-up: {found.runner_up}")
    for relief in found.reliefs:
        print(relief_text(relief, found.digits))
    print()
    for note in found.notes:
        print(f"- {note}")
