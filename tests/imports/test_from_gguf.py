"""A GGUF file that `export` wrote comes back as the model that it was; any other file is refused in one sentence."""

import contextlib
import dataclasses
import json
import struct

import numpy as np
import pytest

from checkpoint_models import assert_same_tensors
from conversions import BF16, INT4_IN, INT4_OUT, gguf_file
from mobilemoe.checkpoint import write_random
from mobilemoe.config_rope import RopeScaling
from mobilemoe.errors import MobileMoEError
from mobilemoe.export.gguf import write_gguf
from mobilemoe.hub import find_model
from mobilemoe.imports.gguf import convert_gguf
from mobilemoe.imports.gguf_file import GgufFile
from mobilemoe.tokenizer import Tokenizer
from model_configs import GROUPED_QUERIES, NANO_IDS, but

gguf = pytest.importorskip("gguf")
pytest_plugins = ["cli_calls"]

TINY = but(GROUPED_QUERIES, vocab_size=16_400, rms_norm_eps=3e-6, **NANO_IDS)  # some ids more than nano's tokenizer has
SCALING = RopeScaling(factor=8.0, original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=4.0)
CASES = {
    "shared": TINY,
    "no shared expert": dataclasses.replace(TINY, intermediate_size_mlp=0),
    "scaled RoPE": dataclasses.replace(TINY, rope_scaling=SCALING),
    "the family's RoPE, no shared expert": dataclasses.replace(
        TINY, rope_scaling=RopeScaling(), intermediate_size_mlp=0
    ),
    "odd shared width": dataclasses.replace(TINY, intermediate_size_mlp=96, intermediate_size=64),
    "learnt norms": dataclasses.replace(TINY, qk_norm="head_weight"),
    "own head": dataclasses.replace(TINY, tie_word_embeddings=False),
    "own head, scaled RoPE": dataclasses.replace(TINY, tie_word_embeddings=False, rope_scaling=SCALING),
    "not normalised": dataclasses.replace(TINY, norm_topk_prob=False, routed_scaling_factor=1.7),
}


def make(folder, config=TINY, **options):
    write_random(folder, config, seed=3, **{"format": "int4", "group_axis": "in", **options})
    Tokenizer.load(find_model("nano")).save(folder, chat_template="{{ messages }}")
    (folder / "README.md").write_text("# Tiny\n\nA model.\n")
    return folder


@pytest.mark.parametrize("format", ["int4", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_a_model_comes_back_byte_for_byte(case, format, conversion, tmp_path):
    folder = make(tmp_path / "m", CASES[case], format=format)
    write_gguf(folder, tmp_path / "m.gguf")
    report = convert_gguf(tmp_path / "m.gguf", tmp_path / "again", format=format)
    assert report.lossless
    type, ours = ("q4_0", INT4_IN) if format == "int4" else ("bf16", BF16)
    conversion(gguf_file(type, CASES[case]), ours, report)
    assert_same_tensors(folder, tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "again" / name).read_text()) == json.loads((folder / name).read_text()), name
    assert (tmp_path / "again" / "README.md").read_text() == (folder / "README.md").read_text()


def test_the_verb_brings_nano_back(mobilemoe_cli, tmp_path):
    mobilemoe_cli("export", "nano", "--to", "gguf", "--out", tmp_path / "nano.gguf")
    done = mobilemoe_cli("convert", tmp_path / "nano.gguf", tmp_path / "again", "--format", "int4", "--json")
    assert done.json["lossless"] is True
    assert_same_tensors(find_model("nano"), tmp_path / "again")
    ours = json.loads((find_model("nano") / "tokenizer.json").read_text())
    assert json.loads((tmp_path / "again" / "tokenizer.json").read_text()) == ours
    again = mobilemoe_cli("convert", tmp_path / "nano.gguf", tmp_path / "again", "--format", "int4")
    assert again.status == 1
    assert "exists" in again.err
    refused = mobilemoe_cli("convert", tmp_path / "nano.gguf", tmp_path / "x", "--format", "engine")
    assert refused.status == 2
    assert "convert it to int4 first" in refused.err


@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
def test_experts_along_their_output_are_rounded_again_and_the_error_is_said(type, conversion, tmp_path):
    folder = make(tmp_path / "m", group_axis="out")
    write_gguf(folder, tmp_path / "m.gguf", type)
    report = convert_gguf(tmp_path / "m.gguf", tmp_path / "again", format="int4", group_axis="out")
    conversion(gguf_file(type, TINY), INT4_OUT, report)
    assert 0.005 < report.kinds["routed"].relative_rms < 0.2
    assert report.kinds["router"].max_abs == report.kinds["norm"].max_abs == 0


def test_a_file_without_our_own_keys_is_read_where_its_factors_are_the_familys(tmp_path, monkeypatch):
    for scaling, said in ((RopeScaling(), None), (SCALING, "rope_freqs.weight holds other factors")):
        name = f"m{scaling.factor}"
        make(tmp_path / name, dataclasses.replace(TINY, rope_scaling=scaling))
        with monkeypatch.context() as patch:
            patch.setattr("mobilemoe.export.gguf.scaling_metadata", lambda config: {})
            write_gguf(tmp_path / name, tmp_path / f"{name}.gguf")
        if said is None:
            convert_gguf(tmp_path / f"{name}.gguf", tmp_path / f"{name}-again", format="int4")
            assert_same_tensors(tmp_path / name, tmp_path / f"{name}-again")
        else:
            assert said in refusal(tmp_path / f"{name}.gguf")


def refusal(path):
    """What is said about the file; nothing is left behind."""
    out = path.parent / "refused"
    with pytest.raises(MobileMoEError) as caught:
        convert_gguf(path, out, format="int4")
    assert not out.exists()
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_reader_finds_what_the_gguf_package_finds(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(make(tmp_path / "m"), path)
    ours, theirs = GgufFile(path), gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.keys.keys() == keys.keys()
    for name, value in keys.items():
        assert ours.keys[name] == value or np.float32(ours.keys[name]) == np.float32(value), name
    assert [*ours.tensors] == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        assert np.array_equal(ours.array(tensor.name).view(np.uint8), np.asarray(tensor.data).view(np.uint8))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(make(folder / "m"), folder / "m.gguf")
    return (folder / "m.gguf").read_bytes()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("glm4moe.leading_dense_block_count", 1, "glm4moe.leading_dense_block_count is 1, but only 0"),
        ("glm4moe.expert_gating_func", 1, "glm4moe.expert_gating_func is 1, but only 2"),
        ("glm4moe.block_count", 3, "holds no tensor blk.2."),
        ("glm4moe.block_count", 2**32 - 1, "glm4moe.block_count is 4294967295"),
        ("glm4moe.attention.key_length", 32, "tensor blk.0.attn_q.weight is [64, 64], but the keys ask for [128, 64]"),
        ("glm4moe.attention.head_count_kv", 3, "num_key_value_heads"),
        ("glm4moe.expert_count", 2**31, "tensor blk.0.ffn_gate_inp.weight is [6, 64]"),
        ("glm4moe.embedding_length", 2**31, "tensor token_embd.weight is"),
        ("general.file_type", None, None),
    ],
)
def test_a_key_that_does_not_fit_is_refused_by_name(key, value, said, file, tmp_path):
    at = file.index(key.encode()) + len(key) + 4
    path = tmp_path / "m.gguf"
    path.write_bytes(file if value is None else file[:at] + struct.pack("<I", value) + file[at + 4 :])
    if said is None:
        convert_gguf(path, tmp_path / "out", format="int4")
    else:
        assert said in refusal(path)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (b"glm4moe.expert_weights_norm", b"glm4moe.expert_weights_nosm", "lacks the key glm4moe.expert_weights_norm"),
        (b"blk.1.attn_v.weight", b"blk.1.attn_w.weight", "holds no tensor blk.1.attn_v.weight"),
        (b"\x07\0\0\0\0\0\0\0glm4moe", b"\x07\0\0\0\0\0\0\0llama-4", "general.architecture is 'llama-4', but only"),
        (b"llama-bpe", b"qwen-2bpe", "tokenizer.ggml.pre is 'qwen-2bpe'"),
        (b"glm4moe.vocab_size", b"glm4moe.block_count"[:18], "glm4moe.vocab_size"),
    ],
)
def test_a_foreign_name_is_refused(before, after, said, file, tmp_path):
    assert len(before) == len(after)
    path = tmp_path / "m.gguf"
    path.write_bytes(file.replace(before, after, 1))
    assert said in refusal(path)


def test_what_no_reader_could_use_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    head = b"GGUF" + struct.pack("<I", 3)
    key = struct.pack("<Q", 1) + b"k"
    for data, said in (
        (b"", "is no GGUF file"),
        (b"PK\3\4 and more", "is no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "of version 9"),
        (head, "would end beyond the file"),
        (head + struct.pack("<QQ", 2**60, 0), "claims 1152921504606846976 tensors"),
        (head + struct.pack("<QQ", 0, 2**60), "claims 1152921504606846976 keys"),
        (head + struct.pack("<QQQ", 0, 1, 2**63), "would end beyond the file"),
        (head + struct.pack("<QQ", 0, 1) + key + struct.pack("<I", 99), "key 'k' has a value of the unknown kind 99"),
        (head + struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 0, 2**40), "key 'k' claims a list of"),
        (head + struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 9, 1), "key 'k' has a list of the kind 9"),
        (head + struct.pack("<QQ", 0, 2) + 2 * (key + struct.pack("<IB", 7, 1)), "key 'k' stands in it twice"),
        (head + struct.pack("<QQ", 1, 0) + key + struct.pack("<IQIQ", 1, 2**50, 0, 0), "but the file has"),
        (head + struct.pack("<QQ", 1, 0) + key + struct.pack("<IQIQ", 1, 33, 2, 0), "which q4_0 cannot have"),
        (head + struct.pack("<QQ", 1, 0) + key + struct.pack("<IQIQ", 1, 32, 14, 0), "GGUF's type number 14"),
        (head + struct.pack("<QQ", 1, 0) + key + struct.pack("<I", 2**31), "claims 2147483648 dimensions"),
    ):
        path.write_bytes(data)
        assert said in refusal(path), data


def test_a_cut_or_flipped_file_gives_a_model_or_a_sentence_never_a_traceback(file, tmp_path):
    rng = np.random.default_rng(4)
    path = tmp_path / "m.gguf"
    path.write_bytes(file)
    header = min(tensor.start for tensor in GgufFile(path).tensors.values())
    tail = file.index(b"tokenizer.chat_template")
    for number in range(60):
        data = bytearray(file)
        if number % 3 == 0:
            del data[rng.integers(len(data)) :]
        else:  # the long list of words is not where the rules are
            low, high = (0, 1200) if number % 3 == 1 else (tail, header)
            data[rng.integers(low, high)] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        with contextlib.suppress(MobileMoEError):
            convert_gguf(path, tmp_path / f"out{number}", format="bf16")


def test_weights_that_are_not_finite_are_refused_by_the_files_name_for_them(tmp_path):
    path = tmp_path / "m.gguf"
    for type in ("q4_0", "bf16"):
        path.unlink(missing_ok=True)
        write_gguf(make(tmp_path / type, format="int4" if type == "q4_0" else "bf16"), path, type)
        data = bytearray(path.read_bytes())
        start = GgufFile(path).tensors["blk.1.attn_v.weight"].start
        data[start : start + 2] = b"\xff\x7f"  # NaN, as fp16 and as bf16
        path.write_bytes(data)
        assert "tensor blk.1.attn_v.weight holds NaN" in refusal(path)
