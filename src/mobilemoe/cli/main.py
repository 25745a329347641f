"""`mobilemoe VERB ...`: finds the verb, and turns every error that a user can mend into one sentence."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

import typer

from mobilemoe.cli import (
    bench,
    chat,
    convert,
    data,
    evaluate,
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
from mobilemoe.errors import MobileMoEError

app = typer.Typer(
    help="Plan, train, quantise, evaluate and run small mixture-of-experts language models on devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
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
app.command("eval")(evaluate.evaluate)
app.command("report")(report.report)
app.add_typer(data.app, name="data")
app.add_typer(profile.app, name="profile")


def main() -> NoReturn:
    """Exit status 0 is fine, 1 failed, 2 wrong usage, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a model may write what the terminal's encoding lacks
        sys.stdout.reconfigure(errors="replace")
    try:
        app()
    except MobileMoEError as fault:
        _fail(str(fault), fault.exit_status)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone: nothing to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as fault:
        # Of a rename the target: the name before it is one that nobody chose.
        _fail(f"{fault.filename2 or fault.filename or 'a file'}: {fault.strerror or fault}", 1)
    except (MemoryError, RuntimeError) as fault:  # torch's allocator raises the second
        if isinstance(fault, RuntimeError) and "allocate memory" not in str(fault):
            raise
        _fail("there is not enough memory for this: take a smaller model, batch or context", 1)
    sys.exit(0)


def _fail(sentence: str, status: int) -> NoReturn:
    print(f"mobilemoe: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(status)
