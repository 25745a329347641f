"""What transformers loads it saves bit for bit, and our own `load` opens what it saved."""

import json

import numpy as np
import pytest
import torch

import mobilemoe
from checkpoint_models import MICRO, logical, rewrite, split_experts
from conversions import BF16, HF, INT4_IN, INT4_OUT
from hf_models import FAMILY_LIKE, FORMS, opened, tokens, write
from mobilemoe.checkpoint import Checkpoint, int4, save_checkpoint
from mobilemoe.errors import ConfigError
from mobilemoe.hf import MobileMoEConfig, MobileMoEForCausalLM
from mobilemoe.presets import PRESETS
from model_configs import but

UNTIED = but(FAMILY_LIKE, tie_word_embeddings=False)


def assert_same_files(first, second):
    with Checkpoint.open(first) as one, Checkpoint.open(second) as other:
        assert one.config == other.config
        assert one.tensors.keys() == other.tensors.keys()
        for name, info in one.tensors.items():
            assert (info.dtype, info.shape) == (other.tensors[name].dtype, other.tensors[name].shape), name
            assert np.array_equal(one.array(name).view(np.uint8), other.array(name).view(np.uint8)), name


@pytest.mark.parametrize("config", [FAMILY_LIKE, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_is_saved_bit_for_bit(form, config, conversion, tmp_path):
    folder = write(tmp_path / "model", config, form)
    opened(folder, dtype="auto").save_pretrained(tmp_path / "saved")
    assert_same_files(folder, tmp_path / "saved")
    opened(tmp_path / "saved", dtype="auto").save_pretrained(tmp_path / "again", max_shard_size="60KB")
    assert (tmp_path / "again" / "model.safetensors.index.json").exists()
    assert_same_files(folder, tmp_path / "again")
    conversion({"bf16": BF16, "int4-in": INT4_IN, "int4-out": INT4_OUT}[form], HF, 0)


def test_one_tensor_per_expert_and_a_repeated_head_are_read_too(tmp_path):
    weights, tokens_BT = logical(MICRO), tokens(2, 9)
    save_checkpoint(tmp_path / "model", MICRO, weights.__getitem__, format="bf16")
    stacked = opened(tmp_path / "model")(tokens_BT).logits
    embedding = int4.to_bf16(weights["model.embed_tokens.weight"])
    rewrite(tmp_path / "model", lambda tensors: tensors.update({"lm_head.weight": ("BF16", embedding)}))
    rewrite(tmp_path / "model", split_experts(weights))
    model = opened(tmp_path / "model", dtype="auto")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(opened(tmp_path / "model")(tokens_BT).logits, stacked)
    model.save_pretrained(tmp_path / "saved")  # as it was
    with Checkpoint.open(tmp_path / "saved") as checkpoint:
        assert all(np.array_equal(checkpoint.weight(name), weight) for name, weight in weights.items())


@pytest.mark.parametrize("form", ["int4-in", "int4-out"])
def test_our_engine_opens_what_was_saved(form, tmp_path):
    folder = write(tmp_path / "model", FAMILY_LIKE, form)
    opened(folder).save_pretrained(tmp_path / "saved")
    ids = [5, 6, 7, 8]
    assert np.array_equal(mobilemoe.load(tmp_path / "saved").logits(ids), mobilemoe.load(folder).logits(ids))


@pytest.mark.parametrize("form", ["int4-in", "int4-out"])
def test_an_int4_model_keeps_its_weights_whatever_it_is_cast_to(form, tmp_path):
    folder = write(tmp_path / "model", FAMILY_LIKE, form)
    model = opened(folder)
    model.to(torch.bfloat16)
    assert model.dtype == torch.float32  # what it was loaded to compute in
    for refused in (model.half, model.float):
        with pytest.raises(ValueError, match="quantized"):
            refused()
    model.save_pretrained(tmp_path / "saved")
    assert_same_files(folder, tmp_path / "saved")


def test_keys_that_nothing_is_known_of_are_written_back(tmp_path):
    folder = write(tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "our_note": "kept"}))
    opened(folder).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["our_note"] == "kept"


def test_a_key_that_means_another_computation_is_refused_by_name(tmp_path):
    folder = write(tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_bias": True}))
    with pytest.raises(ConfigError, match="attention_bias is True"):
        opened(folder)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_becomes_a_config_and_back(name):
    preset = PRESETS[name]
    assert MobileMoEConfig(**preset.to_dict()).shape() == preset


def test_a_model_made_from_a_config_starts_as_transformers_models_do_and_is_saved_in_our_layout(tmp_path):
    config = MobileMoEConfig(**FAMILY_LIKE.to_dict())
    model = MobileMoEForCausalLM(config)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    feed_forward = model.model.layers[0].feed_forward
    assert abs(feed_forward.experts.gate_up_proj.std().item() / 0.02 - 1) < 0.1
    assert abs(feed_forward.router.weight.std().item() / 0.02 - 1) < 0.2
    assert not feed_forward.expert_bias.any()
    assert (model.model.norm.weight == 1).all()
    model.save_pretrained(tmp_path / "saved")
    with Checkpoint.open(tmp_path / "saved") as checkpoint:
        assert checkpoint.config == FAMILY_LIKE
        assert "model.layers.0.feed_forward.experts.gate_up_proj" in checkpoint.tensors
