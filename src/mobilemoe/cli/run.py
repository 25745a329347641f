"""`mobilemoe run`: continues a prompt."""

from __future__ import annotations

import resource
import sys
from typing import Annotated

import typer

from mobilemoe.cli import options
from mobilemoe.errors import UsageError


@options.grouped
def run(
    model: options.ModelArgument,
    prompt: Annotated[str | None, typer.Argument(help="The text to continue (default: standard input).")] = None,
    *,
    max_new_tokens: options.MaxNewTokens = 128,
    sampling: options.SamplingOptions,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text (repeatable).")] = None,
    backend: options.BackendOption = "native",
    engine: options.EngineOptions,
    routing: options.RoutingOptions,
    json: options.JsonOption = False,
) -> None:
    """Continue a text, token by token; speed and memory use go to standard error.

    Example: mobilemoe run nano "Once upon a time" --max-new-tokens 64
    """
    sampling.warn_if_idle()
    if prompt is None:
        prompt = _read_stdin()
    loaded = options.load_model(model, backend, engine, routing)
    stream = loaded.stream(prompt, max_new_tokens=max_new_tokens, stop=stop or (), **vars(sampling))
    pieces = []
    for piece in stream:
        pieces.append(piece)
        print(piece, end="", flush=True)
    print()
    # The first token comes with the prefill.
    speed = (stream.new_tokens - 1) / stream.decode_seconds if stream.decode_seconds else None
    peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if json:
        options.print_json(
            {
                "text": "".join(pieces),
                "prompt_tokens": stream.prompt_tokens,
                "new_tokens": stream.new_tokens,
                "finish_reason": stream.finished,
                "prefill_tokens_per_second": stream.prompt_tokens / stream.prefill_seconds,
                "decode_tokens_per_second": speed,
                "peak_rss_bytes": peak_rss_bytes,
                "drafts": None if loaded.engine is None else loaded.engine.drafts._asdict(),
            }
        )
        return
    shown_speed = f"{speed:.1f} tokens/s, " if speed else ""
    memory = f"peak memory {peak_rss_bytes / 1e6:.0f} MB"
    print(f"[{stream.new_tokens} tokens, {shown_speed}{memory}]", file=sys.stderr)


def _read_stdin() -> str:
    if sys.stdin is None:
        raise UsageError("there is no prompt, and standard input is closed")
    if sys.stdin.isatty():
        print("Type the prompt, then Ctrl-D:", file=sys.stderr)
    try:
        text = sys.stdin.read()
        text.encode()  # in the C locale Python takes bytes that are no text for surrogates
    except UnicodeError:
        raise UsageError("standard input is not UTF-8 text") from None
    return text.removeprefix("\ufeff")  # a file's byte-order mark is no part of its text
