"""`mobilemoe VERB ...`: finds the verb, and turns every error that a user can mend into one sentence."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

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
    plan,
    profile,
    quantize,
    report,
    run,
    sweep,
    train,
)
from mobilemoe.errors import MobileMoEError, UsageError

_OUTPUT = "standard output"


class _InterruptedError(Exception):
    """Ctrl-C, under a name that Typer does not know: it would answer by the exit status alone, or by "Aborted"."""


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
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("info")(info.info)
app.command("bench")(bench.bench)
app.command("train")(train.train)
app.command("plan")(plan.plan)
app.command("fit")(fit.fit)
app.command("sweep")(sweep.sweep)
app.command("quantize")(quantize.quantize)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.command("eval")(evaluate.evaluate)
app.command("report")(report.report)
app.add_typer(data.app, name="data")
app.add_typer(profile.app, name="profile")
app.add_typer(cache.app, name="cache")


def main() -> NoReturn:
    """Exit status 0 is fine, 1 failed, 2 wrong usage, 130 interrupted."""
    _open_closed_streams()
    sys.stdout = _named_output(sys.stdout)
    try:
        _check_arguments(sys.argv[1:])
        try:
            app()
        finally:
            sys.stdout.flush()  # a full disk must be found out while it can be said
    except (KeyboardInterrupt, _InterruptedError):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a further one, while threads are waited for, has nothing to say
        _fail("interrupted", 130)
    except MobileMoEError as fault:
        _fail(str(fault), fault.exit_status)
    except BrokenPipeError:  # the reader of our output has gone: nothing to say, and nobody to say it to
        _drop_output()
        sys.exit(1)
    except OSError as fault:
        # Of a rename the target: the name before it is one that nobody chose.
        where = fault.filename2 or fault.filename or "a file"
        if where == _OUTPUT:
            _drop_output()
        _fail(f"{where}: {fault.strerror or fault}", 1)
    except RecursionError:
        _fail("what this reads is nested too deeply", 1)
    except (MemoryError, RuntimeError) as fault:  # torch's allocator raises the second
        if isinstance(fault, RuntimeError) and "allocate memory" not in str(fault):
            raise
        wanted = f" ({fault})" if str(fault) else ""
        _fail(f"there is not enough memory for this{wanted}: take a smaller model, batch or context", 1)
    sys.exit(0)


def _open_closed_streams() -> None:
    """Puts the null device where standard streams are closed: print() writes to standard output where there is no
    standard error, and the next file that is opened would be standard output to whoever writes to descriptor 1."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _check_arguments(arguments: list[str]) -> None:
    """UsageError for an argument that is no text, or is empty where a name belongs, as an unset variable is.

    `run` and `chat` take texts, which may be empty, and say themselves what may not be.
    """
    for place, argument in enumerate(arguments):
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UsageError(f"the argument {argument!a} is not UTF-8 text")
        option, equals, value = argument.partition("=") if argument.startswith("--") else (argument, "", argument)
        if not value and (equals or not argument) and arguments[0] not in ("run", "chat"):
            before = arguments[place - 1] if place else ""
            name = option or (before if before.startswith("--") else f"the argument behind {before or 'mobilemoe'}")
            raise UsageError(f"{name} is empty")


class _Output(io.FileIO):
    """Standard output, whose faults say that they are its."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as fault:
            fault.filename = _OUTPUT
            raise


def _named_output(stream: TextIO) -> TextIO:
    """Standard output by that name; what a model writes and the terminal's encoding lacks is replaced."""
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


def _drop_output() -> None:
    """Has the interpreter's end write what is left of the output nowhere, and not fail at it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(sentence: str, status: int) -> NoReturn:
    print(f"mobilemoe: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(status)
