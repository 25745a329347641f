"""`mobilemoe VERB ...`: finds the verb, and turns every error that a user can mend into one sentence."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from mobilemoe import __version__
from mobilemoe.cli import (
    bench,
    cache,
    chat,
    convert,
    data,
    evaluate,
    export,
    fit,
    info,
    models,
    plan,
    profile,
    prune,
    quantize,
    report,
    run,
    serve,
    sweep,
    tradeoff,
    train,
)
from mobilemoe.cli.as_typed import as_typed, options_of
from mobilemoe.errors import MobileMoEError, UsageError

_OUTPUT = "standard output"


class _InterruptedError(Exception):
    """Stands for Ctrl-C, since Typer would turn a KeyboardInterrupt into an exit status or into "Aborted"."""


class _Verbs(TyperGroup):
    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _renamed_interrupt():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _renamed_interrupt():
            return super().invoke(ctx)


@contextmanager
def _renamed_interrupt() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise _InterruptedError from None


app = typer.Typer(
    cls=_Verbs,
    help="Plan, train, quantise, evaluate and run small mixture-of-experts language models for phones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _before_each_verb(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("pull")(models.pull)
app.command("ls")(models.ls)
app.command("rm")(models.rm)
app.command("info")(info.info)
app.command("bench")(bench.bench)
app.command("train")(train.train)
app.command("plan")(plan.plan)
app.command("fit")(fit.fit)
app.command("sweep")(sweep.sweep)
app.command("quantize")(quantize.quantize)
app.command("prune")(prune.prune)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.command("eval")(evaluate.evaluate)
app.command("report")(report.report)
app.command("tradeoff")(tradeoff.tradeoff)
app.add_typer(data.app, name="data")
app.add_typer(profile.app, name="profile")
app.add_typer(cache.app, name="cache")


def main() -> NoReturn:
    """Runs a verb. The exit status is 0 for success, 1 for failure, 2 for wrong usage, 130 for an interrupt."""
    try:
        _run_verb()
    except BaseException as end:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            _end_at_once(end)
        raise


def _end_at_once(end: BaseException) -> NoReturn:
    """Ends one of several processes. Python's own end would wait for threads, and for communicators, which may wait for
    processes that have gone."""
    status = int(end.code or 0) if isinstance(end, SystemExit) else 1
    if not isinstance(end, SystemExit):
        traceback.print_exception(end)
    with suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run_verb() -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would hide how a process ended
    _open_closed_streams()
    sys.stdout, sys.stderr = _named_output(sys.stdout), _dispensable(sys.stderr)
    try:
        _check_arguments(sys.argv[1:])
        try:
            app()
        finally:
            sys.stdout.flush()  # a full disk must be noticed while it can be reported
    except (KeyboardInterrupt, _InterruptedError):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C, while threads end, needs no message
        _fail("interrupted", 130)
    except MobileMoEError as fault:
        options = options_of(typer.main.get_command(app), sys.argv[1:])
        _fail(as_typed(str(fault), options), fault.exit_status)
    except BrokenPipeError:  # the reader of our output has gone, so no message can be read
        _drop_output()
        sys.exit(1)
    except OSError as fault:
        # For a rename, name the target: the other name is a temporary one.
        where = fault.filename2 or fault.filename or "a file"
        if where == _OUTPUT:
            _drop_output()
        _fail(f"{where}: {fault.strerror or fault}", 1)
    except RecursionError:
        _fail("what this reads is nested too deeply", 1)
    except ImportError as fault:
        if isinstance(fault, ModuleNotFoundError) or (fault.name or "").startswith("mobilemoe"):
            raise
        _fail(f"a package that this needs is installed, but cannot be loaded here ({fault})", 1)
    except (MemoryError, RuntimeError) as fault:  # RuntimeError: torch's allocator raises it
        if isinstance(fault, RuntimeError) and "allocate memory" not in str(fault):
            raise
        wanted = f" ({fault})" if str(fault) else ""
        _fail(f"there is not enough memory for this{wanted}: take a smaller model, batch or context", 1)
    sys.exit(0)


def _open_closed_streams() -> None:
    """Opens the null device in place of closed standard streams.

    Otherwise print() would write to standard output where there is no standard error, and the next file that is opened
    would get descriptor 1 and whatever is written to it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _check_arguments(arguments: list[str]) -> None:
    """Raises UsageError for an argument that is not text, or is empty (from an unset variable) where a name belongs.

    `run` and `chat` accept empty texts, and check their arguments themselves. A current folder that has been removed is
    a UsageError too.
    """
    try:
        os.getcwd()
    except OSError as fault:  # libraries that look for their files relative to it end the process
        raise UsageError(f"the current folder cannot be used ({fault.strerror}): change to another one") from None
    for place, argument in enumerate(arguments):
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UsageError(f"the argument {argument!a} is not UTF-8 text")
        option, equals, value = argument.partition("=") if argument.startswith("--") else (argument, "", argument)
        if not value and (equals or not argument) and arguments[0] not in ("run", "chat"):
            before = arguments[place - 1] if place else ""
            name = option or (before if before.startswith("--") else f"the argument after {before or 'mobilemoe'}")
            raise UsageError(f"{name} is empty")


class _Output(io.FileIO):
    """Standard output whose errors are recognisable as its own."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as fault:
            fault.filename = _OUTPUT
            raise


def _named_output(stream: TextIO) -> TextIO:
    """Standard output under that name; characters that the terminal's encoding lacks are replaced."""
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(
        getattr(stream.buffer, "raw", stream.buffer), io.FileIO
    ):
        return stream
    buffer = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(
        buffer,
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


class _Messages(io.FileIO):
    """Standard error, on which nothing depends: what its disk, terminal or reader does not take is dropped."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes


def _dispensable(stream: TextIO) -> TextIO:
    """Standard error that never fails: a run of days must not end because its progress cannot be shown."""
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(
        getattr(stream.buffer, "raw", stream.buffer), io.FileIO
    ):
        return stream
    buffer = io.BufferedWriter(_Messages(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=True)


def _drop_output() -> None:
    """Redirects remaining output to the null device, so that the interpreter does not fail when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(sentence: str, status: int) -> NoReturn:
    print(f"mobilemoe: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(status)
