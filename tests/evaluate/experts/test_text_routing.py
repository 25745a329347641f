"""`mobilemoe info MODEL --routing TEXT`: which experts a text goes to, counted and drawn."""

import json

import numpy as np
import pytest
import torch

from drawn import colours
from mobilemoe.checkpoint import Checkpoint, convert, write_random
from mobilemoe.errors import DataError, UsageError
from mobilemoe.evaluate.experts import text_routing as routing
from mobilemoe.evaluate.experts.text_routing import text_routing
from mobilemoe.model import MobileMoE
from mobilemoe.presets import family_member
from mobilemoe.tokenizer import Tokenizer

LINES = [
    {"text": "One fish.", "domain": "books", "source": "a"},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}], "source": "chat"},
    {"text": "Two fish, red fish, and a long tail of words.", "domain": "books"},
    {"text": "  "},
]


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_counts_are_those_of_the_model(tiny_folder, monkeypatch):
    monkeypatch.setattr(routing, "WINDOW", 8)
    text = "The old man looked at the sea and " * 4
    found = text_routing(tiny_folder, text).report()
    with Checkpoint.open(tiny_folder) as checkpoint:
        model = MobileMoE(checkpoint.config)
        model.load_weights(checkpoint.weight)
    tokenizer = Tokenizer.load(tiny_folder)
    ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.end_of_text_id]
    expected_LE = torch.zeros(2, 6, dtype=torch.long)
    for start in range(0, len(ids), 8):
        with torch.inference_mode():
            _, routings = model.hidden(torch.tensor([ids[start : start + 8]]))
        expected_LE += torch.stack([routing.load_E() for routing in routings])
    assert found["load"] == expected_LE.tolist()
    assert found["load_by_domain"] == {"text": expected_LE.tolist()}
    assert np.sum(found["load"], axis=1).tolist() == [2 * len(ids)] * 2


def test_a_jsonl_file_is_counted_by_domain(tiny_folder, tmp_path):
    found = text_routing(tiny_folder, f"@{write_lines(tmp_path / 't.jsonl', LINES)}").report()
    assert list(found["load_by_domain"]) == ["books", "chat"]
    assert np.array_equal(sum(np.array(load) for load in found["load_by_domain"].values()), found["load"])
    only_chat = text_routing(tiny_folder, f"@{write_lines(tmp_path / 'c.jsonl', LINES[1:2])}").report()
    assert only_chat["load"] == found["load_by_domain"]["chat"]


def test_a_plain_file_is_a_text(tiny_folder, tmp_path):
    (tmp_path / "t.txt").write_text("Once upon a time")
    from_file = text_routing(tiny_folder, f"@{tmp_path / 't.txt'}").report()
    assert from_file == text_routing(tiny_folder, "Once upon a time").report()


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        ([], UsageError, "no text"),
        ([{"text": " "}], UsageError, "no text"),
        ([{"words": "x"}], DataError, "line 1, has neither a string 'text' nor 'messages'"),
        ([["x"]], DataError, "line 1, holds a JSON list, not an object"),
        ([{"messages": [{"role": 1}]}], DataError, "line 1, has no usable conversation"),
    ],
)
def test_a_file_without_texts_is_refused(tiny_folder, tmp_path, lines, error, message):
    with pytest.raises(error, match=message):
        text_routing(tiny_folder, f"@{write_lines(tmp_path / 't.jsonl', lines)}")


def test_the_verb_draws_and_tabulates(mobilemoe_cli, tiny_folder, tmp_path, monkeypatch, figures):
    monkeypatch.chdir(tmp_path)
    ended = mobilemoe_cli("info", tiny_folder, "--routing", "Once upon a time")
    assert ended.status == 0, ended.err
    assert "drawn in routing.png" in ended.out
    assert " of 12 experts touched" in ended.out
    lines = write_lines(tmp_path / "t.jsonl", LINES)
    values = mobilemoe_cli("info", tiny_folder, "--routing", f"@{lines}", "--png", "o.png", "--json").json
    assert values["png"] == "o.png"
    assert all(colours((tmp_path / name).read_bytes()) > 50 for name in ("routing.png", "o.png"))
    of_words, of_lines = figures
    titles = [axes.get_title() for axes in of_lines.axes if axes.get_images()]
    assert titles == ["all: load / mean", "books", "chat"]
    assert len([axes for axes in of_words.axes if axes.get_images()]) == 1
    drawn_LE = of_lines.axes[0].get_images()[0].get_array()
    values_LE = np.array(values["load"])
    np.testing.assert_allclose(drawn_LE, values_LE / values_LE.mean(axis=1, keepdims=True))
    load_LE = np.array(values["load"])
    assert values["touched"] == (load_LE > 0).sum(axis=1).tolist()
    assert values["dead"] == (load_LE == 0).sum(axis=1).tolist()
    assert values["load_variation"] == pytest.approx((load_LE.std(axis=1) / load_LE.mean(axis=1)).tolist())


def test_bf16_weights_are_counted_and_models_without_experts_refused(tiny_folder, tmp_path):
    convert(tiny_folder, tmp_path / "bf16", format="bf16")
    load_LE = np.array(text_routing(tmp_path / "bf16", "Once upon a time").report()["load"])
    assert load_LE.sum(axis=1).tolist() == [2 * 6] * 2
    write_random(tmp_path / "dense", family_member(32, expansion=1, layers=1, vocab_size=96), seed=1, format="bf16")
    with pytest.raises(UsageError, match="no experts"):
        text_routing(tmp_path / "dense", "Once")


def test_a_missing_file_is_one_sentence(fails, tiny_folder):
    assert "nowhere.txt cannot be read" in fails(1, "info", tiny_folder, "--routing", "@nowhere.txt")
