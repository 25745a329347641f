"""What a GGUF file holds; that llama.cpp computes the same is in test_gguf_runtime.py (`make test-doors`)."""

import dataclasses
import json

import numpy as np
import pytest

from conversions import BF16, INT4_IN, INT4_OUT, gguf_file
from mobilemoe.checkpoint import Checkpoint, int4, write_random
from mobilemoe.config_rope import RopeScaling
from mobilemoe.errors import TokenizerError, UsageError
from mobilemoe.export.gguf import write_gguf
from mobilemoe.export.gguf_blocks import decode, encode, from_q4_0, q4_0
from mobilemoe.export.gguf_layout import architecture, rope_factors, tensors
from mobilemoe.hub import find_model
from mobilemoe.tokenizer import Tokenizer
from model_configs import GROUPED_QUERIES

gguf = pytest.importorskip("gguf")


def scaling(factor: float, original: int, low: float, high: float) -> RopeScaling:
    return RopeScaling(
        factor=factor, original_max_position_embeddings=original, low_freq_factor=low, high_freq_factor=high
    )


TINY = dataclasses.replace(
    GROUPED_QUERIES,
    vocab_size=16_400,  # some ids more than nano's tokenizer has
    eos_token_id=(16379, 16382, 16383),
)
SCALED = dataclasses.replace(TINY, rope_scaling=scaling(16.0, 64, 1.0, 1.0))


def make(folder, config=TINY, **options):
    write_random(folder, config, seed=3, **{"format": "int4", **options})
    Tokenizer.load(find_model("nano")).save(folder, chat_template="{{ messages }}")
    return folder


def values(path):
    """The file's keys, as plain values."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def arrays(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_a_block_holds_the_same_nibbles_and_scales_and_gives_them_back():
    rng = np.random.default_rng(0)
    for shape in ((1, 32), (3, 64), (2, 5, 96), (4, 1, 32)):
        nibbles = rng.integers(0, 256, (*shape[:-1], shape[-1] // 2), np.uint8)
        scales = rng.normal(size=(*shape[:-1], shape[-1] // 32)).astype(np.float16)
        blocks = q4_0(nibbles, scales)
        assert blocks.shape == (*shape[:-1], shape[-1] // 32 * 18)
        again = from_q4_0(blocks)
        assert np.array_equal(again[0], nibbles)
        assert np.array_equal(again[1].view(np.uint16), scales.view(np.uint16))
        theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0)
        assert np.array_equal(theirs, int4.dequantize(nibbles, scales))


@pytest.mark.parametrize(("type", "error"), [("q4_0", 0.1), ("q8_0", 0.006), ("bf16", 0.003)])
def test_each_type_is_read_back_as_the_gguf_package_reads_it(type, error):
    w = np.random.default_rng(1).normal(size=(3, 4, 64)).astype(np.float32)
    data = encode(w, type, "w")
    got = decode(data, type)
    assert np.sqrt(np.mean((got - w) ** 2)) < error
    raw = data.view(np.uint8)
    assert np.array_equal(got, gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type.upper()]).reshape(got.shape))


@pytest.mark.parametrize("config", [TINY, SCALED, dataclasses.replace(TINY, intermediate_size_mlp=0)])
def test_int4_grouped_along_the_input_is_exact(config, conversion, tmp_path):
    folder, path = make(tmp_path / "m", config), tmp_path / "m.gguf"
    report = write_gguf(folder, path)
    assert report.lossless
    conversion(INT4_IN, gguf_file("q4_0", config), report)
    found = arrays(path)
    d, f = config.hidden_size, config.intermediate_size
    with Checkpoint.open(folder) as source:
        experts = source.weight("model.layers.1.feed_forward.experts.gate_up_proj")  # [E, D, 2F]
        gate = decode(found["blk.1.ffn_gate_exps.weight"].data, "q4_0")
        assert np.array_equal(gate, experts[:, :, :f].swapaxes(1, 2))
        assert np.array_equal(decode(found["blk.1.ffn_up_exps.weight"].data, "q4_0"), experts[:, :, f:].swapaxes(1, 2))
        q = source.weight("model.layers.0.self_attn.q_proj.weight").reshape(4, 8, 2, d)  # pairs of neighbours
        got = decode(found["blk.0.attn_q.weight"].data, "q4_0").reshape(4, 2, 8, d)
        assert np.array_equal(got, q.swapaxes(1, 2))
        v = source.weight("model.layers.0.self_attn.v_proj.weight")
        assert np.array_equal(decode(found["blk.0.attn_v.weight"].data, "q4_0"), v)
    assert np.array_equal(found["blk.0.attn_k_norm.weight"].data, np.ones(16, np.float32))


def test_a_model_without_a_shared_expert_gets_one_of_zeros(tmp_path):
    config = dataclasses.replace(TINY, intermediate_size_mlp=0)
    write_gguf(make(tmp_path / "m", config), tmp_path / "m.gguf")
    down = arrays(tmp_path / "m.gguf")["blk.0.ffn_down_shexp.weight"]
    assert not decode(down.data, "q4_0").any()
    assert values(tmp_path / "m.gguf")["glm4moe.expert_shared_count"] == 1


def test_experts_grouped_along_the_output_are_rounded_anew_and_the_error_is_said(conversion, tmp_path):
    folder = make(tmp_path / "m", group_axis="out")
    exact, rough = (write_gguf(folder, tmp_path / f"{type}.gguf", type) for type in ("q8_0", "q4_0"))
    conversion(INT4_OUT, gguf_file("q8_0", TINY), exact)
    conversion(INT4_OUT, gguf_file("q4_0", TINY), rough)
    assert rough.kinds["attention"].max_abs == 0
    assert 0.02 < rough.kinds["routed"].relative_rms < 0.15
    assert 0 < exact.kinds["routed"].relative_rms < 0.006


def test_bf16_weights_stay_as_they_are_and_other_types_round_them(conversion, tmp_path):
    folder = make(tmp_path / "m", format="bf16")
    reports = {type: write_gguf(folder, tmp_path / f"{type}.gguf", type) for type in ("q4_0", "q8_0", "bf16")}
    assert reports["bf16"].lossless
    for type, report in reports.items():
        conversion(BF16, gguf_file(type, TINY), report)
    assert values(tmp_path / "bf16.gguf")["general.file_type"] == 32


def test_scaled_rope_takes_the_architecture_that_reads_its_factors(tmp_path):
    assert architecture(TINY) == "glm4moe"
    assert architecture(dataclasses.replace(TINY, intermediate_size_mlp=48)) == "exaone-moe"
    path = tmp_path / "m.gguf"
    write_gguf(make(tmp_path / "m", SCALED), path)
    keys, found = values(path), arrays(path)
    assert keys["general.architecture"] == "exaone-moe"
    assert keys["exaone-moe.attention.sliding_window_pattern"] == [True, True]
    assert keys["exaone-moe.attention.sliding_window"] > SCALED.max_position_embeddings
    assert keys["exaone-moe.expert_shared_feed_forward_length"] == 64
    # wavelength 2 pi theta^(2i/16) against 64 tokens: pairs 0 and 1 turn often enough to stay
    assert found["rope_freqs.weight"].data.tolist() == [1, 1] + 6 * [16]
    assert np.array_equal(found["output.weight"].data, found["token_embd.weight"].data)


def test_rope_factors_are_those_of_the_model():
    torch = pytest.importorskip("torch")
    from mobilemoe.model.rope import rope_frequencies

    plain = dataclasses.replace(TINY, head_dim=64)
    for values in ((16.0, 8192, 1.0, 1.0), (8.0, 8192, 1.0, 4.0), (32.0, 64, 2.0, 4.0)):
        config = dataclasses.replace(plain, rope_scaling=scaling(*values))
        ratio = (rope_frequencies(plain) / rope_frequencies(config)).double()
        assert torch.allclose(ratio, torch.from_numpy(rope_factors(config)).double(), rtol=1e-5)


def test_tokens_merges_template_and_stop_ids_travel_along(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(make(tmp_path / "m"), path)
    keys, tokenizer = values(path), Tokenizer.load(find_model("nano"))
    parts = json.loads(tokenizer.to_json())
    tokens = keys["tokenizer.ggml.tokens"]
    assert len(tokens) == 16_400
    assert all(tokens[id] == text for text, id in parts["model"]["vocab"].items())
    assert tokens[16380] == "<|header_start|>"
    assert [keys["tokenizer.ggml.token_type"][id] for id in (0, 16378, 16383, 16384)] == [1, 3, 3, 5]
    assert keys["tokenizer.ggml.merges"][:2] == [" ".join(merge) for merge in parts["model"]["merges"][:2]]
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "llama-bpe")
    stops = [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "eom")]
    assert stops == [16378, 16379, 16383, 16382]
    assert keys["tokenizer.chat_template"] == "{{ messages }}"


def test_the_tensors_are_those_of_the_layout_and_the_bytes_are_what_the_types_take(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(make(tmp_path / "m"), path)
    found = arrays(path)
    layout = list(tensors(TINY))
    assert [*found] == [tensor.name for tensor in layout]
    for tensor in layout:
        assert [int(n) for n in reversed(found[tensor.name].shape)] == [*tensor.shape], tensor.name
        bits = 4.5 if tensor.is_matrix else 32
        assert found[tensor.name].n_bytes == np.prod(tensor.shape) * bits / 8, tensor.name


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(tmp_path):
    folder = make(tmp_path / "m")
    file = folder / "tokenizer.json"
    parts = json.loads(file.read_text())
    parts["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+|\w+|[^\w\s]"
    file.write_text(json.dumps(parts))
    with pytest.raises(TokenizerError, match=r"splits text in a way that llama\.cpp has no name for"):
        write_gguf(folder, tmp_path / "m.gguf")
    assert [*tmp_path.iterdir()] == [folder]


def test_the_verb_writes_the_file_and_says_what_it_cost(mobilemoe_cli, tmp_path):
    path = tmp_path / "nano.gguf"
    done = mobilemoe_cli("export", "nano", "--to", "gguf", "--out", path, "--json")
    assert done.json["lossless"] is True
    assert done.json["file"] == str(path)
    again = mobilemoe_cli("export", "nano", "--to", "gguf", "--out", path)
    assert again.status == 2
    assert "exists" in again.err
    for arguments, words in (
        (("--to", "onnx", "--out", "x"), "--to is 'onnx', but must be one of gguf, glm4moe"),
        (("--to", "gguf", "--out", "x", "--type", "q5"), "--type is 'q5', but must be one of q4_0, q8_0, bf16"),
        (("--to", "glm4moe", "--out", "x", "--type", "bf16"), "--type is for --to gguf"),
    ):
        refused = mobilemoe_cli("export", "nano", *arguments)
        assert refused.status == 2
        assert words in refused.err


def test_a_dense_model_is_refused_with_the_reason(tmp_path):
    dense = dataclasses.replace(
        TINY, ffn_type="dense", intermediate_size_mlp=0, num_local_experts=0, num_experts_per_tok=0
    )
    with pytest.raises(UsageError, match=r"llama\.cpp has no stock architecture for this model: ffn_type is 'dense'"):
        write_gguf(make(tmp_path / "m", dense, format="bf16"), tmp_path / "m.gguf")
