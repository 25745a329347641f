"""`mobilemoe export`: writes a model for another runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from mobilemoe.checkpoint.draft import DRAFT
from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.cli.convert import print_report
from mobilemoe.cli.options import JsonOption
from mobilemoe.errors import UsageError
from mobilemoe.hub import find_model
from mobilemoe.progress import Progress

FORMATS = ("gguf", "glm4moe", "compressed-tensors", "mlx", "executorch")


def export(
    model: Annotated[str, typer.Argument(help="The model to read: a folder, nano, or a Hub id.")],
    to: Annotated[
        str,
        typer.Option(
            help="gguf (llama.cpp), glm4moe or compressed-tensors (transformers, vLLM, SGLang), mlx (MLX-LM), or "
            "executorch (phones)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file (gguf) or folder (others) to create; it must not exist.")],
    type: Annotated[
        str | None,
        typer.Option(help="Type of gguf weights: q4_0, q8_0 or bf16 (default: q4_0 for INT4 models, else bf16)."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens that an executorch program can hold, prompt and answer (default: at most 2,048)."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a model in a format that another runtime loads, and report the error that this adds.

    gguf runs in unmodified llama.cpp and llama-cpp-python. INT4 weights with groups along the input become Q4_0 bit for
    bit; experts grouped along their output are rounded again, so q8_0 is the better type for them. glm4moe is a BF16
    checkpoint of transformers' Glm4MoeForCausalLM; compressed-tensors is the same with INT4 weights as they are, and
    mlx is for MLX-LM. executorch is a program in INT4, with a KV cache, for ExecuTorch's text runner, and takes minutes
    to write.

    Example: mobilemoe export nano --to gguf --out nano.gguf
    """
    if to not in FORMATS:
        raise UsageError(f"--to is {to!r}, but must be one of {', '.join(FORMATS)}")
    if type is not None and to != "gguf":
        raise UsageError(f"--type is for --to gguf: {to} has one type only")
    if context is not None and to != "executorch":
        raise UsageError(f"--context is for --to executorch: {to} leaves it to the runtime")
    folder = newest_model(find_model(model))
    if (folder / DRAFT).exists():
        print(f"note: the draft head ({DRAFT}) is left out, since no other runtime reads it", file=sys.stderr)
    with Progress():
        if to == "gguf":
            from mobilemoe.export.gguf import write_gguf
            from mobilemoe.export.gguf_blocks import Type

            report = write_gguf(folder, out, cast(Type | None, type))
        elif to == "executorch":
            from mobilemoe.export.executorch import write_executorch

            report = write_executorch(folder, out, context)
        elif to == "glm4moe":
            from mobilemoe.export.glm4moe import write_glm4moe

            report = write_glm4moe(folder, out)
        elif to == "compressed-tensors":
            from mobilemoe.export.compressed_tensors import write_compressed_tensors

            report = write_compressed_tensors(folder, out)
        else:
            from mobilemoe.export.mlx import write_mlx

            report = write_mlx(folder, out)
    print_report(out, report, json)
