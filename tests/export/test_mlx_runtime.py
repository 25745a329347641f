"""MLX-LM computes what our engine computes from the same weights. `make test-doors`."""

import dataclasses

import numpy as np
import pytest

import mobilemoe
from conversions import INT4_IN, mlx_folder, relative_rms
from mobilemoe.checkpoint import Checkpoint, write_random
from mobilemoe.config_rope import RopeScaling
from mobilemoe.export.mlx import mlx_tensors, write_mlx
from mobilemoe.export.stock_folder import StockWeights
from mobilemoe.hub import find_model
from mobilemoe.tokenizer import Tokenizer
from model_configs import BLENDED_SCALING, GROUPED_QUERIES, NANO_IDS

pytestmark = pytest.mark.runtimes
mx, mlx_lm = pytest.importorskip("mlx.core"), pytest.importorskip("mlx_lm")

FAMILY = dataclasses.replace(
    GROUPED_QUERIES,
    vocab_size=16_384,
    num_hidden_layers=3,
    num_local_experts=12,
    num_experts_per_tok=4,
    max_position_embeddings=4096,
    rope_scaling=RopeScaling(original_max_position_embeddings=64),
    **NANO_IDS,
)
PROMPTS = ("The old man looked at the sea and", "An economy is", "def add(a, b):", "Water freezes", "In 1848")


def loaded(folder, type=mx.float32):
    """The model and the tokenizer of MLX-LM; fp32 holds every stored weight exactly."""
    model, tokenizer = mlx_lm.load(str(folder))
    model.set_dtype(type)
    return model, tokenizer


def logits(model, ids):
    return np.array(model(mx.array([ids]))[0].astype(mx.float32))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rope_scaling": None},
        {"rope_scaling": None, "intermediate_size_mlp": 0, "tie_word_embeddings": False},
        {"intermediate_size_mlp": 0},
        {"qk_norm": "head_weight", "tie_word_embeddings": False},
        {"norm_topk_prob": False, "routed_scaling_factor": 1.5},
        {"rope_scaling": BLENDED_SCALING},
    ],
)
def test_the_familys_shape_gives_the_same_logits(change, conversion, tmp_path):
    folder, config = tmp_path / "ours", dataclasses.replace(FAMILY, **change)
    write_random(folder, config, seed=5, format="int4")
    Tokenizer.load(find_model("nano")).save(folder)
    write_mlx(folder, tmp_path / "theirs")
    ids = np.random.default_rng(6).integers(0, 16_000, 300).tolist()
    theirs, ours = logits(loaded(tmp_path / "theirs")[0], ids), mobilemoe.load(folder, activations="fp32").logits(ids)
    assert np.abs(theirs - ours).max() < 2e-5 * np.abs(ours).max()
    conversion(INT4_IN, mlx_folder(config), relative_rms(theirs, ours), "logits", "mlx-lm")


def test_nano_says_the_same(tmp_path):
    write_mlx(find_model("nano"), tmp_path / "theirs")
    (model, tokenizer), ours = loaded(tmp_path / "theirs"), mobilemoe.load("nano", activations="fp32")
    for prompt in PROMPTS:
        ids = ours.tokenizer.encode(prompt, bos=True)
        assert tokenizer.encode(prompt) == ids
        theirs = "".join(step.text for step in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=24))
        # The detokenizer of MLX-LM leaves out a space before the first word.
        assert theirs.strip() == ours.generate(prompt, max_new_tokens=24, temperature=0.0).strip(), prompt
    assert tokenizer.eos_token_ids == ours.stop_ids


def test_mlx_itself_unpacks_the_same_weights(tmp_path):
    write_mlx(find_model("nano"), tmp_path / "theirs")
    stored = mx.load(str(tmp_path / "theirs" / "model.safetensors"))
    with Checkpoint.open(find_model("nano")) as source:
        stock = StockWeights(source)
        for name, tensor in mlx_tensors(source.config).items():
            w, stem = stored[name], name.removesuffix("weight")
            if w.dtype == mx.uint32:
                scales, biases = (stored[f"{stem}{kind}"].astype(mx.float32) for kind in ("scales", "biases"))
                w = mx.dequantize(w, scales, biases, group_size=32, bits=4)
            assert np.array_equal(np.array(w.astype(mx.float32)), stock.floats(tensor)), name


def test_nano_in_its_own_fp16_stays_near(conversion, tmp_path):
    write_mlx(find_model("nano"), tmp_path / "theirs")
    ours = mobilemoe.load("nano", activations="fp32")
    ids = ours.tokenizer.encode("The king's daughter", bos=True)[:4]  # fp16 is slow on a CPU
    theirs = logits(loaded(tmp_path / "theirs", mx.float16)[0], ids)
    conversion(
        INT4_IN, mlx_folder(ours.config), relative_rms(theirs, ours.logits(ids)), "logits of nano in fp16", "mlx-lm"
    )
    assert np.array_equal(theirs.argmax(1), ours.logits(ids).argmax(1))
