"""`mobilemoe data ...`: tokenizers, samples, token shards and conversations from training text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from mobilemoe.cli.options import JsonOption, RecipeArgument, SetOption, print_json, read_recipe
from mobilemoe.counted import counted
from mobilemoe.errors import DataError, UsageError
from mobilemoe.files import refuse_existing
from mobilemoe.progress import Progress

MOST_MEGABYTES = 1e9  # a petabyte
app = typer.Typer(help="Make tokenizers, samples, token shards and conversations for training.", no_args_is_help=True)


@app.command("tokenizer")
def tokenizer(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder for tokenizer.json.")],
    vocab_size: Annotated[int, typer.Option(max=2**24, help="Number of ids, special tokens included.")] = 16_384,
    megabytes: Annotated[
        float, typer.Option(help="Amount of text to learn from in MB, by the mixture's weights.")
    ] = 50.0,
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
    with Progress() as progress:
        trained = train_tokenizer(texts, vocab_size, on_progress=progress.counter("bytes of text"))
    trained.save(out, chat_template=CHAT_TEMPLATE)
    if json:
        print_json({"folder": str(out), "vocab_size": trained.vocab_size})
    else:
        print(f"{out}: {trained.vocab_size:,} ids")


@app.command("sample")
def sample(
    recipe: RecipeArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="What to write: a folder for train, a .jsonl file for heldout.")
    ],
    split: Annotated[str, typer.Option(help="train, or heldout (documents that training never sees).")] = "heldout",
    megabytes: Annotated[float, typer.Option(help="Size of the sample in MB, in equal parts from all sources.")] = 0.48,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Write a small sample of a recipe's text, balanced over its sources, for tests and validation.

    Example: mobilemoe data sample recipes/nano-cpu.toml my-sample --split train
    """
    from mobilemoe.data.sample import write_sample
    from mobilemoe.data.sources import SPLITS

    _check_size(megabytes)
    refuse_existing(out, DataError)
    if split not in SPLITS:
        raise UsageError(f"--split is {split}, but must be {' or '.join(SPLITS)}")
    loaded = read_recipe(recipe, set_)
    with Progress() as progress:
        told = progress.counter("documents")
        write_sample(loaded.data, Path.cwd(), out, int(megabytes * 1e6), split, on_progress=told)
    print_json({"folder": str(out)}) if json else print(f"written: {out}")


@app.command("prepare")
def prepare(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create for the shards.")],
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Tokenise and shuffle a recipe's training text once, into shards that load faster and take less space.

    To train on the shards, set data.path=OUT and files = "NAME-*.npz" for each source NAME of the mixture. They hold
    the text that is not held out, with the recipe's tokenizer and chat template, in an order that data.seed decides.

    Example: mobilemoe data prepare recipes/nano-cpu.toml tokens
    """
    from mobilemoe.data.encoding import open_tokenizer
    from mobilemoe.data.prepare import prepare as write_shards

    refuse_existing(out, DataError)
    loaded = read_recipe(recipe, set_)
    tokenizer, template = open_tokenizer(loaded.tokenizer.path)
    began = time.monotonic()
    with Progress() as progress:

        def told(what: str, tokens: int) -> None:
            progress.tell(tokens, None, what)

        index = write_shards(loaded.data, Path.cwd(), out, tokenizer, template, on_progress=told)
    tokens = {name: source["tokens"] for name, source in index["sources"].items()}
    speed = sum(tokens.values()) / (time.monotonic() - began)
    if json:
        print_json({"folder": str(out), "tokens": tokens, "tokens_per_second": round(speed)})
    else:
        for name, count in tokens.items():
            print(f"{name}: {counted(count, 'token')}")
        print(f"written: {out} ({speed:,.0f} tokens/s)")


@app.command("chats")
def chats(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="Files of conversations: .jsonl, also .gz and .zst.")
    ],
    out: Annotated[Path, typer.Option(help="The .jsonl file to write.")],
    seed: Annotated[int, typer.Option(help="Seed that decides which conversations are joined.")] = 0,
    holdout: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share held out, as data.holdout of the recipe (default: that of recipes)."),
    ] = None,
    apart_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Leave out near copies of the conversations in FILE.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Join conversations of one turn into some with 2 to 4 turns, and add a system message to some of them.

    Conversations that are held out for validation are left out. To train on the result, use it in a recipe as a source
    with files = "OUT".

    Example: mobilemoe data chats recipes/data/chat-00.jsonl --out chats.jsonl --seed 1
    """
    from mobilemoe.data.chats import write_chats
    from mobilemoe.data.sources import HOLDOUT

    counts = write_chats(files, out, seed, HOLDOUT if holdout is None else holdout, apart_from)
    if json:
        print_json({"file": str(out), **counts})
    else:
        print(", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))
        print(f"written: {out}")


@app.command("practice")
def practice(
    out: Annotated[Path, typer.Option(help="The .jsonl file to write.")],
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of conversations.")] = 40_000,
    seed: Annotated[int, typer.Option(help="Seed that decides which conversations are made.")] = 0,
    passages: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Texts to ask questions about, .jsonl or .jsonl.zst (repeatable)."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make conversations by rule: small sums, reading a passage, remembering what was said, saying what it cannot do.

    To train on the result, use it in a recipe as a source with files = "OUT".

    Example: mobilemoe data practice --out practice-00.jsonl --seed 1
    """
    from mobilemoe.data.practice.write import write_practice

    counts = write_practice(out, count, seed, passages or [])
    if json:
        print_json({"file": str(out), **counts})
    else:
        print(", ".join(f"{number:,} {kind}" for kind, number in counts.items()))
        print(f"written: {out}")


def _check_size(megabytes: float) -> None:
    if not 1e-6 <= megabytes <= MOST_MEGABYTES:
        raise UsageError(f"--megabytes is {megabytes}, but must be from 0.000001 (a byte) to {MOST_MEGABYTES:,.0f}")
