"""INT4 goes to compressed-tensors as it is: its own library unpacks it, and transformers computes the same logits."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from conversions import INT4_IN, relative_rms
from mobilemoe.checkpoint import Checkpoint, SafetensorsFile, write_random
from mobilemoe.config_rope import RopeScaling
from mobilemoe.errors import CheckpointError, UsageError
from mobilemoe.export.compressed_tensors import write_compressed_tensors
from mobilemoe.export.glm4moe_layout import tensors
from mobilemoe.export.stock_folder import StockWeights
from mobilemoe.hub import find_model
from mobilemoe.model import MobileMoE
from model_configs import GROUPED_QUERIES

transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

TARGET = "compressed-tensors"
SHARED = dataclasses.replace(GROUPED_QUERIES, vocab_size=128, max_position_embeddings=256, eos_token_id=(5, 7))
SCALING = RopeScaling(factor=8.0, original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=4.0)
CASES = {
    "shared": SHARED,
    "no shared expert": dataclasses.replace(SHARED, intermediate_size_mlp=0),
    "scaled RoPE": dataclasses.replace(SHARED, rope_scaling=SCALING),
    "learnt norms, own head": dataclasses.replace(SHARED, qk_norm="head_weight", tie_word_embeddings=False),
}


def make(folder, config):
    write_random(folder, config, seed=1, format="int4", group_axis="in")
    return folder


def unpacked(folder):
    """Each matrix that the library finds packed in `folder`, by its stem, in fp32."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    raw = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(raw)
    compressor = BaseCompressor.get_value_from_registry(config.format)
    with SafetensorsFile(folder / "model.safetensors") as file:
        for packed in file.tensors:
            if packed.endswith("weight_packed"):
                stem = packed.removesuffix("_packed")
                names = ("packed", "scale", "shape")
                state = {f"weight_{name}": torch.from_numpy(file.array(f"{stem}_{name}").copy()) for name in names}
                state["weight_scale"] = state["weight_scale"].float()  # in fp16 the products would be rounded
                yield stem, compressor.decompress(state, config.config_groups["group_0"])["weight"].numpy()


@pytest.mark.parametrize("model", [*CASES, "nano"])
def test_the_library_unpacks_the_same_weights_bit_for_bit(model, conversion, tmp_path):
    folder = find_model("nano") if model == "nano" else make(tmp_path / "ours", CASES[model])
    report = write_compressed_tensors(folder, tmp_path / "theirs")
    conversion(INT4_IN, TARGET, report)
    assert {kind for kind, error in report.kinds.items() if error.max_abs} <= {"embedding", "head"}
    assert report.kinds["embedding"].relative_rms < 2**-11
    with Checkpoint.open(folder) as source:
        stock, layout = StockWeights(source), tensors(source.config)
        found = dict(unpacked(tmp_path / "theirs"))
        assert found.keys() == {name for name in layout if name.endswith("_proj.weight")}
        for name, w in found.items():
            assert np.array_equal(w, stock.floats(layout[name])), name


def in_fp16(name, w):
    """What transformers makes of a weight: products of 4 bits and an fp16 scale, rounded to fp16 for the experts."""
    return w.astype(np.float16).astype(np.float32) if ".experts." in name or "embed" in name or "head" in name else w


@pytest.mark.parametrize("model", [*CASES, "nano"])
def test_transformers_computes_the_same_logits(model, conversion, tmp_path):
    folder = find_model("nano") if model == "nano" else make(tmp_path / "ours", CASES[model])
    write_compressed_tensors(folder, tmp_path / "theirs")
    theirs, notes = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", dtype=torch.float32, output_loading_info=True
    )
    assert {kind: names for kind, names in notes.items() if names} == {}  # no tensor is missing or left over
    for layer in theirs.model.layers:
        layer.mlp.experts.float()  # transformers 5.24 leaves experts in the type of their scales
    with Checkpoint.open(folder) as checkpoint:
        tokens_BT = torch.from_numpy(np.random.default_rng(2).integers(0, checkpoint.config.vocab_size, (2, 150)))
        ours = MobileMoE(checkpoint.config).eval()
        ours.load_weights(lambda name: in_fp16(name, checkpoint.weight(name)))
    with torch.no_grad():
        ours_BTV, theirs_BTV = ours(tokens_BT), theirs(tokens_BT).logits
    assert (ours_BTV - theirs_BTV).abs().max() < 2e-5 * ours_BTV.abs().max()
    conversion(INT4_IN, TARGET, relative_rms(theirs_BTV, ours_BTV), "logits, rounded alike", "transformers")


def test_the_type_of_the_model_is_that_of_the_scales(tmp_path):
    write_compressed_tensors(make(tmp_path / "ours", SHARED), tmp_path / "theirs")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    scale = theirs.model.layers[0].self_attn.q_proj.weight_scale
    with SafetensorsFile(tmp_path / "theirs" / "model.safetensors") as file:
        stored = file.array("model.layers.0.self_attn.q_proj.weight_scale")
        assert np.array_equal(scale.float().detach().numpy(), stored.astype(np.float32))
        assert file.verify()


def test_every_tensor_that_a_runtime_without_tied_weights_asks_for_is_there(tmp_path):
    """vLLM and SGLang make a head of its own, and name each expert; they read three tensors of each projection."""
    write_compressed_tensors(make(tmp_path / "ours", SHARED), tmp_path / "theirs")
    with SafetensorsFile(tmp_path / "theirs" / "model.safetensors") as file:
        expert = "model.layers.1.mlp.experts.5.down_proj.weight"
        shapes = {name: file.tensors[f"{expert}_{name}"].shape for name in ("packed", "scale", "shape")}
        assert shapes == {"packed": (64, 4), "scale": (64, 1), "shape": (2,)}
        assert file.array(f"{expert}_shape").tolist() == [64, 32]
        head, embedding = (file.array(f"{name}.weight") for name in ("lm_head", "model.embed_tokens"))
        assert np.array_equal(head, embedding)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"format": "bf16"}, "mobilemoe quantize"),
        ({"format": "int4", "group_axis": "out"}, "mobilemoe convert .* --format int4"),
    ],
)
def test_weights_that_are_not_packed_along_the_inputs_are_refused_with_a_remedy(made, said, tmp_path):
    write_random(tmp_path / "ours", SHARED, seed=1, **made)
    with pytest.raises(UsageError, match=said):
        write_compressed_tensors(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_scales_that_are_not_finite_are_refused_by_name(tmp_path):
    path = make(tmp_path / "ours", SHARED) / "model.safetensors"
    data = bytearray(path.read_bytes())
    with SafetensorsFile(path) as file:
        start = file.tensors["model.layers.1.self_attn.v_proj.weight_scale"].start
    data[start : start + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"layers.1.self_attn.v_proj.weight_scale would hold NaN"):
        write_compressed_tensors(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_weights_beyond_fp16_are_refused_by_name(tmp_path):
    make(tmp_path / "ours", SHARED)
    path = tmp_path / "ours" / "model.safetensors"
    data = bytearray(path.read_bytes())
    with SafetensorsFile(path) as file:
        scale, nibbles = (file.tensors[f"model.embed_tokens.{name}"] for name in ("weight_scale", "qweight"))
    data[scale.start : scale.start + 2] = np.float16(60000).tobytes()
    data[nibbles.start] = 7
    path.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"model.embed_tokens.weight holds weights that .* exceed the range of fp16"
    ):
        write_compressed_tensors(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
