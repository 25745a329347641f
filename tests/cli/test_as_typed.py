"""Sentences name options as people type them, and leave everything else as it is."""

import pytest
import typer

from mobilemoe.cli.as_typed import as_typed, options_of
from mobilemoe.cli.main import app

VERBS = typer.main.get_command(app)
OPTIONS = {name: f"--{name.replace('_', '-')}" for name in ("max_memory", "window", "kv", "backend", "cache_prior")}


@pytest.mark.parametrize(
    ("sentence", "typed"),
    [
        ("max_memory is 10 MB, but needs more", "--max-memory is 10 MB, but needs more"),
        ("the window is 1, but must be from 2 to 8", "--window is 1, but must be from 2 to 8"),
        ("kv is 'x', but `backend` 'torch' has none", "--kv is 'x', but --backend 'torch' has none"),
        ("cache_prior prefers: give max_memory too", "--cache-prior prefers: give --max-memory too"),
        ("a shorter window, such as --window 8", "a shorter window, such as --window 8"),
        ("the window is too long", "the window is too long"),
        (
            "data.max_memory is 5 in my/max_memory/max_memory.toml",
            "data.max_memory is 5 in my/max_memory/max_memory.toml",
        ),
        ("take backend='torch' (--backend torch)", "take backend='torch' (--backend torch)"),
        ("the key 'max_memory' and --max-memory stay", "the key 'max_memory' and --max-memory stay"),
        ("`mobilemoe eval` has `other`", "`mobilemoe eval` has `other`"),
    ],
)
def test_options_are_named_as_typed(sentence, typed):
    assert as_typed(sentence, OPTIONS) == typed


def test_the_options_are_those_of_the_verb_that_was_called():
    assert options_of(VERBS, ["plan", "--train-flops", "8e20"])["train_flops"] == "--train-flops"
    assert options_of(VERBS, ["sweep", "grid.toml"])["set_"] == "--set"
    assert "vocab_size" in options_of(VERBS, ["data", "tokenizer", "recipe.toml"])
    assert "max_memory" not in options_of(VERBS, ["fit", "runs.csv"])
    assert options_of(VERBS, ["no-such-verb"]) == options_of(VERBS, []) == options_of(VERBS, ["--version"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "nano", "Once", "--top-p", "2"), "--top-p is 2.0"),
        (("run", "nano", "Once", "--temperature", "-1"), "--temperature is -1.0"),
        (("run", "nano", "Once", "--max-new-tokens", "0"), "--max-new-tokens is 0"),
        (("run", "nano", "Once", "--kv", "int4"), "--kv is 'int4'"),
        (("run", "nano", "Once", "--speculate", "no"), "--speculate is 'no'"),
        (("run", "nano", "Once", "--threads", "0"), "--threads is 0"),
        (("run", "nano", "Once", "--cache-prior", "0.5"), "--cache-prior prefers experts that are in memory"),
        (("run", "nano", "Once", "--experts-per-token", "9"), "--experts-per-token is 9"),
        (("run", "nano", "Once", "--capacity", "0"), "--capacity is 0.0"),
        (("run", "nano", "Once", "--activations", "fp32", "--kv", "int8"), "--kv is 'int8', but --activations 'fp32'"),
        (
            ("prune", "nano", "--text", "README.md", "--out", "few", "--experts", "18"),
            "--experts is 18, but nano has 18",
        ),
        (("eval", "nano", "--text", "tests/data/heldout.jsonl", "--window", "1"), "--window is 1"),
        (("eval", "nano", "--text", "tests/data/heldout.jsonl", "--backend", "cuda"), "--backend is 'cuda'"),
    ],
)
def test_what_the_package_refuses_is_named_as_it_was_typed(fails, arguments, words):
    assert words in fails(2, *arguments)
