"""`generate`, the second line of the two-line API: what a loaded model writes, where it stops, what it refuses."""

from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import numpy as np
import pytest

import mobilemoe
from mobilemoe.engine import Engine
from mobilemoe.errors import TokenizerError
from mobilemoe.tokenizer import BYTE_TO_CHARACTER
from refusals import refusal
from tiny_model import write_model

PROMPTS = ["Once upon a time", "x", "", "Häuser, 東京 and 🦊: a much longer prompt than the others, to be sure."]
USER = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def model(tiny_folder):
    return mobilemoe.load(tiny_folder)


@pytest.fixture(scope="module", params=["native", "torch"])
def either(request, tiny_folder):
    """The model on each backend in turn."""
    return mobilemoe.load(tiny_folder, backend=request.param)


@pytest.fixture
def script(monkeypatch):
    """Makes every native model write given ids instead of what it computes; returns what is fed to it, by pass."""
    forward = Engine.forward

    def install(ids: list[int]) -> list[list[int]]:
        fed: list[list[int]] = []
        coming = iter(ids)

        def scripted(engine, requests, experts):
            logits = forward(engine, requests, experts)
            fed.append([token for _, tokens, _ in requests for token in tokens])
            if len(logits):
                logits[:] = 0
                logits[:, next(coming)] = 1
            return logits

        monkeypatch.setattr(Engine, "forward", scripted)
        return fed

    return install


def byte_ids(model, data: bytes) -> list[int]:
    """One token per byte, however the tokenizer would join them."""
    return [model.tokenizer._backend.token_to_id(BYTE_TO_CHARACTER[byte]) for byte in data]


# What a model writes


def test_generate_gives_the_continuation_that_argmax_of_logits_gives(either):
    ids = either.encode("Once upon")
    grown = list(ids)
    for _ in range(6):
        grown.append(int(either.logits(grown)[-1].argmax()))
    assert either.generate("Once upon", max_new_tokens=6) == either.tokenizer.decode(grown[len(ids) :])


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 7}, {"temperature": 2.0, "top_k": 50, "seed": 1}])
def test_the_pieces_of_a_stream_join_to_generate(either, options):
    for prompt in PROMPTS:
        stream = either.stream(prompt, max_new_tokens=24, **options)
        pieces = list(stream)
        assert all(pieces)
        assert "".join(pieces) == either.generate(prompt, max_new_tokens=24, **options)
        assert stream.finished in ("stop", "length")
        assert stream.prompt_tokens == len(either.encode(prompt))
        assert 1 <= stream.new_tokens <= 24


def test_a_batch_gives_what_each_prompt_gives_alone(either):
    alone = [either.generate(prompt, max_new_tokens=16) for prompt in PROMPTS]
    assert either.generate_batch(PROMPTS, max_new_tokens=16) == alone
    assert either.generate_batch(PROMPTS[::-1], max_new_tokens=16) == alone[::-1]
    assert either.generate_batch(PROMPTS[:1], max_new_tokens=16) == alone[:1]
    assert either.generate_batch([]) == []


def test_a_batch_ends_each_row_where_it_would_end_alone(either):
    full = either.generate_batch(PROMPTS, max_new_tokens=12)
    stop = full[0][3:6]
    alone = [either.generate(prompt, max_new_tokens=12, stop=[stop]) for prompt in PROMPTS]
    assert either.generate_batch(PROMPTS, max_new_tokens=12, stop=[stop]) == alone
    assert len({len(text) for text in alone}) > 1


def test_threads_may_share_a_model(model):
    alone = [model.generate(prompt, max_new_tokens=24) for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(lambda prompt: model.generate(prompt, max_new_tokens=24), PROMPTS)) == alone


def test_streams_may_be_read_in_turns_and_dropped(model):
    alone = [model.generate(prompt, max_new_tokens=8) for prompt in PROMPTS]
    streams = [model.stream(prompt, max_new_tokens=8) for prompt in PROMPTS]
    texts = ["".join(pieces) for pieces in zip(*zip_longest(*streams, fillvalue=""), strict=True)]
    assert texts == alone
    next(model.stream(PROMPTS[3], max_new_tokens=8))
    assert model.generate(PROMPTS[3], max_new_tokens=8) == alone[3]


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
def test_max_new_tokens_are_never_exceeded(either, length):
    stream = either.stream("Once", max_new_tokens=length)
    list(stream)
    assert (stream.new_tokens, stream.finished) == (length, "length")
    assert list(stream) == []


def test_generation_ends_with_the_context(either):
    context = either.config.max_position_embeddings
    word = "a b c d e f g h " * 60
    for room in (1, 2, 5):
        count = next(n for n in range(len(word)) if len(either.encode(word[:n])) == context + 1 - room)
        stream = either.stream(word[:count], max_new_tokens=100)
        list(stream)
        assert (stream.new_tokens, stream.finished) == (room, "length")
    assert str(context) in refusal(lambda: either.generate(word))
    assert str(context) in refusal(lambda: either.generate_batch(["a", word]))


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
    assert fed[0][-1] == model.encode("x")[-1]
    assert fed[1:] == [[token] for token in ids[:-1]]


# What is refused


def test_bad_calls_are_one_sentence(either):
    calls = {
        "prompt or messages": [lambda: either.generate(), lambda: either.generate("a", messages=[USER])],
        "prompts is one text": [lambda: either.generate_batch("ab")],
        "prompt is a": [lambda: either.generate(5), lambda: either.generate(("a", "b")), lambda: either.stream(["a"])],
        "max_new_tokens is": [lambda n=n: either.generate("a", max_new_tokens=n) for n in (0, -1, 1.5, "3", None)],
        "stop": [lambda s=s: either.generate("a", stop=s) for s in ("", [""], ["a", ""], [None], [5])],
        "temperature is -1": [lambda: either.generate("a", temperature=-1)],
        "outside the vocabulary": [lambda: either.logits([-1]), lambda: either.logits([0, 16_384])],
        "not a whole number": [lambda: either.logits([0.5]), lambda: either.logits(["a"]), lambda: either.logits("ab")],
        "at least one": [lambda: either.logits([])],
        "context of 256": [lambda: either.logits([0] * 257)],
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
