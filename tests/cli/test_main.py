"""Every verb has help, refuses what it cannot do with one line, and never shows a traceback; `info`."""

import shutil

import pytest

import mobilemoe
from cli_calls import RECIPE, recipe_options
from mobilemoe.cli import main as cli_main

VERBS = ["run", "chat", "info", "bench", "train", "quantize", "convert", "eval", "data tokenizer", "data sample"]
VERBS += ["data prepare", "data chats", "data practice", "plan", "fit", "sweep", "profile device", "report"]
VERBS += ["cache ls", "cache rm", "export", "serve", "pull", "ls", "rm", "prune", "tradeoff"]


# Help and wrong usage


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(mobilemoe_cli, verb):
    ended = mobilemoe_cli(*verb.split(), "--help")
    assert ended.status == 0
    assert f"Example: mobilemoe {verb} " in " ".join(ended.out.split())
    assert "--json" in ended.out


def test_every_verb_is_tried_here(mobilemoe_cli):
    names = [command.name for command in cli_main.app.registered_commands]
    names += [
        f"{group.name} {command.name}"
        for group in cli_main.app.registered_groups
        for command in group.typer_instance.registered_commands
    ]
    assert sorted(names) == sorted(VERBS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run"],
        ["run", "MODEL", "x", "--max-new-tokens", "many"],
        ["run", "MODEL", "x", "--max-new-tokens", "0"],
        ["run", "MODEL", "x", "--temperature", "-1"],
        ["run", "MODEL", "x", "--top-p", "nan"],
        ["run", "MODEL", "x", "--stop", ""],
        ["run", "MODEL", "word " * 300],
        ["run", "MODEL", "x", "--nonsense"],
        ["run", "MODEL", "x", "--presence-penalty", "inf"],
        ["run", "MODEL", "x", "--backend", "cuda"],
        ["run", "MODEL", "x", "--backend", "torch", "--activations", "int8"],
        ["run", "MODEL", "x", "--activations", "int4"],
        ["run", "MODEL", "x", "--kv", "int2"],
        ["run", "MODEL", "x", "--threads", "0"],
        ["run", "MODEL", "x", "--quantize", "int8"],
        ["chat"],
        ["info"],
        ["info", "S", "--engine"],
        ["info", "S", "--context", "0"],
        ["info", "S", "--context", "x"],
        ["convert", "MODEL", "OUT"],
        ["convert", "MODEL", "OUT", "--format", "int8"],
        ["convert", "MODEL", "OUT", "--format", "int4", "--group-axis", "up"],
        ["quantize", "MODEL", "OUT", "--group-axis", "up"],
        ["eval", "MODEL"],
        ["eval", "MODEL", "--text", "TEXT", "--window", "0"],
        ["eval", "MODEL", "MODEL", "--text", "TEXT"],
        ["eval", "MODEL", "--text", "TEXT", "--training", "TEXT"],
        ["eval", "MODEL", "--text", "TEXT", "--experts"],
        ["eval", "MODEL", "--text", "TEXT", "--backend", "gguf"],
        ["eval", "MODEL", "--suite", "nonsense"],
        ["eval", "MODEL", "--suite", "piqa", "--limit", "0"],
        ["eval", "MODEL", "--suite", "piqa", "--data", "OUT"],
        ["report"],
        ["train", "RECIPE", "--set", "train.steps"],
        ["data", "sample", "RECIPE", "OUT", "--split", "test"],
        ["data", "sample", "RECIPE", "OUT", "--megabytes", "nan"],
        ["data", "tokenizer", "RECIPE", "OUT", "--megabytes", "inf"],
        ["data", "tokenizer", "RECIPE", "OUT", "--megabytes", "0"],
        ["data", "tokenizer", "RECIPE", "OUT", "--vocab-size", "99999999999999999999"],
    ],
    ids=lambda arguments: " ".join(arguments)[:50],
)
def test_wrong_usage_ends_with_2(fails, tiny_folder, tmp_path, arguments):
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    known = {"MODEL": tiny_folder, "OUT": tmp_path / "out", "RECIPE": RECIPE, "TEXT": tmp_path / "text.jsonl"}
    assert fails(2, *(known.get(argument, argument) for argument in arguments))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "no-model", "x"],
        ["run", "some/one", "x"],
        ["run", "MODEL/config.json", "x"],
        ["run", "EMPTY", "x"],
        ["run", "x" * 5000, "x"],
        ["chat", "no-model"],
        ["info", "no-model"],
        ["info", "EMPTY"],
        ["info", "S", "--verify"],
        ["convert", "no-model", "OUT", "--format", "int4"],
        ["convert", "MODEL", "MODEL/config.json/x", "--format", "int4"],
        ["convert", "MODEL", "/proc/no/x", "--format", "int4"],
        ["convert", "no-model", "OUT", "--format", "engine"],
        ["convert", "EMPTY", "OUT", "--format", "engine"],
        ["convert", "MODEL", "MODEL", "--format", "engine"],
        ["convert", "MODEL", "/proc/no/x", "--format", "engine"],
        ["quantize", "EMPTY", "OUT"],
        ["pull", "no-model"],
        ["rm", "org/none", "--yes"],
        ["eval", "MODEL", "--text", "EMPTY"],
        ["eval", "MODEL", "--text", "EMPTY/none"],
        ["eval", "MODEL", "--suite", "piqa", "--data", "EMPTY"],
        ["eval", "EMPTY/none.gguf", "--suite", "piqa", "--backend", "gguf"],
        ["report", "EMPTY/none.json"],
        ["report", "MODEL/config.json"],
        ["train", "EMPTY"],
        ["train", "MODEL/config.json"],
        ["train", "RECIPE", "--set", "train.steps=-1"],
        ["train", "RECIPE", "--set", "train.stepz=1"],
        ["train", "RECIPE", "--set", "model.changes.nonsense=1"],
        ["train", "RECIPE", "--json", "--out", "OUT", "--set", "data.path=/no/data"],
        ["train", "RECIPE", "--json", "--out", "MODEL/config.json"],
        ["data", "sample", "RECIPE", "EMPTY", "--set", "data.holdout=0.5", "--megabytes", "0.05"],
        ["data", "sample", "RECIPE", "EMPTY", "--split", "train"],
        ["data", "tokenizer", "RECIPE", "OUT", "--vocab-size", "9"],
        ["data", "tokenizer", "EMPTY", "OUT"],
    ],
    ids=lambda arguments: " ".join(arguments)[:50],
)
def test_what_cannot_be_done_ends_with_1_and_one_line(fails, tiny_folder, tmp_path, arguments):
    (tmp_path / "empty").mkdir()

    def known(argument: str) -> str:
        for name, path in {"MODEL": tiny_folder, "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty"}.items():
            argument = argument.replace(name, str(path))
        return str(RECIPE) if argument == "RECIPE" else argument

    before = sorted(tiny_folder.iterdir())
    assert fails(1, *map(known, arguments))
    assert sorted(tiny_folder.iterdir()) == before
    assert not (tmp_path / "out").exists() or arguments[0] == "train"


def test_a_memory_that_is_too_small_is_one_line(fails, tiny_folder, tmp_path):
    huge = ["--set", "model.changes.hidden_size=10000000000"]
    line = fails(1, "train", RECIPE, *recipe_options(tiny_folder), *huge, "--out", tmp_path / "run", "--json")
    assert "memory" in line


# info


@pytest.mark.parametrize(
    ("name", "total", "active", "payload", "kv"),
    [
        ("S", 1_263_374_256, 272_468_736, 713_863_008, 10_240),
        ("M", 2_818_390_552, 528_299_008, 1_590_916_144, 13_312),
        ("L", 5_325_704_320, 921_683_200, 3_004_279_040, 16_384),
    ],
)
def test_info_gives_the_published_numbers(mobilemoe_cli, name, total, active, payload, kv):
    values = mobilemoe_cli("info", name, "--json").json
    assert values["total_parameters"] == total
    assert values["active_parameters"] == active
    assert values["int4_file_bytes"] == payload
    assert values["kv_bytes_per_token"] == kv
    assert values["decode_flops_per_token"] == 2 * active
    shown = mobilemoe_cli("info", name).out
    assert f"{total:,}" in shown
    assert f"{payload:,}" in shown


def test_info_verifies_a_folder(mobilemoe_cli, fails, tiny_folder, tmp_path):
    values = mobilemoe_cli("info", tiny_folder, "--verify", "--json").json
    assert values["verified"] is True
    assert values["file_bytes"] == (tiny_folder / "model.safetensors").stat().st_size
    assert "every hash fits" in mobilemoe_cli("info", tiny_folder, "--verify").out
    damaged = shutil.copytree(tiny_folder, tmp_path / "damaged")
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(data)
    assert "damaged" in fails(1, "info", damaged, "--verify")
    ended = mobilemoe_cli("info", damaged, "--verify", "--json")
    assert (ended.status, ended.json["verified"], ended.json["damaged"]) == (1, False, ["model.safetensors"])
    assert mobilemoe_cli("info", damaged).status == 0
    changed = shutil.copytree(tiny_folder, tmp_path / "changed")
    text = (changed / "config.json").read_text()
    (changed / "config.json").write_text(text + "\n")
    assert "config.json" in fails(1, "info", changed, "--verify")


def test_names_are_shown_as_they_are(mobilemoe_cli, tiny_folder, tmp_path):
    odd = tmp_path / "[red]:smile:[" / "bold]"
    shutil.copytree(tiny_folder, odd)
    shown = mobilemoe_cli("info", odd).out
    assert "[red]:smile:[/bold]" in "".join(shown.split())
    assert "[red]" in mobilemoe_cli("convert", odd, tmp_path / "[red]a", "--format", "int4").out
    ended = mobilemoe_cli("convert", odd, tmp_path / "[" / "red]b", "--format", "bf16")
    assert ended.status == 0
    (tmp_path / "t.jsonl").write_text('{"text": "a", "domain": "[/b]"}\n')
    assert "[/b]" in mobilemoe_cli("eval", tiny_folder, "--text", tmp_path / "t.jsonl").out


def test_info_tells_what_the_engine_computes_with(mobilemoe_cli, fails, monkeypatch, engine_cache):
    values = mobilemoe_cli("info", "--engine", "--json").json
    assert values["isa"] in values["instruction_sets"]
    assert "scalar" in values["instruction_sets"]
    assert values["threads"] >= 1
    assert values["cache"].startswith(str(engine_cache))
    shown = mobilemoe_cli("info", "--engine").out
    assert values["isa"] in shown
    assert "MOBILEMOE_ISA" in shown
    monkeypatch.setenv("MOBILEMOE_ISA", "scalar")
    assert mobilemoe_cli("info", "--engine", "--json").json["isa"] == "scalar"
    monkeypatch.setenv("MOBILEMOE_ISA", "mmx")
    assert "mmx" in fails(2, "info", "--engine")
    assert "mmx" in fails(2, "run", "nano", "x")


def test_the_version_is_printed_without_a_verb(mobilemoe_cli):
    ended = mobilemoe_cli("--version")
    assert (ended.status, ended.out) == (0, f"{mobilemoe.__version__}\n")
