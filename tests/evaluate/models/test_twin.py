"""A second opinion on scores: the harness's own Hugging Face model, given the same weights as a Glm4Moe."""

import json
from pathlib import Path

import pytest

import mobilemoe
from mobilemoe.hub import ASSETS
from places import HELDOUT

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("lm_eval")

import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from glm import glm
from mobilemoe.evaluate.models.harness import HarnessModel
from tiny_model import write_model

WAYS = {"torch": {"backend": "torch"}, "native": {"activations": "fp32", "threads": 1}}


def asks(kind, arguments):
    return [Instance(kind, doc={}, arguments=each, idx=0) for each in arguments]


def twin(folder: Path):
    """lm_eval's own model over transformers' Glm4Moe with the weights and the tokenizer in `folder`."""
    ours = mobilemoe.load(folder, backend="torch")
    theirs = glm(ours.backend.model).float()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    theirs.generation_config.eos_token_id = sorted(ours.stop_ids)
    return HFLM(pretrained=theirs, tokenizer=tokenizer, batch_size=16)


def texts() -> list[str]:
    lines = HELDOUT.read_text(encoding="utf-8").splitlines()
    return [entry["text"] for entry in map(json.loads, lines) if entry.get("text")]


def questions(count: int, words: int) -> list[tuple[str, str]]:
    """(context, continuation) of real text, four continuations to each context; some have none, or end in a blank."""
    found = []
    for at, text in enumerate(texts() * 9):
        piece = text.split(" ")[at % 50 :][: 2 + 37 * at % words]
        choices = [" ".join(other.split(" ")[at % 7 :][: 1 + at % 5]) for other in texts()[:4]]
        context = ("", " ".join(piece), " ".join(piece) + " ")[min(at % 9, 2) if at % 9 < 3 else 1]
        found += [(context, choice if context.endswith(" ") or not context else f" {choice}") for choice in choices]
    return [(context, choice) for context, choice in found if choice.strip()][:count]


def check(folder: Path, way: str, tmp_path: Path, *, pairs: int, words: int, rolling: list[str], prompts: int) -> None:
    ours, theirs = HarnessModel(folder, cache_dir=tmp_path, **WAYS[way]), twin(folder)
    asked = asks("loglikelihood", questions(pairs, words))
    assert len(asked) == pairs
    a, b = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    assert [score for score, _ in a] == pytest.approx([score for score, _ in b], abs=1e-3)
    assert [greedy for _, greedy in a] == [greedy for _, greedy in b]
    chosen = [[max(range(4), key=lambda k: found[at + k][0]) for at in range(0, pairs, 4)] for found in (a, b)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) > 1
    assert (ours.left_truncations > 9) == (words > ours.max_length)
    asked = asks("loglikelihood_rolling", [(text,) for text in rolling])
    a, b = ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    assert a == pytest.approx(b, abs=1e-3, rel=1e-6)
    settings = [{"until": ["\n", "."], "max_gen_toks": 24}, {"until": ["the"], "do_sample": False, "max_gen_toks": 12}]
    starts = [" ".join(text.split(" ")[: 3 + at]) for at, text in enumerate((texts() * 9)[:prompts])]
    asked = asks("generate_until", [(start, settings[at % 2]) for at, start in enumerate(starts)])
    a, b = ours.generate_until(asked), theirs.generate_until(asked, disable_tqdm=True)
    assert a == b
    assert len(set(a)) > 1


@pytest.mark.parametrize("way", WAYS)
def test_scores_of_a_random_model_are_those_of_the_hugging_face_path(way, tmp_path):
    folder = write_model(tmp_path / "model", seed=5)
    long = " ".join(texts())[:4000]  # several windows of its context of 256, where a question may be cut too
    check(folder, way, tmp_path / "kept", pairs=240, words=300, rolling=[long, "Short."], prompts=24)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_scores_of_the_bundled_model_are_those_of_the_hugging_face_path(way, tmp_path):
    check(ASSETS / "nano", way, tmp_path, pairs=400, words=60, rolling=texts()[:8], prompts=40)
