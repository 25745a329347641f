"""`mobilemoe chat`: a conversation on the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mobilemoe.cli.options import (
    ActivationsOption,
    BackendOption,
    FrequencyPenalty,
    JsonOption,
    KvOption,
    MaxNewTokens,
    MinP,
    ModelArgument,
    PresencePenalty,
    QuantizeOption,
    RepetitionPenalty,
    Seed,
    Temperature,
    ThreadsOption,
    TopK,
    TopP,
    load_model,
    print_json,
)
from mobilemoe.errors import UsageError


def chat(
    model: ModelArgument,
    system: Annotated[str | None, typer.Option(help="A system message that opens the conversation.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    seed: Seed = None,
    backend: BackendOption = "native",
    activations: ActivationsOption = None,
    kv: KvOption = None,
    threads: ThreadsOption = None,
    quantize: QuantizeOption = None,
    json: JsonOption = False,
) -> None:
    """Talk with a model; it remembers the conversation. /reset starts anew, /exit or Ctrl-D ends.

    Example: mobilemoe chat nano --temperature 0.7
    """
    loaded = load_model(model, backend, activations, kv, threads, quantize)
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    while (text := _ask()) is not None:
        if not text.strip():
            continue
        if text.strip() == "/reset":
            messages = list(opening)
            continue
        question = {"role": "user", "content": text}
        try:
            stream = loaded.stream(
                messages=[*messages, question],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                seed=seed,
            )
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
        print_json({"messages": messages})


def _ask() -> str | None:
    """The next line, or None at the end; the prompt is shown to people only."""
    if sys.stdin is None:  # closed from the start
        return None
    try:
        text = input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
    except UnicodeDecodeError:
        raise UsageError("standard input is not UTF-8 text") from None
    return None if text.strip() == "/exit" else text
