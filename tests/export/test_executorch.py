"""What ExecuTorch cannot run is refused in one sentence, before anything is written or any package is asked for."""

import dataclasses
import sys

import pytest

from mobilemoe.checkpoint import write_random
from mobilemoe.config import FULL, SLIDING
from mobilemoe.errors import CheckpointError, ConfigError, MissingExtraError, TokenizerError, UsageError
from mobilemoe.export.executorch import metadata, write_executorch
from mobilemoe.hub import find_model
from mobilemoe.tokenizer import Tokenizer
from model_configs import GROUPED_QUERIES


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob is false"),
        ({"sliding_window": 8, "layer_types": (FULL, SLIDING)}, "sliding windows"),
        ({"intermediate_size": 48}, "intermediate_size is 48, no multiple of 32"),
        ({"intermediate_size_mlp": 16}, "intermediate_size_mlp is 16"),
        ({"hidden_size": 80}, "hidden_size is 80"),
        ({"num_attention_heads": 1, "num_key_value_heads": 1}, "num_attention_heads \\* head_dim is 16"),
    ],
)
def test_what_executorch_does_not_compute_is_refused_by_name(change, reason, tmp_path):
    write_random(tmp_path / "ours", dataclasses.replace(GROUPED_QUERIES, **change), seed=1, format="bf16")
    with pytest.raises(ConfigError, match=reason) as refusal:
        write_executorch(tmp_path / "ours", tmp_path / "theirs")
    assert len(str(refusal.value).splitlines()) == 1
    assert refusal.value.exit_status == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize("context", [0, 15, -3, 8193])
def test_a_context_that_the_model_does_not_have_is_refused(context, tmp_path):
    write_random(tmp_path / "ours", GROUPED_QUERIES, seed=1, format="int4")
    with pytest.raises(UsageError, match=f"--context is {context}, .* from 16 to 8,192"):
        write_executorch(tmp_path / "ours", tmp_path / "theirs", context)


def test_a_tokenizer_with_more_ids_than_logits_is_refused(tmp_path):
    write_random(tmp_path / "ours", GROUPED_QUERIES, seed=1, format="int4")
    Tokenizer.load(find_model("nano")).save(tmp_path / "ours")
    with pytest.raises(TokenizerError, match="has 16,384 ids, but the model only 96"):
        write_executorch(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_what_is_there_is_not_replaced(tmp_path):
    (tmp_path / "theirs").mkdir()
    with pytest.raises(CheckpointError, match="exists"):
        write_executorch(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("package", ["executorch", "torchao", "torch"])
def test_a_missing_package_names_the_extra(package, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("mobilemoe.export.executorch_model")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    write_random(tmp_path / "ours", GROUPED_QUERIES, seed=1, format="int4")
    with pytest.raises(MissingExtraError, match=r"mobilemoe\[executorch\]"):
        write_executorch(tmp_path / "ours", tmp_path / "theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_the_metadata_says_what_the_runner_asks():
    tokenizer = Tokenizer.load(find_model("nano"))
    config = dataclasses.replace(GROUPED_QUERIES, eos_token_id=(9, 16379))
    assert metadata(config, tokenizer, 512) == {
        "get_max_seq_len": 512,
        "get_max_context_len": 512,
        "get_vocab_size": 96,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
        "get_bos_id": 16378,
        "get_eos_ids": [9, 16379, 16382, 16383],
    }


def test_without_a_tokenizer_the_ids_are_the_configs():
    config = dataclasses.replace(GROUPED_QUERIES, eos_token_id=(9,), bos_token_id=8)
    assert metadata(config, None, 64).items() >= {"get_bos_id": 8, "get_eos_ids": [9]}.items()
    assert "get_bos_id" not in metadata(GROUPED_QUERIES, None, 64)
