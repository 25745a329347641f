"""`mobilemoe chat`: a conversation on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from mobilemoe.cli import options
from mobilemoe.errors import UsageError


@options.grouped
def chat(
    model: options.ModelArgument,
    system: Annotated[str | None, typer.Option(help="A system message at the start of the conversation.")] = None,
    *,
    max_new_tokens: options.MaxNewTokens = 256,
    sampling: options.SamplingOptions,
    backend: options.BackendOption = "native",
    engine: options.EngineOptions,
    routing: options.RoutingOptions,
    json: options.JsonOption = False,
) -> None:
    """Hold a conversation with a model on the terminal.

    /reset starts a new conversation, /exit or Ctrl-D ends, Ctrl-C ends an answer. Questions may also come from standard
    input, one per line.

    Example: mobilemoe chat nano --temperature 0.7
    """
    sampling.warn_if_idle()
    loaded = options.load_model(model, backend, engine, routing)
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    for text in _lines():
        if not text.strip():
            continue
        if text.strip() == "/reset":
            messages = list(opening)
            continue
        question = {"role": "user", "content": text}
        try:
            asked = [*messages, question]
            stream = loaded.stream(messages=asked, max_new_tokens=max_new_tokens, **vars(sampling))
        except UsageError as fault:
            if not messages:
                raise
            print(f"({fault}; /reset starts anew)", file=sys.stderr)
            continue
        answer = ""
        try:
            for piece in stream:
                answer += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:  # ends the answer, not the conversation
            pass
        print()
        messages += [question, {"role": "assistant", "content": answer}]
    if json:
        options.print_json({"messages": messages})


def _lines() -> Iterator[str]:
    """The lines of the user, up to the end or /exit. Only a terminal gets a prompt; a line that is not text is left
    out.
    """
    if sys.stdin is None:  # standard input was closed from the start
        return
    mark = "\ufeff"  # a byte-order mark may precede the first line of a file
    while True:
        try:
            text = input("> ") if sys.stdin.isatty() else _next_line()
        except EOFError:
            return
        except UnicodeDecodeError:
            print("(a line that is not UTF-8 text is left out)", file=sys.stderr)
            continue
        text, mark = text.removeprefix(mark), ""
        if text.strip() == "/exit":
            return
        yield text


def _next_line() -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode().removesuffix("\n").removesuffix("\r")
