"""A checkpoint of transformers is the same function here; what it computes otherwise is refused by the key's name."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from conversions import BF16, INT4_IN, relative_rms
from mobilemoe.checkpoint import Checkpoint, write_random
from mobilemoe.config_rope import RopeScaling
from mobilemoe.errors import MobileMoEError
from mobilemoe.export.glm4moe import write_glm4moe
from mobilemoe.hub import find_model
from mobilemoe.imports.transformers import convert_transformers
from mobilemoe.model import MobileMoE
from mobilemoe.tokenizer import Tokenizer
from model_configs import GROUPED_QUERIES, NANO_IDS, but

transformers = pytest.importorskip("transformers")
pytest_plugins = ["cli_calls"]

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "eos_token_id": [5, 7],
    "pad_token_id": None,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
WHOLE_HEAD = {"rope_type": "default", "rope_theta": 2e5, "partial_rotary_factor": 1.0}
GLM = {
    **SIZES,
    "moe_intermediate_size": 32,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 0,
    "head_dim": 16,
    "use_qk_norm": True,
    "routed_scaling_factor": 1.5,
    "rope_parameters": WHOLE_HEAD,
}
QWEN = {**SIZES, "moe_intermediate_size": 32, "num_experts": 6, "head_dim": 32, "norm_topk_prob": True}
OLMOE = {**SIZES, "intermediate_size": 32, "num_experts": 6}
DOTS = {key: value for key, value in GLM.items() if key not in ("use_qk_norm", "rope_parameters")}
KINDS = {"Glm4Moe": GLM, "Dots1": DOTS, "Qwen3Moe": QWEN, "Olmoe": OLMOE}
CASES = {
    "glm4moe": ("Glm4Moe", {}),
    "glm4moe without norms": ("Glm4Moe", {"use_qk_norm": False}),
    "glm4moe, scaled RoPE": ("Glm4Moe", {"rope_parameters": {**LLAMA3, "partial_rotary_factor": 1.0}}),
    "glm4moe, tied, not normalised": ("Glm4Moe", {"tie_word_embeddings": True, "norm_topk_prob": False}),
    "dots1": ("Dots1", {}),
    "dots1, scaled RoPE, tied, normalised": (
        "Dots1",
        {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "norm_topk_prob": True},
    ),
    "qwen3moe": ("Qwen3Moe", {}),
    "qwen3moe, not normalised": ("Qwen3Moe", {"norm_topk_prob": False, "tie_word_embeddings": True}),
    "qwen3moe, scaled RoPE": ("Qwen3Moe", {"rope_parameters": LLAMA3}),
    "olmoe": ("Olmoe", {}),
    "olmoe, normalised, another base": (
        "Olmoe",
        {"norm_topk_prob": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "olmoe, all heads its own": ("Olmoe", {"num_key_value_heads": 4}),
}


def build(kind, change=(), *, learnt=True):
    """A random model of transformers in fp32 whose weights are BF16 numbers; its norms and bias are drawn too."""
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**KINDS[kind] | dict(change))
    )
    with torch.no_grad():
        for name, w in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("e_score_correction_bias"):
                w.normal_(std=0.1)
            elif "norm" in name and learnt:
                w.uniform_(0.5, 1.5)
            if "inv_freq" not in name:
                w.copy_(w.bfloat16().float())
    return model.eval()


def logits(model, tokens_BT):
    with torch.no_grad():
        found = model(tokens_BT)
    return getattr(found, "logits", found).double()


def read(folder):
    with Checkpoint.open(folder) as checkpoint:
        model = MobileMoE(checkpoint.config).eval()
        model.load_weights(checkpoint.weight)
    return model


def tokens():
    return torch.from_numpy(np.random.default_rng(2).integers(0, 128, (2, 100)))


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_transformers(case, conversion, tmp_path):
    theirs = build(*CASES[case])
    theirs.save_pretrained(tmp_path / "theirs")
    report = convert_transformers(tmp_path / "theirs", tmp_path / "ours", format="bf16")
    assert report.lossless
    ours = read(tmp_path / "ours")
    a_BTV, b_BTV = logits(theirs, tokens()), logits(ours, tokens())
    assert a_BTV.std() > 0.05
    assert (a_BTV - b_BTV).abs().max() < 1e-4 * a_BTV.abs().max()
    assert torch.nn.functional.cosine_similarity(a_BTV.flatten(), b_BTV.flatten(), dim=0) > 1 - 1e-10
    source = f"{CASES[case][0]} in BF16"
    conversion(source, BF16, report)
    conversion(source, BF16, relative_rms(b_BTV, a_BTV), "logits", "transformers")
    assert ours.config.eos_token_id == (5, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_and_other_dtypes_are_read_and_rounding_is_said(kind, conversion, tmp_path):
    theirs = build(kind)
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    theirs.half().save_pretrained(tmp_path / "half")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    for name in ("one", "shards", "half"):
        report = convert_transformers(tmp_path / name, tmp_path / f"{name}-ours", format="bf16")
        assert report.lossless or name == "half"  # fp16 has no small BF16 numbers
    one, shards, half = (read(tmp_path / f"{name}-ours").state_dict() for name in ("one", "shards", "half"))
    assert all(torch.equal(one[name], shards[name]) for name in one)
    assert all(torch.allclose(one[name], half[name], rtol=1e-2, atol=1e-4) for name in one)
    report = convert_transformers(tmp_path / "one", tmp_path / "int4", format="int4")
    conversion(f"{kind} in BF16", INT4_IN, report)
    assert 0.02 < report.kinds["routed"].relative_rms < 0.15
    assert report.kinds["router"].max_abs == 0


@pytest.mark.parametrize("kind", KINDS)
def test_fused_experts_are_read_too(kind, tmp_path):
    from safetensors.torch import save_file

    theirs = build(kind)
    theirs.save_pretrained(tmp_path / "apart")
    fused = {name: w.contiguous() for name, w in theirs.state_dict().items()}
    assert any(name.endswith("experts.gate_up_proj") for name in fused)
    (tmp_path / "fused").mkdir()
    save_file(fused, tmp_path / "fused" / "model.safetensors")
    (tmp_path / "fused" / "config.json").write_text((tmp_path / "apart" / "config.json").read_text())
    for name in ("apart", "fused"):
        convert_transformers(tmp_path / name, tmp_path / f"{name}-ours", format="bf16")
    a, b = (read(tmp_path / f"{name}-ours").state_dict() for name in ("apart", "fused"))
    assert all(torch.equal(a[name], b[name]) for name in a)


OURS = but(GROUPED_QUERIES, vocab_size=16_384, **NANO_IDS)
CHANGES = {
    "shared": {},
    "no shared expert": {"intermediate_size_mlp": 0},
    "learnt norms": {"qk_norm": "head_weight"},
    "scaled RoPE, own head": {"rope_scaling": RopeScaling(), "tie_word_embeddings": False},
}


@pytest.mark.parametrize("change", CHANGES)
def test_ours_as_glm4moe_comes_back_byte_for_byte(change, tmp_path):
    ours = tmp_path / "ours"
    write_random(ours, dataclasses.replace(OURS, **CHANGES[change]), seed=1, format="bf16")
    Tokenizer.load(find_model("nano")).save(ours, chat_template="{{ messages }}")
    write_glm4moe(ours, tmp_path / "glm")
    assert convert_transformers(tmp_path / "glm", tmp_path / "again", format="bf16").lossless
    with Checkpoint.open(ours) as before, Checkpoint.open(tmp_path / "again") as after:
        assert before.config == after.config
        assert before.tensors.keys() == after.tensors.keys()
        assert all(before.array(name).tobytes() == after.array(name).tobytes() for name in before.tensors)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (ours / name).read_bytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for kind in KINDS:
        build(kind).save_pretrained(folder / kind)
    return folder


REMOVED = object()


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("Glm4Moe", {"first_k_dense_replace": 1}, "first_k_dense_replace is 1"),
        ("Glm4Moe", {"first_k_dense_replace": REMOVED}, "first_k_dense_replace is 1"),  # transformers' default
        ("Glm4Moe", {"n_group": 2, "topk_group": 1}, "n_group is 2"),
        ("Glm4Moe", {"rope_parameters": {**WHOLE_HEAD, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        (
            "Glm4Moe",
            {"rope_parameters": REMOVED, "partial_rotary_factor": REMOVED},
            "partial_rotary_factor is 0.5",
        ),
        ("Glm4Moe", {"attention_bias": True}, "attention_bias is True"),
        ("Glm4Moe", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("Glm4Moe", {"n_routed_experts": REMOVED}, "n_routed_experts is missing"),
        ("Glm4Moe", {"n_routed_experts": "6"}, "n_routed_experts is '6', not a whole number"),
        ("Glm4Moe", {"n_routed_experts": 2**60}, "mlp.gate.weight is"),
        ("Glm4Moe", {"num_hidden_layers": 2**60}, "num_hidden_layers is 1152921504606846976"),
        ("Glm4Moe", {"hidden_size": 96}, "tensor model.embed_tokens.weight is"),
        ("Glm4Moe", {"use_qk_norm": False}, "does not ask for: 'model.layers.0.self_attn.k_norm.weight'"),
        ("Glm4Moe", {"tie_word_embeddings": True}, "lm_head.weight differs"),
        ("Glm4Moe", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config is"),
        ("Qwen3Moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ("Qwen3Moe", {"mlp_only_layers": [1]}, "mlp_only_layers is [1]"),
        ("Qwen3Moe", {"use_sliding_window": True, "sliding_window": 8}, "sliding_window is 8"),
        (
            "Qwen3Moe",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "rope_type is 'yarn'",
        ),
        ("Olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0"),
        ("Olmoe", {"num_attention_heads": 0}, "num_attention_heads is 0"),
        ("Olmoe", {"hidden_size": None}, "hidden_size is missing"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_the_name_of_the_key(kind, change, said, saved, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(saved / kind / "model.safetensors")
    config = json.loads((saved / kind / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not REMOVED}))
    with pytest.raises(MobileMoEError) as caught:
        convert_transformers(folder, tmp_path / "ours", format="bf16")
    assert said in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_the_verb_reads_it_and_other_verbs_say_so(saved, mobilemoe_cli, tmp_path):
    for kind in KINDS:
        done = mobilemoe_cli("convert", saved / kind, tmp_path / kind, "--format", "bf16", "--json")
        assert done.json["lossless"] is True
        assert mobilemoe_cli("info", tmp_path / kind, "--json").status == 0
        refused = mobilemoe_cli("info", saved / kind)
        assert refused.status == 1
        assert "`mobilemoe convert` reads such a model" in refused.err
