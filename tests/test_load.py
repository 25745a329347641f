"""`load`, the first line of the two-line API: what it finds, what it accepts and what it refuses."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import mobilemoe
from mobilemoe.checkpoint import convert, write_random
from mobilemoe.checkpoint.run_folder import step_folder
from mobilemoe.errors import CheckpointError, MobileMoEError, ModelNotFoundError, TokenizerError
from mobilemoe.hub import find_model
from mobilemoe.presets import family_member
from refusals import refusal
from tiny_model import write_model


def test_two_lines_are_enough(tiny_folder):
    model = mobilemoe.load(str(tiny_folder))
    text = model.generate("Once upon a time", max_new_tokens=8)
    assert isinstance(text, str)
    assert text


def test_logits_need_config_and_weights_alone(tmp_path):
    folder = write_model(tmp_path / "bare", tokenizer=False)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    model = mobilemoe.load(folder, activations="fp32")
    logits_TV = model.logits([5, 16_383, 0])
    assert logits_TV.dtype == np.float32
    assert logits_TV.shape == (3, 16_384)
    assert np.isfinite(logits_TV).all()
    assert "neither tokenizer.json" in refusal(lambda: model.generate("Hi"), TokenizerError)


def test_the_native_engine_computes_in_int8_unless_asked_for_fp32(tiny_folder):
    ids = list(range(40))
    exact = mobilemoe.load(tiny_folder, backend="torch").logits(ids)
    fp32 = mobilemoe.load(tiny_folder, activations="fp32").logits(ids)
    int8 = mobilemoe.load(tiny_folder).logits(ids)
    np.testing.assert_array_equal(int8, mobilemoe.load(tiny_folder, activations="int8", kv="int8").logits(ids))
    assert np.abs(fp32 - exact).max() < 1e-3 * np.abs(exact).max()
    assert np.abs(int8 - exact).max() > 1e-3 * np.abs(exact).max()


def test_options_that_cannot_be_are_one_sentence(tiny_folder):
    cases = {
        "backend is 'cuda'": {"backend": "cuda"},
        "activations is 'int4'": {"activations": "int4"},
        "kv is 'int2'": {"kv": "int2"},
        "'fp32' are exact": {"activations": "fp32", "kv": "int8"},
        "threads is 0": {"threads": 0},
        "threads is 'two'": {"threads": "two"},
        "quantize is 'int8'": {"quantize": "int8"},
        "'torch' computes in fp32": {"backend": "torch", "activations": "int8"},
    }
    for words, options in cases.items():
        assert words in refusal(lambda o=options: mobilemoe.load(tiny_folder, **o))


@pytest.fixture(scope="module")
def bf16_folder(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bf16"
    convert(tiny_folder, folder, format="bf16")
    return folder


def test_bf16_weights_are_never_rounded_in_silence(bf16_folder, tmp_path, capsys):
    text = refusal(lambda: mobilemoe.load(bf16_folder))
    for words in (str(bf16_folder), "BF16", "quantize='int4'", "backend='torch'"):
        assert words in text
    assert mobilemoe.load(bf16_folder, backend="torch").generate("Hi", max_new_tokens=2)
    assert capsys.readouterr().err == ""
    rounded = mobilemoe.load(bf16_folder, quantize="int4")
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "INT4" in told
    assert "'in'" in told
    convert(bf16_folder, tmp_path / "int4", format="int4", group_axis="in")
    np.testing.assert_array_equal(rounded.logits(range(9)), mobilemoe.load(tmp_path / "int4").logits(range(9)))
    again = mobilemoe.load(bf16_folder, quantize="int4")
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(again.logits(range(9)), rounded.logits(range(9)))


def test_int4_weights_stay_what_they_are_when_int4_is_asked_for(tiny_folder, capsys):
    asked = mobilemoe.load(tiny_folder, quantize="int4")
    np.testing.assert_array_equal(asked.logits([1, 2]), mobilemoe.load(tiny_folder).logits([1, 2]))
    assert capsys.readouterr().err == ""


def test_the_newest_step_of_a_run_is_loaded(tmp_path):
    run = tmp_path / "run"
    for step, seed in ((90, 1), (200, 2), (100, 3)):
        write_model(step_folder(run, step), seed=seed)
    (run / "checkpoints" / ".step-00000300.x.part").mkdir()
    (run / "checkpoints" / "step-00000400.old").mkdir()
    model = mobilemoe.load(run)
    assert model.folder == step_folder(run, 200)
    np.testing.assert_array_equal(model.logits([1]), mobilemoe.load(step_folder(run, 200)).logits([1]))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, tiny_folder):
    small = tmp_path / "small"
    write_random(small, family_member(32, expansion=2, granularity=4, layers=1, vocab_size=64), seed=0, format="int4")
    shutil.copy(tiny_folder / "tokenizer.json", small)
    text = refusal(lambda: mobilemoe.load(small).generate("Hi"), TokenizerError)
    assert "16384" in text
    assert "64" in text


def test_what_is_no_model_is_one_sentence(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True, raising=False)
    assert "is a file" in refusal(lambda: find_model(tiny_folder / "config.json"), ModelNotFoundError)
    assert "nano" in refusal(lambda: find_model("no-such-model"), ModelNotFoundError)
    assert refusal(lambda: find_model("x" * 5000), ModelNotFoundError)
    assert "does not exist" in refusal(lambda: mobilemoe.load(tmp_path), MobileMoEError)
    began = time.monotonic()
    assert "someone/no-such-model" in refusal(lambda: find_model("someone/no-such-model"), ModelNotFoundError)
    assert time.monotonic() - began < 20
    cut = shutil.copytree(tiny_folder, tmp_path / "cut")
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[:-100])
    assert str(cut) in refusal(lambda: mobilemoe.load(cut), CheckpointError)


def test_nano_is_bundled():
    assert find_model("nano").is_dir()
    assert find_model(Path("nano")) == find_model("nano")
