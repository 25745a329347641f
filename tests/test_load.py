"""The two-line API: what `load` finds, and what a loaded model writes, where it stops and what it refuses."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import mobilemoe
from conftest import write_model
from mobilemoe.checkpoint import write_random
from mobilemoe.checkpoint.run_folder import step_folder
from mobilemoe.errors import CheckpointError, MobileMoEError, ModelNotFoundError, TokenizerError, UsageError
from mobilemoe.hub import find_model
from mobilemoe.presets import family_member
from mobilemoe.tokenizer import BYTE_TO_CHARACTER

PROMPTS = ["Once upon a time", "x", "", "Häuser, 東京 and 🦊: a much longer prompt than the others, to be sure."]
USER = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def model(tiny_folder):
    return mobilemoe.load(tiny_folder)


@pytest.fixture
def script(monkeypatch):
    """Makes every model write given ids instead of what it computes; returns what was fed to it."""

    def install(ids: list[int]) -> list[list[int]]:
        fed: list[list[int]] = []

        class Decoder:
            def __init__(self, torch_model, prompts, new_tokens):
                self._rows, self._vocab, self._ids = len(prompts), torch_model.config.vocab_size, iter(ids)

            def prefill(self):
                logits_BV = np.zeros((self._rows, self._vocab), np.float32)
                logits_BV[:, next(self._ids)] = 1
                return logits_BV

            def step(self, tokens):
                fed.append(list(tokens))
                return self.prefill()

        monkeypatch.setattr("mobilemoe.model.generate.Decoder", Decoder)
        return fed

    return install


def byte_ids(model, data: bytes) -> list[int]:
    """One token per byte, however the tokenizer would join them."""
    return [model.tokenizer._backend.token_to_id(BYTE_TO_CHARACTER[byte]) for byte in data]


def refusal(call, kind=UsageError) -> str:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


# What load takes


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


def test_only_fp32_activations_are_there_yet(tiny_folder):
    text = refusal(lambda: mobilemoe.load(tiny_folder, activations="int8"))
    assert "int8" in text
    assert "fp32" in text


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


# What a model writes


def test_generate_gives_the_continuation_that_argmax_of_logits_gives(model):
    ids = model.encode("Once upon")
    grown = list(ids)
    for _ in range(6):
        grown.append(int(model.logits(grown)[-1].argmax()))
    assert model.generate("Once upon", max_new_tokens=6) == model.tokenizer.decode(grown[len(ids) :])


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 7}, {"temperature": 2.0, "top_k": 50, "seed": 1}])
def test_the_pieces_of_a_stream_join_to_generate(model, options):
    for prompt in PROMPTS:
        stream = model.stream(prompt, max_new_tokens=24, **options)
        pieces = list(stream)
        assert all(pieces)
        assert "".join(pieces) == model.generate(prompt, max_new_tokens=24, **options)
        assert stream.finished in ("stop", "length")
        assert stream.prompt_tokens == len(model.encode(prompt))
        assert 1 <= stream.new_tokens <= 24


def test_a_batch_gives_what_each_prompt_gives_alone(model):
    alone = [model.generate(prompt, max_new_tokens=16) for prompt in PROMPTS]
    assert model.generate_batch(PROMPTS, max_new_tokens=16) == alone
    assert model.generate_batch(PROMPTS[::-1], max_new_tokens=16) == alone[::-1]
    assert model.generate_batch(PROMPTS[:1], max_new_tokens=16) == alone[:1]
    assert model.generate_batch([]) == []


def test_a_batch_ends_each_row_where_it_would_end_alone(model):
    full = model.generate_batch(PROMPTS, max_new_tokens=12)
    stop = full[0][3:6]
    alone = [model.generate(prompt, max_new_tokens=12, stop=[stop]) for prompt in PROMPTS]
    assert model.generate_batch(PROMPTS, max_new_tokens=12, stop=[stop]) == alone
    assert len({len(text) for text in alone}) > 1


def test_messages_are_the_rendered_template(model):
    ids = model.encode(messages=[USER])
    rendered = (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\nHi<|eot|><|header_start|>assistant<|header_end|>\n\n"
    )
    assert ids == model.tokenizer.encode(rendered, special=True)
    assert model.generate(messages=[USER], max_new_tokens=4)


def test_a_prompt_cannot_hold_control_tokens(model):
    assert model.tokenizer.eot_id not in model.encode("<|eot|>")
    assert model.encode(messages=[{"role": "user", "content": "<|eot|>"}]).count(model.tokenizer.eot_id) == 1


@pytest.mark.parametrize("length", [1, 2, 7])
def test_max_new_tokens_are_never_exceeded(model, length):
    stream = model.stream("Once", max_new_tokens=length)
    list(stream)
    assert (stream.new_tokens, stream.finished) == (length, "length")
    assert list(stream) == []


def test_generation_ends_with_the_context(model):
    context = model.config.max_position_embeddings
    word = "a b c d e f g h " * 60
    for room in (1, 2, 5):
        count = next(n for n in range(len(word)) if len(model.encode(word[:n])) == context + 1 - room)
        stream = model.stream(word[:count], max_new_tokens=100)
        list(stream)
        assert (stream.new_tokens, stream.finished) == (room, "length")
    assert str(context) in refusal(lambda: model.generate(word))
    assert str(context) in refusal(lambda: model.generate_batch(["a", word]))


def test_an_empty_prompt_starts_from_begin_of_text(model):
    assert model.encode("") == [model.tokenizer.bos_id]
    assert model.generate("", max_new_tokens=3)


# Where a text stops


@pytest.mark.parametrize(
    ("written", "stop", "kept"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", "two", "one "),  # one text is one stop string, not its letters
        ("one two three", ["three", "one"], ""),
        ("aaab", ["aab"], "a"),
        ("ababac", ["abac"], "ab"),
        ("abcabd", ["abd", "bx"], "abc"),
        ("one END", ["ENDING"], "one END"),  # held back, and given when no more comes
        ("one", ["e", "ne"], "o"),
        ("grün🦊!", ["🦊"], "grün"),
        ("a\n\nb", ["\n\n"], "a"),
        ("abc", [], "abc"),
    ],
)
def test_a_stop_string_ends_the_text_before_it(model, script, written, stop, kept):
    ids = byte_ids(model, written.encode())
    for ending in ([], [model.tokenizer.eot_id]):
        script([*ids, *ending])
        stream = model.stream("x", max_new_tokens=len(ids) + len(ending), stop=stop)
        pieces = list(stream)
        assert "".join(pieces) == kept
        assert stream.finished == ("stop" if kept != written or ending else "length")


def test_text_is_held_only_while_it_may_become_a_stop_string(model, script):
    script(byte_ids(model, b"xxSTyySTOPzz"))
    stream = model.stream("x", max_new_tokens=12, stop=["STOP"])
    shown = [(stream.new_tokens, piece) for piece in stream]
    assert shown == [(1, "x"), (2, "x"), (5, "STy"), (6, "y")]


def test_a_stop_token_ends_the_text_and_is_not_written(model, script):
    assert len(model.stop_ids) >= 3
    for stop_id in model.stop_ids:
        script([*byte_ids(model, b"ab"), stop_id, *byte_ids(model, b"cd")])
        stream = model.stream("x")
        assert list(stream) == ["a", "b"]
        assert (stream.finished, stream.new_tokens) == ("stop", 3)


def test_stop_tokens_of_the_config_count_too(tmp_path, script):
    folder = write_model(tmp_path / "own-stop", eos_token_id=(300,))
    model = mobilemoe.load(folder)
    script([*byte_ids(model, b"a"), 300, *byte_ids(model, b"b")])
    assert model.generate("x") == "a"


def test_characters_are_never_broken(model, script):
    text = "é漢🦊\u200d👩🏽\u0301z"
    ids = byte_ids(model, text.encode())
    script(ids)
    pieces = list(model.stream("x", max_new_tokens=len(ids)))
    assert pieces == list(text)


def test_bytes_that_are_no_text_are_shown_as_such(model, script):
    data = b"a\xffb\xe6\xbcc\xf0\x9f\xa6"
    script(byte_ids(model, data))
    assert model.generate("x", max_new_tokens=len(data)) == data.decode(errors="replace")
    script([*byte_ids(model, data), model.tokenizer.eot_id])
    assert model.generate("x") == data.decode(errors="replace")


def test_each_token_is_fed_once_and_the_last_never(model, script):
    ids = byte_ids(model, b"abcd")
    fed = script(ids)
    model.generate("x", max_new_tokens=4)
    assert fed == [[token] for token in ids[:-1]]


# What is refused


def test_bad_calls_are_one_sentence(model):
    calls = {
        "prompt or messages": [lambda: model.generate(), lambda: model.generate("a", messages=[USER])],
        "prompts is one text": [lambda: model.generate_batch("ab")],
        "prompt is a": [lambda: model.generate(5), lambda: model.generate(("a", "b")), lambda: model.stream(["a"])],
        "max_new_tokens is": [lambda n=n: model.generate("a", max_new_tokens=n) for n in (0, -1, 1.5, "3", None)],
        "stop": [lambda s=s: model.generate("a", stop=s) for s in ("", [""], ["a", ""], [None], [5])],
        "temperature is -1": [lambda: model.generate("a", temperature=-1)],
        "outside the vocabulary": [lambda: model.logits([-1]), lambda: model.logits([0, 16_384])],
        "not a whole number": [lambda: model.logits([0.5]), lambda: model.logits(["a"]), lambda: model.logits("ab")],
        "at least one": [lambda: model.logits([])],
        "context of 256": [lambda: model.logits([0] * 257)],
    }
    for words, each in calls.items():
        for call in each:
            assert words in refusal(call)


def test_ids_may_come_from_numpy_and_fill_the_context(model):
    ids = np.arange(256)
    logits_TV = model.logits(ids)
    assert logits_TV.shape == (256, 16_384)
    np.testing.assert_allclose(model.logits(list(range(9))), logits_TV[:9], rtol=1e-4, atol=1e-5)


def test_messages_that_are_none_are_refused(model):
    for messages in ([], [{}], ["Hi"], [{"role": "user"}], [{"role": "user", "content": 5}], "Hi", 5):
        assert refusal(lambda m=messages: model.generate(messages=m), TokenizerError)


def test_a_model_without_a_chat_template_says_so(tmp_path):
    folder = write_model(tmp_path / "base")
    (folder / "tokenizer_config.json").unlink()
    model = mobilemoe.load(folder)
    assert "no chat template" in refusal(lambda: model.generate(messages=[USER]), TokenizerError)
    assert model.generate("Hi", max_new_tokens=2)


def test_half_a_surrogate_pair_is_refused(model):
    assert refusal(lambda: model.generate("a\ud800"), TokenizerError)
