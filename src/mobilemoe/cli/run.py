"""`mobilemoe run`: continues a prompt."""

from __future__ import annotations

import resource
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
    Stop,
    Temperature,
    ThreadsOption,
    TopK,
    TopP,
    load_model,
    print_json,
)
from mobilemoe.errors import UsageError


def run(
    model: ModelArgument,
    prompt: Annotated[str | None, typer.Argument(help="What to continue; read from standard input if absent.")] = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    backend: BackendOption = "native",
    activations: ActivationsOption = None,
    kv: KvOption = None,
    threads: ThreadsOption = None,
    quantize: QuantizeOption = None,
    json: JsonOption = False,
) -> None:
    """Stream the continuation of a prompt; speed and memory go to standard error.

    Example: mobilemoe run nano "Once upon a time" --max-new-tokens 64
    """
    if prompt is None:
        prompt = _read_stdin()
    stream = load_model(model, backend, activations, kv, threads, quantize).stream(
        prompt,
        max_new_tokens=max_new_tokens,
        stop=stop or (),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
    )
    pieces = []
    for piece in stream:
        pieces.append(piece)
        print(piece, end="", flush=True)
    print()
    # The first token comes with the prefill.
    speed = (stream.new_tokens - 1) / stream.decode_seconds if stream.decode_seconds else None
    peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if json:
        print_json(
            {
                "text": "".join(pieces),
                "prompt_tokens": stream.prompt_tokens,
                "new_tokens": stream.new_tokens,
                "finish_reason": stream.finished,
                "prefill_tokens_per_second": stream.prompt_tokens / stream.prefill_seconds,
                "decode_tokens_per_second": speed,
                "peak_rss_bytes": peak_rss_bytes,
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
        return sys.stdin.read().removeprefix("\ufeff")  # a file's byte-order mark is no part of its text
    except UnicodeDecodeError:
        raise UsageError("standard input is not UTF-8 text") from None
