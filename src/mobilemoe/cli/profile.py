"""`mobilemoe profile`: measures what a machine can do, for `mobilemoe plan`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from mobilemoe.cli.options import JsonOption, ThreadsOption, plain_console, print_json
from mobilemoe.counted import counted
from mobilemoe.errors import UsageError
from mobilemoe.files import check_writable, read_toml

if TYPE_CHECKING:
    from mobilemoe.profile.measure_device import Measured

app = typer.Typer(help="Measure this machine for `mobilemoe plan`.", no_args_is_help=True)

_TRUSTED = 0.2  # error of the shape that was not fitted; more comes from a machine that does something else too

# Of a constant: the unit it is printed in, that unit's size, and what the constant is.
_UNITS = {
    "weight_bandwidth": ("GB/s", 1e9, "INT4 weights that decoding reads"),
    "attention_rate": ("GFLOP/s", 1e9, "attention of one decoded token to the KV cache"),
    "prefill_linear_rate": ("GFLOP/s", 1e9, "linear layers of a prompt"),
    "prefill_attention_rate": ("GFLOP/s", 1e9, "attention of a prompt"),
    "routed_cost": ("", 1.0, "times as long as any other weight one of a routed expert takes"),
}


@app.command("device")
def device(
    name: Annotated[str, typer.Option(metavar="NAME", help="Name for `plan --device NAME`.")] = "this-machine",
    threads: ThreadsOption = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write this .toml file instead of keeping the device under its name."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure this machine with the native engine, and keep the result as a device for `mobilemoe plan`.

    This takes about a minute, and 1 GB of disk for random models, which are removed again. Five constants are fitted to
    the speeds of two models and then have to predict a third. Close other programs first, because they slow it down.

    Example: mobilemoe profile device --name mine
    """
    from mobilemoe.profile.device import check_name, saved_path
    from mobilemoe.profile.measure_device import STANDARD, measure_device

    if out is None:
        path = saved_path(name)
    elif out.suffix != ".toml":
        raise UsageError(f"--out is {out}, but the file of a device ends in .toml")
    else:
        check_name(name)
        path = out
    check_writable(path)
    if path.exists() and read_toml(path, UsageError).get("name") != name:
        raise UsageError(f"{path} is no device {name}: choose another name or remove it first")
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("", total=STANDARD.steps)

        def on_step(what: str) -> None:
            progress.update(bar, advance=1, description=escape(what))
            if progress.disable:
                print(f"mobilemoe: {what}", file=sys.stderr)

        measured = measure_device(name, STANDARD, threads, on_step)
    measured.device.save(path)
    if measured.worst_error > _TRUSTED:
        print(
            f"mobilemoe: a shape that was not fitted is predicted {measured.worst_error:.0%} wrong: "
            "measure again while nothing else runs",
            file=sys.stderr,
        )
    if json:
        print_json(_values(measured, path))
    else:
        _print(measured, path)


def _values(measured: Measured, path: Path) -> dict[str, Any]:
    timings = [
        {
            "model": timing.model,
            "kind": timing.kind,
            "tokens": timing.tokens,
            "seconds": timing.seconds,
            "predicted": timing.predicted(measured.device),
            "fitted": timing in measured.fitted,
        }
        for timing in (*measured.fitted, *measured.checked)
    ]
    return {"file": str(path), **vars(measured.device), "worst_error": measured.worst_error, "timings": timings}


def _print(measured: Measured, path: Path) -> None:
    device = measured.device
    print(f"{device.name}: {counted(device.threads, 'thread')}, {device.source}")
    for constant, (unit, size, meaning) in _UNITS.items():
        print(f"{constant:22} {getattr(device, constant) / size:9,.2f} {unit:8} {meaning}")
    print()
    table = Table("model", "", "tokens", "measured ms", "predicted ms", "error", "")
    for column in table.columns[2:6]:
        column.justify = "right"
    for timing in (*measured.fitted, *measured.checked):
        table.add_row(
            timing.model,
            timing.kind,
            f"{timing.tokens:,}",
            f"{timing.seconds * 1e3:,.2f}",
            f"{timing.predicted(device) * 1e3:,.2f}",
            f"{timing.error(device):+.1%}",
            "fitted" if timing in measured.fitted else "not fitted",
        )
    plain_console().print(table)
    print(f"a shape that was not fitted is predicted within {measured.worst_error:.1%}")
    print(f"kept in {path}")
