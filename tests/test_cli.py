"""Every verb does what its help says, ends with 0, 1 or 2, and never shows a traceback.

Most calls go through `main` in this process; those that need real pipes and signals start the console script.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import mobilemoe
from conftest import write_model
from mobilemoe.checkpoint import Checkpoint
from mobilemoe.cli import main as cli_main
from mobilemoe.config import ModelConfig

SCRIPT = Path(sys.executable).with_name("mobilemoe")
ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "nano-cpu.toml"
VERBS = ["run", "chat", "info", "train", "quantize", "convert", "eval", "data tokenizer", "data sample"]


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        value = json.loads(self.out.splitlines()[-1])
        assert isinstance(value, dict)
        return value


@pytest.fixture
def mobilemoe_cli(capsys, monkeypatch):
    """Calls a verb as the console script does."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True, raising=False)

    def call(*arguments, stdin: str | bytes = "") -> Ended:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["mobilemoe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli_main.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ended(ended.value.code or 0, out, err)

    return call


@pytest.fixture
def fails(mobilemoe_cli):
    """Calls a verb that must fail with one line; gives that line."""

    def call(status: int, *arguments, **options) -> str:
        ended = mobilemoe_cli(*arguments, **options)
        assert ended.status == status, ended.err
        lines = ended.err.strip().splitlines()
        if status == 1 or lines[-1].startswith("mobilemoe: "):
            assert len(lines) == 1, ended.err
            assert lines[0].startswith("mobilemoe: ")
        return ended.err

    return call


@pytest.fixture(scope="session")
def long_folder(tmp_path_factory) -> Path:
    """A model that writes for many seconds."""
    return write_model(tmp_path_factory.mktemp("models") / "long", max_position_embeddings=8192)


@pytest.fixture
def start(tmp_path):
    """Starts the console script; whatever is still running at the end is killed."""
    running = []

    def call(*arguments, environment=None, **options) -> subprocess.Popen:
        process = subprocess.Popen(
            [SCRIPT, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})},
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        running.append(process)
        return process

    yield call
    for process in running:
        process.kill()
        process.communicate()


def recipe_options(model: Path) -> list[str]:
    """A training run of seconds: `nano-cpu` with the smallest model."""
    changes = ["train.batch_size=2", "train.sequence_length=32", "train.warmup_steps=0", "model.preset=micro"]
    changes += ["model.changes.num_hidden_layers=1", f"tokenizer.path={model}"]
    return [part for change in changes for part in ("--set", change)]


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
        ["chat"],
        ["info", "S", "--context", "0"],
        ["info", "S", "--context", "x"],
        ["convert", "MODEL", "OUT"],
        ["convert", "MODEL", "OUT", "--format", "int8"],
        ["convert", "MODEL", "OUT", "--format", "int4", "--group-axis", "up"],
        ["quantize", "MODEL", "OUT", "--group-axis", "up"],
        ["eval", "MODEL"],
        ["eval", "MODEL", "--text", "TEXT", "--window", "0"],
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
        ["run", "MODEL", "a\udcff"],
        ["run", "x" * 5000, "x"],
        ["chat", "no-model"],
        ["info", "no-model"],
        ["info", "EMPTY"],
        ["info", "S", "--verify"],
        ["convert", "no-model", "OUT", "--format", "int4"],
        ["convert", "MODEL", "MODEL/config.json/x", "--format", "int4"],
        ["convert", "MODEL", "/proc/no/x", "--format", "int4"],
        ["quantize", "EMPTY", "OUT"],
        ["eval", "MODEL", "--text", "EMPTY"],
        ["eval", "MODEL", "--text", "EMPTY/none"],
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


# run and chat


def test_run_continues_a_prompt(mobilemoe_cli, tiny_folder):
    expected = mobilemoe.load(tiny_folder).generate("Once upon", max_new_tokens=8)
    plain = mobilemoe_cli("run", tiny_folder, "Once upon", "--max-new-tokens", 8)
    assert plain.status == 0
    assert plain.out == expected + "\n"
    assert "[8 tokens, " in plain.err
    piped = mobilemoe_cli("run", tiny_folder, "--max-new-tokens", 8, "--json", stdin="Once upon")
    assert piped.out.startswith(expected + "\n")
    values = piped.json
    assert values["text"] == expected
    assert (values["prompt_tokens"], values["new_tokens"], values["finish_reason"]) == (3, 8, "length")
    assert values["prefill_tokens_per_second"] > 0
    assert values["decode_tokens_per_second"] > 0
    assert values["peak_rss_bytes"] > 2**20


def test_run_passes_every_option_on(mobilemoe_cli, tiny_folder):
    options = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 5}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    free = mobilemoe.load(tiny_folder).generate("x", max_new_tokens=12, **options)
    values = mobilemoe_cli("run", tiny_folder, "x", "--max-new-tokens", 12, *flags, "--json").json
    assert values["text"] == free
    stop = free[4:6]
    stopped = mobilemoe_cli("run", tiny_folder, "x", *flags, "--stop", "\0", "--stop", stop, "--json").json
    assert (stopped["text"], stopped["finish_reason"]) == (free[: free.index(stop)], "stop")


def test_one_token_and_an_empty_prompt_are_enough(mobilemoe_cli, tiny_folder):
    values = mobilemoe_cli("run", tiny_folder, "", "--max-new-tokens", 1, "--json").json
    assert (values["prompt_tokens"], values["new_tokens"], values["decode_tokens_per_second"]) == (1, 1, None)


def test_standard_input_that_is_no_text_is_refused(fails, tiny_folder):
    assert "UTF-8" in fails(2, "run", tiny_folder, stdin=b"\xff\xfe")
    assert "UTF-8" in fails(2, "chat", tiny_folder, stdin=b"\xff\xfe\n")


@pytest.fixture
def heard(monkeypatch):
    """The messages that `chat` hands to a model which answers with the number of its turn."""
    calls = []

    class Echo:
        def stream(self, messages, **options):
            calls.append([message["content"] for message in messages])
            return iter(["answer ", str(len(calls))])

    monkeypatch.setattr(mobilemoe, "load", lambda name: Echo())
    return calls


@pytest.mark.parametrize(
    ("typed", "turns"),
    [
        ("a\nb\n", [["a"], ["a", "answer 1", "b"]]),
        ("a\n\n  \nb", [["a"], ["a", "answer 1", "b"]]),
        ("a\n/reset\nb\n", [["a"], ["b"]]),
        ("a\n/exit\nb\n", [["a"]]),
        (" /exit \n", []),
        ("", []),
    ],
)
def test_chat_keeps_the_conversation(mobilemoe_cli, heard, typed, turns):
    ended = mobilemoe_cli("chat", "any", stdin=typed)
    assert ended.status == 0
    assert heard == turns
    assert ended.out == "".join(f"answer {turn}\n" for turn in range(1, len(turns) + 1))


def test_chat_keeps_the_system_message_over_a_reset(mobilemoe_cli, heard):
    mobilemoe_cli("chat", "any", "--system", "Be brief.", stdin="a\n/reset\nb\n")
    assert heard == [["Be brief.", "a"], ["Be brief.", "b"]]


def test_chat_goes_on_when_the_context_is_full(mobilemoe_cli, tiny_folder):
    ended = mobilemoe_cli("chat", tiny_folder, "--max-new-tokens", 4, "--json", stdin=f"Hi\n{'word ' * 300}\nMore\n")
    assert ended.status == 0
    assert "/reset starts anew" in ended.err
    messages = ended.json["messages"]
    assert [message["content"] for message in messages if message["role"] == "user"] == ["Hi", "More"]
    assert messages[1]["content"] == mobilemoe.load(tiny_folder).generate(messages=messages[:1], max_new_tokens=4)


# convert, quantize, train, eval, data


def test_convert_goes_both_ways_and_tells_what_it_cost(mobilemoe_cli, fails, tiny_folder, tmp_path):
    same = mobilemoe_cli("convert", tiny_folder, tmp_path / "same", "--format", "int4", "--json").json
    assert same == {"folder": str(tmp_path / "same"), "lossless": True, "errors": same["errors"]}
    assert (tmp_path / "same/model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()
    assert (tmp_path / "same/tokenizer.json").read_bytes() == (tiny_folder / "tokenizer.json").read_bytes()
    wide = mobilemoe_cli("convert", tiny_folder, tmp_path / "bf16", "--format", "bf16", "--json").json
    assert 0 < wide["errors"]["routed"]["relative_rms"] < 2**-8
    for axis in ("in", "out"):
        target = tmp_path / f"int4-{axis}"
        back = mobilemoe_cli("convert", tmp_path / "bf16", target, "--format", "int4", "--group-axis", axis, "--json")
        assert 0 < back.json["errors"]["attention"]["relative_rms"] < 0.15
        assert ModelConfig.load(target).expert_group_axis == axis
        assert mobilemoe_cli("info", target, "--verify").status == 0
    before = {path.name: path.read_bytes() for path in tmp_path.joinpath("int4-in").iterdir()}
    assert "exists already" in fails(1, "convert", tiny_folder, tmp_path / "int4-in", "--format", "bf16")
    assert {path.name: path.read_bytes() for path in tmp_path.joinpath("int4-in").iterdir()} == before
    assert not list(tmp_path.glob(".*"))


def test_train_then_quantize_then_run(mobilemoe_cli, fails, tiny_folder, tmp_path):
    run = tmp_path / "run"
    options = [*recipe_options(tiny_folder), "--out", run, "--json", "--set", "train.checkpoint_every=2"]
    first = mobilemoe_cli("train", RECIPE, *options, "--set", "train.steps=2")
    assert first.status == 0
    assert first.json["steps"] == 2
    assert first.json["finished"] is True
    again = mobilemoe_cli("train", RECIPE, *options, "--set", "train.steps=3")
    assert (again.json["steps"], Path(again.json["folder"]).name) == (3, "step-00000003")
    assert 0 < again.json["loss"] < 20
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    quantized = mobilemoe_cli("quantize", run, tmp_path / "int4", "--json").json
    assert 0 < quantized["errors"]["embedding"]["relative_rms"] < 0.15
    with Checkpoint.open(tmp_path / "int4") as checkpoint:
        assert checkpoint.config.expert_group_axis == "in"
    assert "exists already" in fails(1, "quantize", run, tmp_path / "int4")
    for model in (run, tmp_path / "int4"):
        assert mobilemoe_cli("run", model, "The", "--max-new-tokens", 2, "--json").json["new_tokens"] == 2


def test_eval_measures_by_source(mobilemoe_cli, tiny_folder, tmp_path):
    text = tmp_path / "t.jsonl"
    text.write_text('{"text": "one", "domain": "a"}\n{"text": "two", "source": "b"}\n')
    values = mobilemoe_cli("eval", tiny_folder, "--text", text, "--window", 64, "--json").json
    assert values["bytes"] == 6
    assert values["by_source"].keys() == {"a", "b"}
    assert values["bits_per_byte"] == pytest.approx(sum(values["by_source"].values()) / 2)
    shown = mobilemoe_cli("eval", tiny_folder, "--text", text)
    assert f"{values['bits_per_byte']:.4f}" in shown.out
    assert shown.err == ""


def test_data_makes_tokenizers_and_samples(mobilemoe_cli, fails, tmp_path):
    options = ["--vocab-size", 400, "--megabytes", 0.02, "--json"]
    made = mobilemoe_cli("data", "tokenizer", RECIPE, tmp_path / "tok", *options)
    assert made.json == {"folder": str(tmp_path / "tok"), "vocab_size": 400}
    assert (tmp_path / "tok/tokenizer.json").exists()
    held = tmp_path / "heldout.jsonl"
    half = ["--set", "data.holdout=0.5", "--megabytes", 0.1]
    assert mobilemoe_cli("data", "sample", RECIPE, held, *half).status == 0
    entries = [json.loads(line) for line in held.read_text().splitlines()]
    assert {entry["domain"] for entry in entries} == {"books", "textbooks", "code", "specs", "docs", "chat"}
    assert held.stat().st_size <= 100_000
    sample = ["data", "sample", RECIPE, tmp_path / "train", "--split", "train", "--megabytes", 0.1]
    assert mobilemoe_cli(*sample, "--json").json["folder"] == str(tmp_path / "train")
    assert len(list((tmp_path / "train").iterdir())) == 6
    assert "exists already" in fails(1, *sample)


# Pipes, encodings and signals


def test_a_reader_that_leaves_is_no_fault(start, long_folder):
    process = start("run", long_folder, "hello", "--max-new-tokens", "8000")
    assert process.stdout.read(5)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(120) in (0, 1)


def test_ctrl_c_ends_run_with_130(start, long_folder):
    process = start("run", long_folder, "hello", "--max-new-tokens", "8000")
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_ctrl_c_ends_an_answer_and_not_the_conversation(start, long_folder):
    process = start("chat", long_folder, "--max-new-tokens", "8000", "--json")
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(b"/exit\n", timeout=120)
    assert (process.returncode, err) == (0, b"")
    assert [message["role"] for message in json.loads(out.splitlines()[-1])["messages"]] == ["user", "assistant"]


def test_ctrl_c_saves_a_training_run(start, tiny_folder):
    options = ["--out", "run", "--json", "--set", "train.steps=100000"]
    process = start("train", RECIPE, *recipe_options(tiny_folder), *options)
    assert b"step 10/" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    values = json.loads(out.splitlines()[-1])
    assert values["finished"] is False
    assert values["steps"] >= 10


def test_closed_narrow_and_full_streams_are_no_fault(start, tiny_folder):
    closed = start("run", tiny_folder, preexec_fn=lambda: os.close(0))
    assert b"standard input is closed" in closed.communicate(timeout=120)[1]
    assert closed.returncode == 2
    options = ["--temperature", "5", "--seed", "1", "--max-new-tokens", "40"]
    narrow = start("run", tiny_folder, "x", *options, environment={"PYTHONIOENCODING": "ascii"})
    out, err = narrow.communicate(timeout=120)
    assert narrow.returncode == 0, err
    assert b"?" in out
    with open("/dev/full", "wb") as full:
        disk = start("info", "S", "--json", stdout=full)
    assert b"No space left" in disk.communicate(timeout=120)[1]
    assert disk.returncode == 1
