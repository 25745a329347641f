"""Promises of `mobilemoe.tokenizer` and of the training of a small one."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, processors

from mobilemoe.data.train_tokenizer import train_tokenizer
from mobilemoe.errors import TokenizerError
from mobilemoe.tokenizer import BYTE_TO_CHARACTER, EOT, SPECIAL_NAMES, StreamDecoder, Tokenizer, byte_level

TEXTS = [
    "Hello, MobileMoE!",
    "It's we'LL don't I'VE 'tis \u017f '\u017f",
    "  two  spaces \t\ttabs \n\n\n lines\r\n\r\n  end   ",
    "1 12 123 1234 1234567.89 ٣٤٥ ½ Ⅷ",
    "def f(x):\n\treturn {'a': x ** 2}  # comment\n\n\nclass A: ...\n",
    "Grüße, żółć, Ελλάδα, Привет, नमस्ते, สวัสดี, 你好世界, こんにちは, 안녕하세요, مرحبا",
    "👩‍👩‍👧‍👦 🇵🇱 e\u0301 \u200b\u200d\ufeff \u00a0\u2003\u3000\u0085\u2028x \x00\x1f\x7f \ufffd \U0010ffff",
    "=" * 300 + "-" * 77 + " " * 99 + "\n" * 40,
    "<|begin_of_text|><|eot|> <|header_start|>system<|header_end|>",
]
BYTES_ONLY = {character: byte for byte, character in enumerate(BYTE_TO_CHARACTER)}
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def meta_model() -> Path:
    """The vocabulary of Llama 3 that ships in the `llama-models` package."""
    spec = find_spec("llama_models")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "llama3" / "tokenizer.model"


@pytest.fixture(scope="module")
def llama(meta_model: Path) -> Tokenizer:
    return Tokenizer.load(meta_model.parent)


@pytest.fixture(scope="module")
def nano() -> Tokenizer:
    return train_tokenizer(iter(TEXTS * 3), 500)


def test_the_published_fixture_is_reproduced(llama: Tokenizer) -> None:
    assert llama.encode("Hello, MobileMoE!", bos=True) == [128000, 9906, 11, 13716, 26694, 36, 0]


def test_control_ids_are_those_of_the_specification(llama: Tokenizer) -> None:
    assert llama.vocab_size == 128_256
    assert (llama.bos_id, llama.end_of_text_id, llama.eot_id) == (128000, 128001, 128008)
    assert (llama.header_start_id, llama.header_end_id) == (128005, 128006)
    assert llama.stop_ids == (128001, 128007, 128008)
    assert llama.special_ids == frozenset(range(128_000, 128_256))


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_those_of_tiktoken(llama: Tokenizer, meta_model: Path, text: str) -> None:
    assert llama.encode(text) == _reference(meta_model).encode(text, disallowed_special=())


@settings(max_examples=300, deadline=None)
@given(text=ANY_TEXT)
def test_ids_equal_those_of_tiktoken_for_any_text(llama: Tokenizer, meta_model: Path, text: str) -> None:
    assert llama.encode(text) == _reference(meta_model).encode(text, disallowed_special=())


def test_every_character_is_split_as_tiktoken_splits_it(llama: Tokenizer, meta_model: Path) -> None:
    characters = [chr(code) for code in range(0x3100) if not 0xD800 <= code < 0xE000]
    texts = [f"a{c} b {c}1{c}{c}\n{c}'s" for c in characters]
    assert llama.encode_batch(texts) == _reference(meta_model).encode_ordinary_batch(texts)


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_text_survives_a_round_trip(nano: Tokenizer, text: str) -> None:
    ids = nano.encode(text)
    assert nano.decode(ids) == text
    assert nano.special_ids.isdisjoint(ids)


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_a_stream_is_the_text_in_whole_characters(nano: Tokenizer, text: str) -> None:
    decoder = StreamDecoder(nano)
    pieces = [decoder.push(i) for i in nano.encode(text)]
    assert "".join(pieces) == text
    assert decoder.flush() == ""


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 520)))
def test_a_stream_of_any_ids_equals_decode_and_the_library(nano: Tokenizer, ids: list[int]) -> None:
    decoder = StreamDecoder(nano)
    streamed = "".join(decoder.push(i) for i in ids) + decoder.flush()
    assert streamed == nano.decode(ids) == nano._backend.decode(ids, skip_special_tokens=True)


def test_a_broken_tail_is_flushed_as_a_replacement_character(nano: Tokenizer) -> None:
    first_byte = next(i for i in range(300) if nano.token_bytes(i) == b"\xe2")
    decoder = StreamDecoder(nano)
    assert [decoder.push(first_byte), decoder.flush(), decoder.flush()] == ["", "\ufffd", ""]
    assert decoder.push(nano.encode("a")[0]) == "a"


def test_special_names_are_text_unless_asked_for(nano: Tokenizer) -> None:
    text = f"a{EOT}b"
    assert nano.eot_id not in nano.encode(text)
    assert nano.encode(text, special=True) == [*nano.encode("a"), nano.eot_id, *nano.encode("b")]
    assert nano.decode(nano.encode(text, special=True)) == "ab"
    assert nano.decode(nano.encode(text, special=True), skip_special=False) == text


def test_control_names_that_a_file_leaves_unmarked_cannot_be_injected(tmp_path: Path) -> None:
    backend = byte_level(models.BPE(vocab=BYTES_ONLY, merges=[]))
    backend.add_tokens([AddedToken(EOT, special=False, normalized=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.eot_id == 256
    assert 256 not in loaded.encode(EOT)


def test_llama_3_names_are_understood() -> None:
    backend = byte_level(models.BPE(vocab=BYTES_ONLY, merges=[]))
    backend.add_special_tokens(
        ["<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"]
    )
    loaded = Tokenizer(backend)
    assert (loaded.header_start_id, loaded.header_end_id, loaded.eot_id) == (257, 258, 260)
    assert loaded.stop_ids == (256, 259, 260)
    assert loaded.bos_id is None
    with pytest.raises(TokenizerError, match="begin_of_text"):
        loaded.encode("a", bos=True)


def test_nothing_in_a_file_adds_cuts_or_pads_ids(nano: Tokenizer, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(nano._backend.to_str())
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    backend.post_processor = processors.TemplateProcessing(single="$A <|eot|>", special_tokens=[(EOT, nano.eot_id)])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode(TEXTS[0]) == nano.encode(TEXTS[0])


def test_a_saved_tokenizer_loads_the_same(nano: Tokenizer, tmp_path: Path) -> None:
    nano.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode_batch(TEXTS) == nano.encode_batch(TEXTS) == [nano.encode(text) for text in TEXTS]
    assert (loaded.vocab_size, loaded.stop_ids) == (nano.vocab_size, nano.stop_ids)


@pytest.mark.parametrize("which", ["llama", "nano"])
def test_transformers_reads_a_saved_tokenizer_alike(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours: Tokenizer = request.getfixturevalue(which)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text, special=True)
        assert theirs(text).input_ids == ours.encode(text, bos=True, special=True)
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))
    assert len(theirs) == ours.vocab_size


def test_half_a_surrogate_pair_is_one_sentence(nano: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="Unicode"):
        nano.encode("a\ud800")


def test_a_folder_without_a_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"model": 3}', b"\xff\xfe", b"[" * 10_000])
def test_a_damaged_json_names_its_file(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(damage)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be used") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"IQ== 0", b"IQ== 1"),
        lambda data: data.replace(b"IQ== 0", b"!!!! 0"),
        lambda data: data.replace(b"IQ== 0", b"IQ==  -"),
        lambda data: data.replace(b"IQ== 0", b"ISEhISEhISEhISEhISEhISEhISEhISEhISEhISEhIQ== 0"),
        lambda data: b"\x0a\x0d\x00\xff sentencepiece",
    ],
)
def test_a_damaged_rank_file_names_its_file(damage, meta_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(damage(meta_model.read_bytes()))
    with pytest.raises(TokenizerError, match=r"tokenizer\.model cannot be used"):
        Tokenizer.load(tmp_path)


def loaded_or_refused(folder: Path) -> Tokenizer | str:
    """The tokenizer, or the sentence that refuses it."""
    try:
        return Tokenizer.load(folder)
    except TokenizerError as fault:
        return str(fault)


def test_a_damaged_json_is_refused_by_name_or_still_loses_no_byte(nano: Tokenizer, tmp_path: Path) -> None:
    whole = nano._backend.to_str().encode()
    random, refused, loaded = Random(0), 0, 0
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(random.choice([1, 1, 4])):
            at = random.randrange(len(broken))
            broken[at : at + random.randrange(3)] = random.choice([b"", b"0", b"9", b"-", b'"', b"x", b"\x80", b"[]"])
        (tmp_path / "tokenizer.json").write_bytes(broken)
        found = loaded_or_refused(tmp_path)
        if isinstance(found, str):
            assert "tokenizer.json" in found
            assert len(found.splitlines()) == 1
            refused += 1
        else:
            ids = found.encode(TEXTS[5])
            assert max(ids) < found.vocab_size
            assert found.decode(ids) == TEXTS[5]
            loaded += 1
    assert refused > 20
    assert loaded > 20


def test_tokens_outside_the_byte_alphabet_stand_for_themselves() -> None:
    backend = byte_level(models.BPE(vocab={**BYTES_ONLY, "a b\u4f60": 256}, merges=[]))
    assert Tokenizer(backend).decode([256]) == "a b\u4f60" == backend.decode([256])


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path) -> None:
    tokenizers.Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="byte-level"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_that_would_lose_bytes_is_refused() -> None:
    with pytest.raises(TokenizerError, match="single byte"):
        Tokenizer(byte_level(models.BPE(vocab={"a": 0}, merges=[])))


def test_json_goes_before_the_rank_file(nano: Tokenizer, meta_model: Path, tmp_path: Path) -> None:
    nano.save(tmp_path)
    shutil.copy(meta_model, tmp_path)
    assert Tokenizer.load(tmp_path).vocab_size == 500


def test_training_gives_the_ids_asked_for_with_control_ids_last(nano: Tokenizer) -> None:
    assert nano.vocab_size == 500
    last = range(500 - len(SPECIAL_NAMES), 500)
    assert [nano.encode(name, special=True) for name in SPECIAL_NAMES] == [[i] for i in last]
    assert {nano.token_bytes(i) for i in range(256)} == {bytes([byte]) for byte in range(256)}


def test_training_is_deterministic_and_tells_its_progress() -> None:
    heard: list[int] = []
    first = train_tokenizer(iter(TEXTS), 400, on_progress=heard.append)
    assert first._backend.to_str() == train_tokenizer(iter(TEXTS), 400)._backend.to_str()
    assert len(heard) == len(TEXTS)
    assert heard[-1] == sum(len(text.encode()) for text in TEXTS)


def test_training_on_too_little_text_says_how_far_it_came() -> None:
    with pytest.raises(TokenizerError, match=r"too small for 5000 ids: it came to \d+"):
        train_tokenizer(iter(["hello hello"]), 5000)
    with pytest.raises(TokenizerError, match="vocab_size is 256"):
        train_tokenizer(iter(TEXTS), 256)


def _reference(meta_model: Path):
    """The tiktoken encoding of Meta's own reader."""
    from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

    assert meta_model.exists()
    return MetaTokenizer.get_instance().model
