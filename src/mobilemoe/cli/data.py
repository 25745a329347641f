"""`mobilemoe data ...`: tokenizers and samples from training text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobilemoe.cli.options import JsonOption, RecipeArgument, SetOption, print_json, read_recipe
from mobilemoe.errors import DataError, UsageError
from mobilemoe.files import refuse_existing

app = typer.Typer(help="Tokenizers and samples from training text.", no_args_is_help=True)


@app.command("tokenizer")
def tokenizer(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write tokenizer.json into.")],
    vocab_size: Annotated[int, typer.Option(max=2**24, help="Ids in all, the special ones included.")] = 16_384,
    megabytes: Annotated[float, typer.Option(help="Text to learn from, in MB, by the mixture's weights.")] = 50.0,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Train a byte-level BPE tokenizer on a recipe's training text.

    Example: mobilemoe data tokenizer recipes/nano-cpu.toml my-tokenizer --vocab-size 8192
    """
    from mobilemoe.chat import CHAT_TEMPLATE
    from mobilemoe.data.mixture import build_mixture
    from mobilemoe.data.train_tokenizer import mixture_texts, train_tokenizer

    _check_size(megabytes)
    refuse_existing(out / "tokenizer.json", DataError)
    mixture = build_mixture(read_recipe(recipe, set_).data, Path.cwd())
    texts = mixture_texts(mixture, int(megabytes * 1e6))
    trained = train_tokenizer(texts, vocab_size)
    trained.save(out, chat_template=CHAT_TEMPLATE)
    if json:
        print_json({"folder": str(out), "vocab_size": trained.vocab_size})
    else:
        print(f"{out}: {trained.vocab_size:,} ids")


@app.command("sample")
def sample(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder for train, a .jsonl file for heldout.")],
    split: Annotated[str, typer.Option(help="train, or heldout: documents that training never sees.")] = "heldout",
    megabytes: Annotated[float, typer.Option(help="Size of the sample in MB, in equal parts per source.")] = 0.48,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Write a small balanced sample of a recipe's text, for tests and validation.

    Example: mobilemoe data sample recipes/nano-cpu.toml heldout.jsonl --set data.path=DIR
    """
    from mobilemoe.data.sample import write_sample
    from mobilemoe.data.sources import SPLITS

    _check_size(megabytes)
    refuse_existing(out, DataError)
    if split not in SPLITS:
        raise UsageError(f"--split is {split}, but must be {' or '.join(SPLITS)}")
    loaded = read_recipe(recipe, set_)
    write_sample(loaded.data, Path.cwd(), out, int(megabytes * 1e6), split)
    print_json({"folder": str(out)}) if json else print(f"written: {out}")


def _check_size(megabytes: float) -> None:
    if not 0 < megabytes < float("inf"):
        raise UsageError(f"--megabytes is {megabytes}, but must be a positive number")
