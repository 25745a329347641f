"""`mobilemoe serve`: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobilemoe.cli import options
from mobilemoe.errors import MissingExtraError, UsageError
from mobilemoe.hub import find_model

if TYPE_CHECKING:
    from mobilemoe.load import Model


@options.grouped
def serve(
    model: options.ModelArgument,
    host: Annotated[str, typer.Option(help="The address to listen at; the default is for this machine only.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port (0: any that is free).")] = 8080,
    api_key: Annotated[
        str | None, typer.Option(envvar="MOBILEMOE_API_KEY", help="The key that every request has to bring.")
    ] = None,
    no_api_key: Annotated[
        bool, typer.Option("--no-api-key", help="Serve at a public address although there is no key.")
    ] = False,
    parallel: Annotated[int, typer.Option(min=1, help="Compute for at most this many texts at a time.")] = 8,
    queue: Annotated[int, typer.Option(min=1, help="Let at most this many requests wait.")] = 64,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="At the end, finish what was begun for at most this long.")
    ] = 30,
    request_seconds: Annotated[
        float, typer.Option(min=0, help="End a request with an error if it is not answered after this time (0: never).")
    ] = 0,
    session_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep conversations here when the server ends.")
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name that requests may use for the model; may be repeated.")
    ] = None,
    *,
    engine: options.EngineOptions,
    json: options.JsonOption = False,
) -> None:
    """Serve a model over HTTP, to OpenAI's clients and whatever else speaks their language.

    With --json the address is printed on standard output once the model is ready.

    Example: mobilemoe serve nano --port 8080
    """
    try:
        from mobilemoe.serve.server import serve as run_server
    except ModuleNotFoundError as missing:
        raise MissingExtraError(f"serving ({missing.name})", "serve") from None
    if api_key == "" or (api_key is not None and no_api_key):
        raise UsageError("--api-key is empty" if api_key == "" else "--api-key and --no-api-key exclude each other")
    for option, seconds in (("--drain-seconds", drain_seconds), ("--request-seconds", request_seconds)):
        if not math.isfinite(seconds):
            raise UsageError(f"{option} is {seconds}, not a number of seconds")
    name = Path(model).resolve().name if Path(model).is_dir() else model

    def load() -> Model:
        loaded = options.load_model(model, "native", engine)
        _ = loaded.tokenizer  # read at first use: a model without one cannot be served
        return loaded

    def say_ready(address: str) -> None:
        page = address.removesuffix("v1")
        print(f"mobilemoe: {name} is served at {address}, to talk to at {page} (Ctrl-C ends)", file=sys.stderr)
        if json:
            options.print_json({"model": name, "address": address})
            sys.stdout.flush()

    run_server(
        load,
        name,
        fetch=lambda: find_model(model),
        host=host,
        port=port,
        api_key=api_key,
        without_key=no_api_key,
        parallel=parallel,
        queue=queue,
        drain_seconds=drain_seconds,
        request_seconds=request_seconds or math.inf,
        session_dir=session_dir,
        aliases=alias or [],
        on_ready=say_ready,
    )
