"""run, chat, convert, quantize, train, eval and data do what their help says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mobilemoe
from cli_calls import RECIPE, recipe_options
from drawn import curve
from mobilemoe.checkpoint import Checkpoint
from mobilemoe.config import ModelConfig
from mobilemoe.routing import Routing

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
    options |= {"presence_penalty": 0.5, "frequency_penalty": 0.25}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    free = mobilemoe.load(tiny_folder).generate("x", max_new_tokens=12, **options)
    values = mobilemoe_cli("run", tiny_folder, "x", "--max-new-tokens", 12, *flags, "--json").json
    assert values["text"] == free
    stop = free[4:6]
    stopped = mobilemoe_cli("run", tiny_folder, "x", *flags, "--stop", "\0", "--stop", stop, "--json").json
    assert (stopped["text"], stopped["finish_reason"]) == (free[: free.index(stop)], "stop")


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "torch"},
        {"activations": "fp32", "threads": 1},
        {"kv": "fp16", "threads": 3},
        {"quantize": "int4"},
    ],
    ids=str,
)
def test_run_chat_and_eval_compute_as_they_are_told(mobilemoe_cli, monkeypatch, tiny_folder, tmp_path, options):
    taken = []
    load = mobilemoe.load
    monkeypatch.setattr(mobilemoe, "load", lambda name, **given: taken.append(given) or load(name, **given))
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    (tmp_path / "t.jsonl").write_text('{"text": "one"}\n')
    assert mobilemoe_cli("run", tiny_folder, "x", "--max-new-tokens", 2, *flags).status == 0
    assert mobilemoe_cli("chat", tiny_folder, "--max-new-tokens", 2, *flags, stdin="Hi\n").status == 0
    assert mobilemoe_cli("eval", tiny_folder, "--text", tmp_path / "t.jsonl", *flags).status == 0
    assert len(taken) == 3
    for given in taken:
        wanted = {"backend": "native", "routing": Routing(), **options}
        assert {name: value for name, value in given.items() if value is not None} == wanted


@pytest.mark.parametrize("option", [("--top-k", 5), ("--top-p", 0.9), ("--min-p", 0.1), ("--seed", 0)], ids=str)
def test_run_says_that_temperature_0_leaves_no_choice(mobilemoe_cli, tiny_folder, option):
    call = ("run", tiny_folder, "x", "--max-new-tokens", 2, *option)
    assert f"the likeliest token is always taken, whatever {option[0]} may be" in mobilemoe_cli(*call).err
    assert "warning" not in mobilemoe_cli(*call, "--temperature", 0.7).err


def test_one_token_and_an_empty_prompt_are_enough(mobilemoe_cli, tiny_folder):
    values = mobilemoe_cli("run", tiny_folder, "", "--max-new-tokens", 1, "--json").json
    assert (values["prompt_tokens"], values["new_tokens"], values["decode_tokens_per_second"]) == (1, 1, None)


def test_standard_input_that_is_no_text_is_refused(fails, tiny_folder):
    assert "UTF-8" in fails(2, "run", tiny_folder, stdin=b"\xff\xfe")


def test_standard_input_that_is_no_text_is_refused_without_a_locale_too(tiny_folder):
    command = [sys.executable, "-m", "mobilemoe", "run", str(tiny_folder)]
    done = subprocess.run(command, input=b"a\xff", capture_output=True, env=os.environ | {"LC_ALL": "C"}, check=False)
    assert (done.returncode, done.stderr) == (2, b"mobilemoe: standard input is not UTF-8 text\n")


@pytest.fixture
def heard(monkeypatch):
    """The messages that `chat` hands to a model which answers with the number of its turn."""
    calls = []

    class Echo:
        def stream(self, messages, **options):
            calls.append([message["content"] for message in messages])
            return iter(["answer ", str(len(calls))])

    monkeypatch.setattr(mobilemoe, "load", lambda name, **options: Echo())
    return calls


@pytest.mark.parametrize(
    ("typed", "turns"),
    [
        ("a\nb\n", [["a"], ["a", "answer 1", "b"]]),
        ("a\n\n  \nb", [["a"], ["a", "answer 1", "b"]]),
        ("a\n/reset\nb\n", [["a"], ["b"]]),
        ("a\n/exit\nb\n", [["a"]]),
        (" /exit \n", []),
        ("a\r\nb\r\n", [["a"], ["a", "answer 1", "b"]]),
        ("/exit\r\n", []),
        ("\ufeffa\n\ufeffb\n", [["a"], ["a", "answer 1", "\ufeffb"]]),
        ("", []),
    ],
)
def test_chat_keeps_the_conversation(mobilemoe_cli, heard, typed, turns):
    ended = mobilemoe_cli("chat", "any", stdin=typed)
    assert ended.status == 0
    assert heard == turns
    assert ended.out == "".join(f"answer {turn}\n" for turn in range(1, len(turns) + 1))


def test_chat_leaves_out_a_line_that_is_no_text(mobilemoe_cli, heard):
    ended = mobilemoe_cli("chat", "any", stdin=b"a\n\xff\xfe\n\xc5\xbc\n")
    assert ended.status == 0
    assert heard == [["a"], ["a", "answer 1", "\u017c"]]
    assert ended.err == "(a line that is not UTF-8 text is left out)\n"


def test_a_byte_order_mark_is_no_part_of_a_prompt(mobilemoe_cli, tiny_folder):
    outputs = [mobilemoe_cli("run", tiny_folder, stdin=mark + b"Hello").out for mark in (b"", b"\xef\xbb\xbf")]
    assert outputs[0] == outputs[1]


def test_convert_names_every_format(fails, tiny_folder, tmp_path):
    said = fails(2, "convert", tiny_folder, tmp_path / "out", "--format", "gguf")
    assert "--format is 'gguf', but must be one of bf16, int4, engine" in said


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


def test_convert_to_an_engine_file_keeps_the_model(mobilemoe_cli, fails, tiny_folder, tmp_path):
    target = tmp_path / "engine"
    done = mobilemoe_cli("convert", tiny_folder, target, "--format", "engine", "--json").json
    assert done == {"folder": str(target), "lossless": True, "errors": {}}
    names = {path.name for path in tiny_folder.iterdir()} - {"model.safetensors"} | {"model.mobilemoe"}
    assert {path.name for path in target.iterdir()} == names
    shown = [mobilemoe_cli("run", model, "Once", "--max-new-tokens", 8).out for model in (tiny_folder, target)]
    assert shown[0] == shown[1]
    values = mobilemoe_cli("info", target, "--json").json
    assert (values["files"], values["file_bytes"]) == (["model.mobilemoe"], (target / "model.mobilemoe").stat().st_size)
    assert "model.mobilemoe" in mobilemoe_cli("info", target).out
    assert "exists already" in fails(1, "convert", tiny_folder, target, "--format", "engine")
    assert mobilemoe_cli("convert", tiny_folder, tmp_path / "bf16", "--format", "bf16").status == 0
    assert "--format int4" in fails(2, "convert", tmp_path / "bf16", tmp_path / "no", "--format", "engine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bf16", "engine"]


def test_quantize_takes_the_axis_that_the_run_was_trained_for(mobilemoe_cli, tiny_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_folder, run)
    for axis in ("out", "in"):
        (run / "recipe.json").write_text(json.dumps({"qat": {"group_axis": axis}}))
        assert mobilemoe_cli("quantize", run, tmp_path / axis).status == 0
        assert ModelConfig.load(tmp_path / axis).expert_group_axis == axis
    assert mobilemoe_cli("quantize", run, tmp_path / "asked", "--group-axis", "out").status == 0
    assert ModelConfig.load(tmp_path / "asked").expert_group_axis == "out"


def test_train_then_quantize_then_run(mobilemoe_cli, fails, tiny_folder, tmp_path, figures):
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
    assert [x for x, _ in curve(figures[-2].axes[0], "training, each step")] == [row["tokens"] / 1e6 for row in rows]
    quantized = mobilemoe_cli("quantize", run, tmp_path / "int4", "--json").json
    assert 0 < quantized["errors"]["embedding"]["relative_rms"] < 0.15
    with Checkpoint.open(tmp_path / "int4") as checkpoint:
        assert checkpoint.config.expert_group_axis == "in"
    assert "exists already" in fails(1, "quantize", run, tmp_path / "int4")
    line = fails(2, "run", run, "The")
    assert "--quantize int4" in line
    assert "--backend torch" in line
    for model, *flags in ((tmp_path / "int4",), (run, "--quantize", "int4"), (run, "--backend", "torch")):
        assert mobilemoe_cli("run", model, "The", "--max-new-tokens", 2, "--json", *flags).json["new_tokens"] == 2


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
    assert "exists already" in fails(1, "data", "sample", RECIPE, held, *half)
    assert "exists already" in fails(1, "data", "tokenizer", RECIPE, tmp_path / "tok", *options)
