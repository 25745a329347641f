"""The chat template that a model was trained with is saved with it, wherever the tokenizer kept it."""

import json
import shutil
from pathlib import Path

import pytest

from mobilemoe.chat import CHAT_TEMPLATE, ChatTemplate
from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.data.encoding import open_tokenizer
from mobilemoe.errors import DataError, TokenizerError
from mobilemoe.hub import find_model
from mobilemoe.tokenizer import Tokenizer
from mobilemoe.train.loop import train
from mobilemoe.train.recipe import load_recipe
from train_runs import RECIPE

pytest_plugins = ["cli_calls", "train_runs"]
pytestmark = pytest.mark.usefixtures("quick")

CHAT = [{"role": "user", "content": "Who keeps the light?"}, {"role": "assistant", "content": "Mara, and her cat."}]
OWN = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}<|eot|>{% endfor %}"
OTHER = "{{ bos_token }}{% for m in messages %}({{ m.role }}) {{ m.content }}<|eot|>{% endfor %}"


def tokenizer_folder(folder: Path, config: dict, files: dict[str, str]) -> Path:
    folder.mkdir()
    shutil.copy(find_model("nano") / "tokenizer.json", folder)
    tokens = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, **config}))
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def trained(folder: Path, tmp_path: Path, *more: str) -> Path:
    """The checkpoint of one step on conversations, with the tokenizer in `folder`."""
    (tmp_path / "chats.jsonl").write_text(f"{json.dumps({'messages': CHAT})}\n" * 9)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    changes = [f"tokenizer.path={folder}", f"data.path={tmp_path}", "data.holdout=0", "train.steps=1"]
    changes += ["train.warmup_steps=0", "model.changes.intermediate_size=32"]
    changes += ['data.mixture=[{name = "chat", files = "chats.jsonl", weight = 1}]']
    train(load_recipe(tmp_path / "recipe.toml", [*changes, *more]), tmp_path / "run")
    return newest_model(tmp_path / "run")


PLACES = {
    "a file of its own": ({}, {"chat_template.jinja": OWN}, OWN),
    "two that differ": ({"chat_template": OTHER}, {"chat_template.jinja": OWN}, OWN),
    "the configuration": ({"chat_template": OWN}, {}, OWN),
    "a list": (
        {"chat_template": [{"name": "tool_use", "template": OTHER}, {"name": "default", "template": OWN}]},
        {},
        OWN,
    ),
    "the older file": ({}, {"chat_template.json": json.dumps({"chat_template": OWN})}, OWN),
    "others beside it": ({}, {"chat_template.jinja": OWN, "additional_chat_templates/rag.jinja": OTHER}, OWN),
    "nowhere": ({}, {}, CHAT_TEMPLATE),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_model_chats_in_the_template_that_it_was_trained_with(place, tmp_path, mobilemoe_cli, capsys):
    config, files, source = PLACES[place]
    folder = tokenizer_folder(tmp_path / "tokenizer", config, files)
    checkpoint = trained(folder, tmp_path)
    said = capsys.readouterr().err
    assert said.count("has no chat template") == (place == "nowhere")
    before, after = open_tokenizer(folder)[1], ChatTemplate.load(checkpoint)
    assert before.source == after.source == source
    assert before.named == after.named
    assert before.render(CHAT) == after.render(CHAT)
    assert "chat_template" not in json.loads((checkpoint / "tokenizer_config.json").read_text())

    assert mobilemoe_cli("quantize", tmp_path / "run", tmp_path / "int4").status == 0
    assert mobilemoe_cli("convert", tmp_path / "int4", tmp_path / "engine", "--format", "engine").status == 0
    for copy in (tmp_path / "int4", tmp_path / "engine"):
        assert (ChatTemplate.load(copy).source, ChatTemplate.load(copy).named) == (source, before.named)
    ended = mobilemoe_cli("chat", tmp_path / "engine", "--json", "--max-new-tokens", 2, stdin="Hi\n")
    assert ended.status == 0, ended.err


@pytest.mark.parametrize("source", ["{% for m in messages %}", "{{ 'a' * 10**10 }}", "{% nothing %}"])
@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_broken_template_is_an_error_and_no_reason_to_take_ours(place, source, tmp_path):
    in_config = place == "tokenizer_config.json"
    folder = tokenizer_folder(
        tmp_path / "tokenizer", {"chat_template": source} if in_config else {}, {} if in_config else {place: source}
    )
    with pytest.raises((TokenizerError, DataError), match="the chat template"):
        trained(folder, tmp_path)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_ours_is_not_taken_where_its_control_tokens_are_missing(tmp_path):
    folder = tokenizer_folder(tmp_path / "tokenizer", {}, {})
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|header_start|>", "<|another|>"))
    assert Tokenizer.load(folder).header_start_id is None
    with pytest.raises(DataError, match="neither a chat template nor the control tokens"):
        trained(folder, tmp_path)


ENDS = {
    "<|eot|>": False,
    "<|end_of_text|>": False,
    " <|eom|>": False,
    "": True,
    "<|im_end|>": True,  # no token of this tokenizer
    "<|header_start|>": True,
    " Over.<|eot|>": True,
}


@pytest.mark.parametrize("end", ENDS)
def test_a_template_whose_answers_never_end_is_said(end, tmp_path, capsys):
    source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}" + end + "{% endfor %}"
    folder = tokenizer_folder(tmp_path / "tokenizer", {}, {"chat_template.jinja": source})
    trained(folder, tmp_path, "data.train_on=assistant")
    assert ("will not learn to end its answers" in capsys.readouterr().err) == ENDS[end]
