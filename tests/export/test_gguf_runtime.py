"""Stock llama.cpp computes what our engine computes from the same weights. `make test-runtimes`."""

import dataclasses

import numpy as np
import pytest

import mobilemoe
from mobilemoe.checkpoint import write_random
from mobilemoe.config_rope import RopeScaling
from mobilemoe.export.gguf import write_gguf
from mobilemoe.hub import find_model
from mobilemoe.tokenizer import Tokenizer
from model_configs import GROUPED_QUERIES
from places import HELDOUT

pytestmark = pytest.mark.runtimes

PROMPTS = [
    *("The old man looked at the sea and", "An economy is", "def add(a, b):", "Once upon a time there was", "In 1848"),
    *("The kettle boiled, and", "Water freezes", "She opened the letter", "import os\n", "The specification says"),
    *("A triangle has", "“Come in,” said", "for i in range(10):", "The king's daughter", "Chapter 1\n\n"),
    *("Light travels", "My dear friend,", "The first rule of", "To install it,", "If you want to learn"),
]
FAMILY = dataclasses.replace(
    GROUPED_QUERIES,
    vocab_size=16_384,
    hidden_size=128,
    num_hidden_layers=3,
    head_dim=64,
    intermediate_size=64,
    intermediate_size_mlp=256,
    num_local_experts=12,
    num_experts_per_tok=4,
    max_position_embeddings=4096,
    eos_token_id=(16379, 16382, 16383),
    rope_scaling=RopeScaling(),
)


def llama(path, context=4096):
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(str(path), n_ctx=context, n_threads=2, logits_all=True, verbose=False, seed=0)


def greedy(model, ids, count):
    found = []
    for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        found.append(token)
        if len(found) == count:
            return found
    return found


def test_nano_says_the_same_and_reads_text_the_same(tmp_path):
    path = tmp_path / "nano.gguf"
    assert write_gguf(find_model("nano"), path).lossless
    theirs, ours = llama(path), mobilemoe.load("nano", activations="fp32")
    same = 0
    for prompt in PROMPTS:
        ids = ours.tokenizer.encode(prompt, bos=True)
        assert theirs.tokenize(prompt.encode(), add_bos=True, special=False) == ids
        theirs.reset()
        theirs.eval(ids)
        a, b = np.array(theirs.scores[len(ids) - 1]), ours.logits(ids)[-1]
        assert np.corrcoef(a, b)[0, 1] > 0.998, prompt  # llama.cpp rounds activations to 8 bits
        top = np.sort(b)[-2:]
        if top[1] - top[0] > 0.5:
            assert a.argmax() == b.argmax(), prompt
        same += int(a.argmax() == b.argmax())
    assert same >= 18


def perplexity(logits_TV, ids):
    logits = np.asarray(logits_TV, np.float64)[:-1]
    logits -= logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(np.exp(-log_p[np.arange(len(ids) - 1), ids[1:]].mean()))


def test_perplexity_is_the_same_within_half_a_percent(tmp_path):
    path = tmp_path / "nano.gguf"
    write_gguf(find_model("nano"), path)
    theirs, ours = llama(path), mobilemoe.load("nano", activations="fp32")
    ids = ours.tokenizer.encode(HELDOUT.read_text()[:40_000], bos=True)
    found = []
    for start in range(0, 3072, 512):
        window = ids[start : start + 512]
        theirs.reset()
        theirs.eval(window)
        found.append((perplexity(theirs.scores[: len(window)], window), perplexity(ours.logits(window), window)))
    a, b = np.exp(np.log(np.array(found)).mean(0))
    assert abs(a / b - 1) < 0.005, (a, b)


@pytest.mark.parametrize("type", ["q8_0", "bf16"])
@pytest.mark.parametrize(
    "change", [{}, {"rope_scaling": None}, {"intermediate_size_mlp": 0}, {"intermediate_size_mlp": 96}]
)
def test_the_familys_shape_gives_the_same_logits_far_into_the_context(change, type, tmp_path):
    config = dataclasses.replace(FAMILY, **change)
    folder, path = tmp_path / "m", tmp_path / "m.gguf"
    write_random(folder, config, seed=5, format="bf16")
    Tokenizer.load(find_model("nano")).save(folder)
    write_gguf(folder, path, type)
    ids = np.random.default_rng(6).integers(0, 16_000, 2_300).tolist()
    theirs, ours = llama(path), mobilemoe.load(folder, backend="torch")
    theirs.eval(ids)
    b_TV = ours.logits(ids)
    for place in (0, 5, 100, 1_000, 2_050, 2_299):
        a, b = np.array(theirs.scores[place]), b_TV[place]
        assert np.corrcoef(a, b)[0, 1] > (0.999 if type == "bf16" else 0.99), place
