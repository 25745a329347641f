"""`mobilemoe tradeoff`: what a model loses and gains where tokens are routed otherwise than it was trained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mobilemoe.cli import options
from mobilemoe.errors import DataError, UsageError
from mobilemoe.files import new_folder, numbered, open_regular, read_bytes, write_atomic
from mobilemoe.load import load
from mobilemoe.progress import Progress
from mobilemoe.routing import Routing

if TYPE_CHECKING:
    from mobilemoe.evaluate.compare.tradeoff import Point
    from mobilemoe.profile.capped import Decoding

STRENGTHS, CAPACITIES = "0,0.05,0.1,0.2,0.4,0.8", "0.9,0.75,0.5,0.25"


def tradeoff(
    model: options.ModelArgument,
    *,
    text: Annotated[Path, typer.Option(metavar="FILE", help='A JSONL of {"text"} or {"messages"} to score.')],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the picture, tradeoff.svg, and of the points found so far.")
    ] = Path("tradeoff"),
    cached_experts: Annotated[
        str | None,
        typer.Option(metavar="NUMBERS", help="Experts in memory in each layer (default: a quarter and half of them)."),
    ] = None,
    cache_prior: Annotated[str, typer.Option(metavar="LAMBDAS", help="Strengths of the preference.")] = STRENGTHS,
    capacity: Annotated[str, typer.Option(metavar="SHARES", help="Shares of a prompt's work to do.")] = CAPACITIES,
    max_memory: Annotated[
        int | None,
        typer.Option(
            parser=options.memory,
            metavar="SIZE",
            help="Also measure decoding with each strength under this limit, such as 1GB.",
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Length in tokens of the windows of --text (default: the model's context).")
    ] = None,
    threads: options.ThreadsOption = None,
    json: options.JsonOption = False,
) -> None:
    """Draw what it costs in bits per byte to prefer experts in memory, or to compute less, and what that saves.

    For caches of several sizes: how many of the chosen experts are missing, by lambda (Skliar et al.). For prompts: the
    speed by capacity, skipping pairs of low weight, by V-MoE's rule or any, and with fewer experts for each token. The
    same command goes on where it was stopped.

    Example: mobilemoe tradeoff nano --text tests/data/heldout.jsonl
    """
    from mobilemoe.evaluate.compare import tradeoff as found
    from mobilemoe.evaluate.compare import tradeoff_picture as picture
    from mobilemoe.evaluate.compare.bits_per_byte import check_window
    from mobilemoe.profile.capped import DECODED, decode_speeds
    from mobilemoe.profile.tokens import tokens_for

    picture.drawing()
    open_regular(text, DataError).close()  # before long work
    plain = load(model, threads=threads)
    config = plain.config
    if config.ffn_type == "dense":
        raise UsageError(f"{model} is dense: it has no routing to change")
    experts = config.num_local_experts
    places = cached_experts or f"{max(1, experts // 4)},{max(1, experts // 2)}"
    grid = found.Grid(
        tuple(_numbers("--cached-experts", places, int)),
        tuple(_numbers("--cache-prior", cache_prior, float)),
        tuple(_numbers("--capacity", capacity, float)),
    )
    routings = grid.routings(config)
    for routing in routings:
        routing.check_for(config, max_memory=None, speculate="auto")
    check_window(plain.context if window is None else window, plain.context)
    ids = tokens_for(plain, min(found.PROMPT + DECODED, plain.context), dummy=False).ids
    with new_folder(out), Progress() as progress:
        decoding: list[Decoding] = []
        if max_memory is not None:
            counter = progress.counter("rounds of decoding")
            decoding = decode_speeds(plain.folder, grid.strengths, max_memory, ids, threads, counter)
        faster = [routing for routing in routings if not routing.cached_experts]
        speeds = found.prompt_speeds(model, faster, ids[: found.PROMPT], threads, progress.counter("rounds of prompts"))
        try:
            points = found.measure_quality(model, text, window, routings, out / "points.json", threads, progress.tell)
        except KeyboardInterrupt:
            print("interrupted: finished points are kept, the same command continues from there", file=sys.stderr)
            raise typer.Exit(130) from None
    called = found.identity(plain, text, window, routings, max_memory)
    path = numbered(
        out / "tradeoff.svg", lambda place: not place.exists() or called.encode() in read_bytes(place, DataError)
    )
    drawn = [(each.strength, each.tokens_per_second) for each in decoding]
    write_atomic(path, picture.draw(Path(model).name, points, speeds, drawn, called))
    if json:
        options.print_json(
            {
                "points": [point.as_json() | {"prompt_speed": speeds.get(point.routing)} for point in points],
                "decoding": [vars(each) for each in decoding],
                "picture": str(path),
            }
        )
        return
    _print(points, speeds, decoding)
    beside = "" if path.stem == "tradeoff" else f", since {out / 'tradeoff.svg'} is of something else"
    print(f"written: {path}{beside}")


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [*dict.fromkeys(kind(part) for part in text.split(","))]
    except ValueError:
        raise UsageError(f"{option} is {text!r}, but must be numbers with commas between them") from None


def _print(points: Sequence[Point], speeds: Mapping[Routing, float], decoding: Sequence[Decoding]) -> None:
    plain = points[0]
    console = options.plain_console(options.WIDE)
    table = Table("", "bits per byte", "", "perplexity", "not in memory", "skipped", "prompt speed")
    for column in table.columns[1:]:
        column.justify = "right"
    for point in points:
        more = point.bits_per_byte / plain.bits_per_byte - 1
        table.add_row(
            _named(point.routing),
            f"{point.bits_per_byte:.4f}",
            f"{more:+.2%}",
            f"{point.perplexity:.3f}",
            "" if point.miss_rate is None else f"{point.miss_rate:.1%}",
            "" if point.skipped is None else f"{point.skipped:.1%}",
            f"{speeds[point.routing]:.2f}" if point.routing in speeds else "",
        )
    console.print(table)
    if decoding:
        heads = ("in memory", f"room for, of {decoding[0].experts} experts")
        table = Table("lambda", "tokens/s", "read for a token", *heads)
        for each in decoding:
            read = f"{each.bytes_per_token / 1e6:.2f} MB"
            table.add_row(
                f"{each.strength:g}", f"{each.tokens_per_second:.1f}", read, f"{each.hit_rate:.1%}", f"{each.places}"
            )
        console.print(table)


def _named(routing: Routing) -> str:
    if routing.cached_experts:
        return f"{routing.cached_experts} experts in memory, lambda {routing.cache_prior:g}"
    if routing.capacity:
        return f"capacity {routing.capacity:g}, by {routing.skip}"
    if routing.experts_per_token:
        return f"{routing.experts_per_token} experts for each token"
    return "as trained"
