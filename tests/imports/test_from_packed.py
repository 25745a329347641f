"""INT4 that `export` wrote for compressed-tensors or MLX comes back bit for bit; other packings are refused."""

import dataclasses
import json

import numpy as np
import pytest

from checkpoint_models import assert_same_tensors
from conversions import INT4_IN, INT4_OUT, mlx_folder
from mobilemoe.checkpoint import SafetensorsFile, convert, int4, write_random, write_safetensors
from mobilemoe.config_rope import RopeScaling
from mobilemoe.errors import MobileMoEError
from mobilemoe.export.compressed_tensors import write_compressed_tensors
from mobilemoe.export.mlx import write_mlx
from mobilemoe.hub import find_model
from mobilemoe.imports.int4_search import find_int4
from mobilemoe.imports.transformers import convert_transformers
from mobilemoe.tokenizer import Tokenizer
from model_configs import GROUPED_QUERIES, NANO_IDS, but

pytest_plugins = ["cli_calls"]

WRITERS = {"compressed-tensors": write_compressed_tensors, "mlx": write_mlx}
OURS = but(GROUPED_QUERIES, vocab_size=16_384, **NANO_IDS)
CHANGES = {
    "shared": {},
    "no shared expert": {"intermediate_size_mlp": 0},
    "learnt norms": {"qk_norm": "head_weight"},
    "scaled RoPE": {"rope_scaling": RopeScaling()},
    "scaled RoPE, own head": {"rope_scaling": RopeScaling(), "tie_word_embeddings": False},
    "own head, not normalised": {"tie_word_embeddings": False, "norm_topk_prob": False, "routed_scaling_factor": 1.5},
}


def name_of(target, change=()):
    return mlx_folder(dataclasses.replace(OURS, **dict(change))) if target == "mlx" else target


def make(folder, change=()):
    """An INT4 model as `mobilemoe quantize` rounds it."""
    write_random(folder.with_name("bf16"), dataclasses.replace(OURS, **dict(change)), seed=1, format="bf16")
    convert(folder.with_name("bf16"), folder, format="int4")
    Tokenizer.load(find_model("nano")).save(folder, chat_template="{{ messages }}")
    return folder


def assert_same(ours, again):
    assert_same_tensors(ours, again)
    assert (again / "tokenizer.json").read_bytes() == (ours / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("target", WRITERS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_comes_back_byte_for_byte(change, target, conversion, tmp_path):
    ours = make(tmp_path / "ours", CHANGES[change])
    WRITERS[target](ours, tmp_path / "theirs")
    report = convert_transformers(tmp_path / "theirs", tmp_path / "again", format="int4")
    conversion(name_of(target, CHANGES[change]), INT4_IN, report)
    exact = {kind for kind, error in report.kinds.items() if not error.max_abs}
    assert exact >= {"routed", "attention", "norm", "router"}
    assert report.lossless or target == "compressed-tensors"  # whose embedding was rounded to fp16
    assert_same(ours, tmp_path / "again")


def test_scales_that_no_rounding_gives_come_back_too(tmp_path):
    write_random(tmp_path / "ours", OURS, seed=1, format="int4")  # many groups of it use less than -8 to 7
    Tokenizer.load(find_model("nano")).save(tmp_path / "ours")
    write_compressed_tensors(tmp_path / "ours", tmp_path / "theirs")
    convert_transformers(tmp_path / "theirs", tmp_path / "again", format="int4")
    assert_same(tmp_path / "ours", tmp_path / "again")


@pytest.mark.parametrize("target", WRITERS)
def test_the_verb_brings_nano_back(target, mobilemoe_cli, tmp_path):
    assert mobilemoe_cli("export", "nano", "--to", target, "--out", tmp_path / "theirs").status == 0
    done = mobilemoe_cli("convert", tmp_path / "theirs", tmp_path / "again", "--format", "int4", "--json")
    assert done.json["errors"]["routed"]["max_abs"] == 0
    assert_same(find_model("nano"), tmp_path / "again")


@pytest.mark.parametrize("target", WRITERS)
def test_bf16_and_the_other_axis_are_rounded_from_the_same_weights(target, conversion, tmp_path):
    ours = make(tmp_path / "ours")
    WRITERS[target](ours, tmp_path / "theirs")
    report = convert_transformers(tmp_path / "theirs", tmp_path / "again", format="bf16")
    assert 1e-4 < report.kinds["routed"].relative_rms < 2**-8
    report = convert_transformers(tmp_path / "theirs", tmp_path / "out", format="int4", group_axis="out")
    conversion(name_of(target), INT4_OUT, report)
    assert report.kinds["attention"].max_abs == 0
    assert 0.02 < report.kinds["routed"].relative_rms < 0.2


def test_the_int4_behind_fp16_weights_is_found_and_nothing_else_is():
    rng = np.random.default_rng(3)
    q = rng.integers(-8, 8, (200, 64)).astype(np.int8)
    q[0, :32], q[1, :32] = 0, np.where(np.arange(32) == 5, -8, 0)  # zeros have the scale 0, as rounding gives them
    for most in range(1, 8):
        q[most * 20 : most * 20 + 20] = rng.integers(-most, most + 1, (20, 64))
    scales = np.exp(rng.uniform(-7, 0, (200, 2))).astype(np.float16)
    scales[0, 0] = 0
    w = int4.dequantize(int4.pack(q), scales).astype(np.float16).astype(np.float32)
    nibbles, found = find_int4(w)
    assert np.array_equal(int4.unpack(nibbles), q)
    assert np.array_equal(found, scales)
    assert find_int4(rng.normal(size=(4, 64)).astype(np.float16).astype(np.float32)) is None
    w[3, 40] = np.nextafter(np.float16(w[3, 40]), np.float16(9))
    assert find_int4(w) is None


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder of each kind, by name."""
    folder = tmp_path_factory.mktemp("packed")
    make(folder / "ours")
    for target, write in WRITERS.items():
        write(folder / "ours", folder / target)
    return folder


def refusal(folder):
    out = folder.parent / "refused"
    with pytest.raises(MobileMoEError) as caught:
        convert_transformers(folder, out, format="int4")
    assert not out.exists()
    assert str(folder) in str(caught.value)
    return str(caught.value)


def in_config(*path, value):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        place = config
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def in_tensors(name, change):
    """Writes the file again with another tensor under `name`, or none if `change` gives None."""

    def rewrite(folder):
        path = folder / "model.safetensors"
        with SafetensorsFile(path) as file:
            specs = {key: (info.dtype, info.shape) for key, info in file.tensors.items()}
            arrays = {key: file.array(key).copy() for key in specs}
        changed = change(arrays[name])
        if changed is None:
            del specs[name]
        else:
            dtype = {"i": "I", "u": "U", "f": "F"}[changed.dtype.kind] + str(8 * changed.dtype.itemsize)
            specs[name], arrays[name] = (dtype, changed.shape), changed
        path.unlink()
        write_safetensors(path, specs, lambda key: arrays[key])

    return rewrite


GROUP = ("quantization_config", "config_groups", "group_0")
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
STACK = "model.layers.1.mlp.switch_mlp.up_proj"


@pytest.mark.parametrize(
    ("target", "damage", "said"),
    [
        ("compressed-tensors", in_config("quantization_config", "format", value="nvfp4-pack-quantized"), "format is"),
        ("compressed-tensors", in_config("quantization_config", "quant_method", value="awq"), "quantization_config is"),
        ("compressed-tensors", in_config(*GROUP, "weights", "num_bits", value=8), "group_0.weights is not"),
        ("compressed-tensors", in_config(*GROUP, "weights", "group_size", value=128), "group_0.weights is not"),
        ("compressed-tensors", in_config(*GROUP, value=7), "group_0.weights is not"),
        ("compressed-tensors", in_config(*GROUP, "input_activations", value={"num_bits": 8}), "input_activations"),
        ("mlx", in_config("quantization", "bits", value=8), "not affine with 4 bits"),
        ("mlx", in_config("quantization", "mode", value="mxfp4"), "not affine with 4 bits"),
        (
            "mlx",
            in_config("quantization", "lm_head", value={"bits": 8, "group_size": 32}),
            "quantization.lm_head is not",
        ),
        ("compressed-tensors", in_tensors(f"{EXPERT}_packed", lambda w: None), "but no"),
        ("compressed-tensors", in_tensors(f"{EXPERT}_shape", lambda w: w[::-1].copy()), "is not [32, 64]"),
        ("compressed-tensors", in_tensors(f"{EXPERT}_shape", lambda w: None), "but no"),
        ("compressed-tensors", in_tensors(f"{EXPERT}_scale", lambda w: w[:, :1].copy()), "not 4 bits in groups of 32"),
        ("compressed-tensors", in_tensors(f"{EXPERT}_scale", lambda w: None), "holds no tensor"),
        ("compressed-tensors", in_tensors(f"{EXPERT}_packed", lambda w: w.astype(np.int64)), "not 4 bits in groups"),
        (
            "compressed-tensors",
            in_tensors(f"{EXPERT}_scale", lambda w: w.astype(np.float32) * np.float32(1.0001)),
            "no fp16 numbers",
        ),
        ("compressed-tensors", in_tensors(f"{EXPERT}_scale", lambda w: w * np.float16(np.nan)), "no fp16 numbers"),
        ("mlx", in_tensors(f"{STACK}.biases", lambda w: w * np.float16(0.5)), "only symmetric INT4 is read"),
        ("mlx", in_tensors(f"{STACK}.biases", lambda w: None), "but no"),
        ("mlx", in_tensors(f"{STACK}.scales", lambda w: w[:-1].copy()), "not 4 bits in groups of 32"),
        ("mlx", in_tensors(f"{STACK}.weight", lambda w: w.reshape(-1)), "not 4 bits in groups of 32"),
        ("mlx", in_tensors(f"{STACK}.weight", lambda w: np.empty((2**40, 0, 8), np.uint32)), "not 4 bits in groups"),
        ("mlx", in_tensors("model.norm.weight", lambda w: None), "holds no tensor model.norm.weight"),
    ],
)
def test_other_packings_and_damaged_ones_are_refused_by_name(target, damage, said, packed, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((packed / target / name).read_bytes())
    damage(folder)
    assert said in refusal(folder)
