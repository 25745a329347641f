"""`mobilemoe prune` does what its help says, and refuses what it cannot do in one sentence, with nothing written."""

import json
import os
import shutil

import numpy as np
import pytest

from mobilemoe.checkpoint import convert, write_random
from mobilemoe.checkpoint.container import write_safetensors
from mobilemoe.checkpoint.draft import DRAFT, DraftShape, write_draft
from mobilemoe.config import ModelConfig
from mobilemoe.engine import write_engine_folder
from mobilemoe.load import load
from mobilemoe.presets import family_member
from tiny_model import write_model

LINE = json.dumps({"text": "The branch of a tree is where the bird sat. " * 3})


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text((LINE + "\n") * 3)
    return path


def left_in(folder):
    return sorted(path.name for path in folder.iterdir() if "few" in path.name)


def test_prune_then_run(mobilemoe_cli, tiny_folder, text, tmp_path):
    ended = mobilemoe_cli("prune", tiny_folder, "--text", text, "--experts", 3, "--out", tmp_path / "few", "--json")
    assert ended.status == 0, ended.err
    assert [len(kept) for kept in ended.json["kept"]] == [3, 3]
    assert ended.json["after"]["bytes"] < ended.json["before"]["bytes"]
    assert "another text of the domain could choose others" in ended.err
    assert ModelConfig.load(tmp_path / "few").num_local_experts == 3
    assert mobilemoe_cli("info", tmp_path / "few", "--verify").status == 0
    assert mobilemoe_cli("run", tmp_path / "few", "the", "--max-new-tokens", 3).status == 0
    merged = mobilemoe_cli("prune", tiny_folder, "--text", text, "--experts", 3, "--out", tmp_path / "m", "--merge")
    assert merged.status == 0, merged.err
    assert "bits per byte, the text's held-out part" in merged.out
    assert (tmp_path / "m/model.safetensors").stat().st_size == (tmp_path / "few/model.safetensors").stat().st_size


def test_a_bf16_model_stays_bf16(mobilemoe_cli, tiny_folder, text, tmp_path):
    convert(tiny_folder, tmp_path / "bf16", format="bf16")
    ended = mobilemoe_cli("prune", tmp_path / "bf16", "--text", text, "--experts", 4, "--out", tmp_path / "few")
    assert ended.status == 0, ended.err
    assert not ModelConfig.load(tmp_path / "few").is_quantized


def test_texts_may_be_several_files_and_folders_of_all_kinds(mobilemoe_cli, tiny_folder, text, tmp_path):
    folder = tmp_path / "folder" / "inner"
    folder.mkdir(parents=True)
    (folder / "a.md").write_text("# Birds\n\nThey sing in the branches.\n")
    (folder / "b.py").write_text("birds = ['robin', 'wren']\n")
    arguments = ["--text", text, "--text", tmp_path / "folder", "--other", folder / "b.py", "--experts", 4]
    ended = mobilemoe_cli("prune", tiny_folder, *arguments, "--out", tmp_path / "few", "--json")
    assert ended.status == 0, ended.err
    assert set(ended.json["before"]["bits_per_byte"]) == {"the text's held-out part", "b.py"}


CARD = """---
license: cc-by-4.0
---
# Whole

Knows | birds.

```sh
# no heading
```
"""


def test_the_card_is_that_of_the_pruned_model_and_keeps_licence_and_attributions(
    mobilemoe_cli, tiny_folder, text, tmp_path
):
    source = tmp_path / "whole"
    shutil.copytree(tiny_folder, source)
    (source / "README.md").write_text(CARD)
    options = ["--text", text, "--experts", 4]
    found = mobilemoe_cli("prune", source, *options, "--out", tmp_path / "few", "--json").json
    card = (tmp_path / "few/README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n---\n# few\n")
    assert "in each layer stay the 4 of 6 routed experts" in card
    assert f"by {found['tokens']:,} tokens of `text.jsonl`" in card
    assert f"- layer 1: {', '.join(map(str, found['kept'][1]))}" in card
    scores = [found[when]["bits_per_byte"]["the text's held-out part"] for when in ("before", "after")]
    assert f"| bits per byte, the text's held-out part | {scores[0]:.4f} | {scores[1]:.4f} |" in card
    assert card.index("are those of all experts") < card.index("## Whole\n\nKnows | birds.")
    assert "\n# no heading\n" in card
    mobilemoe_cli("prune", tmp_path / "few", "--text", text, "--experts", 3, "--out", tmp_path / "fewer")
    again = (tmp_path / "fewer/README.md").read_text()
    assert "in each layer stay the 3 of 4 routed experts" in again
    assert "## few\n" in again
    assert "### Whole\n" in again
    (source / "README.md").write_bytes(b"\xff")
    assert "README.md is not UTF-8" in mobilemoe_cli("prune", source, *options, "--out", tmp_path / "no").err


def test_a_draft_head_goes_along_and_changes_no_text(mobilemoe_cli, text, tmp_path):
    source = write_model(tmp_path / "whole")
    config = ModelConfig.load(source)
    rng = np.random.default_rng(0)
    shape = DraftShape(config.hidden_size, 64, 32)
    parts = {name: rng.normal(0, 0.1, size).astype(np.float32) for name, size in shape.matrices.items()}
    write_draft(source / DRAFT, parts.__getitem__, np.arange(32))
    ended = mobilemoe_cli("prune", source, "--text", text, "--experts", 4, "--out", tmp_path / "few")
    assert "the draft head (draft.safetensors) of the whole model is kept" in ended.err
    assert "The draft head is that of the whole model." in (tmp_path / "few/README.md").read_text()
    drafted, plain = (load(tmp_path / "few", speculate=how) for how in ("draft", "off"))
    assert drafted.generate("the bird", max_new_tokens=40) == plain.generate("the bird", max_new_tokens=40)
    assert drafted.engine.drafts.proposed > 0
    os.truncate(source / DRAFT, 100)
    refused = mobilemoe_cli("prune", source, "--text", text, "--experts", 4, "--out", tmp_path / "no")
    assert (refused.status, "draft.safetensors" in refused.err) == (1, True)
    assert not (tmp_path / "no").exists()


REFUSED = {
    "more experts than there are": (2, ["--experts", "7"], "6 in a layer"),
    "as many as there are": (2, ["--experts", "6"], "give fewer"),
    "fewer than a token needs": (2, ["--experts", "1"], "sends each token to 2"),
    "none": (2, ["--experts", "0"], "--experts"),
    "no whole number": (2, ["--experts", "2.5"], "--experts"),
    "no number": (2, ["--experts", "many"], "--experts"),
    "a text that is not there": (1, ["--text", "none.txt"], "none.txt does not exist"),
    "a device": (1, ["--text", "/dev/zero"], "is no regular file"),
    "an empty text": (1, ["--text", "empty.txt"], "there is no text in it"),
    "one line": (1, ["--text", "line.txt"], "too short"),
    "an empty folder": (1, ["--text", "empty"], "empty"),
    "no text": (1, ["--text", "noise.bin"], "no known kind"),
    "bytes that are no text": (1, ["--text", "noise.txt"], "not UTF-8"),
    "another text that is not there": (1, ["--other", "none.txt"], "none.txt does not exist"),
    "a damaged line": (1, ["--text", "damaged.jsonl"], "damaged.jsonl, line 2"),
    "an output that exists": (1, ["--out", "."], "exists already"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(name, fails, tiny_folder, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for made, data in {
        "empty.txt": b"",
        "line.txt": b"one line\n",
        "noise.bin": bytes(range(256)),
        "noise.txt": b"caf\xe9 noir",
        "damaged.jsonl": LINE.encode() + b"\n{",
    }.items():
        (tmp_path / made).write_bytes(data)
    (tmp_path / "empty").mkdir()
    status, changes, said = REFUSED[name]
    options = {"--text": str(text), "--experts": "4", "--out": "few"} | dict(
        zip(changes[::2], changes[1::2], strict=True)
    )
    line = fails(status, "prune", tiny_folder, *(part for option in options.items() for part in option))
    assert said in " ".join(line.replace("│", " ").split())
    assert left_in(tmp_path) == []


def test_models_that_cannot_be_pruned_are_refused(fails, text, tiny_folder, tmp_path):
    options = ["--text", text, "--experts", "4", "--out", tmp_path / "few"]
    dense = tmp_path / "dense"
    write_random(dense, family_member(32, expansion=1, layers=1, vocab_size=96), seed=1, format="int4")
    assert "dense is a dense model" in fails(2, "prune", dense, *options)
    assert "no-model" in fails(1, "prune", "no-model", *options)
    cut = write_model(tmp_path / "cut")
    os.truncate(cut / "model.safetensors", 100_000)
    assert "cut short" in fails(1, "prune", cut, *options)
    write_engine_folder(tiny_folder, tmp_path / "engine")
    assert "engine holds an engine file" in fails(1, "prune", tmp_path / "engine", *options)
    bare = write_model(tmp_path / "bare", tokenizer=False)
    assert "tokenizer" in fails(1, "prune", bare, *options)
    convert(tiny_folder, tmp_path / "learnt", format="bf16")
    write_safetensors(
        tmp_path / "learnt/extra.safetensors", {"a_scale": ("F32", (1,))}, lambda _: np.ones(1, np.float32)
    )
    assert "`mobilemoe quantize` it" in fails(1, "prune", tmp_path / "learnt", *options)
    assert left_in(tmp_path) == []


def test_a_place_that_takes_no_folder_is_refused_before_long_work(fails, tiny_folder, text, monkeypatch):
    import mobilemoe.prune.prune as module

    monkeypatch.setattr(module, "measure_use", lambda *_, **__: pytest.fail("long work has begun"))
    place = text / "few"
    assert text.name in fails(1, "prune", tiny_folder, "--text", text, "--experts", 4, "--out", place)


@pytest.mark.parametrize("where", ["measure_use", "write_pruned", "pruned_card"])
def test_an_interrupt_leaves_nothing(where, mobilemoe_cli, tiny_folder, text, tmp_path, monkeypatch):
    import mobilemoe.prune.prune as module
    from mobilemoe.checkpoint import writing

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    if where != "write_pruned":
        monkeypatch.setattr(module, where, interrupt)
    else:  # the weights are written, and the folder does not have its name yet
        monkeypatch.setattr(writing, "copy_companions", interrupt)
    ended = mobilemoe_cli("prune", tiny_folder, "--text", text, "--experts", 4, "--out", tmp_path / "few")
    assert ended.status == 130
    assert ended.err.splitlines()[-1] == "mobilemoe: interrupted"
    assert left_in(tmp_path) == []
