"""A tokenizer.json that came with a model: only known structures, no panic, no abort, no unbounded work."""

import copy
import json
import time
from pathlib import Path

import pytest

from mobilemoe.data.train_tokenizer import train_tokenizer
from mobilemoe.errors import TokenizerError
from mobilemoe.tokenizer import Tokenizer
from mobilemoe.tokenizer.pipeline import SPLIT_PATTERN
from mobilemoe.tokenizer.split_pattern import check_pattern

WORDS = "The keeper of the light says that 12 ferries and 1,234 boats came; żółw.\n\n"
TEXTS = [WORDS, " " * 50 + "a" * 40 + "!" * 30, "don't WE'LL\r\n\t x", "日本語 한국어"]


@pytest.fixture(scope="module")
def whole() -> dict:
    return json.loads(train_tokenizer(iter([WORDS * 9]), 300)._backend.to_str())


def split(pattern: str, **changes) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **changes}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TWICE = {"Sequence": {"id": "A", "type_id": 0}}
SECOND = {"Sequence": {"id": "B", "type_id": 0}}


def sequence(*parts: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def processor(single: list, pair: list | None = None) -> dict:
    return {"type": "TemplateProcessing", "single": single, "pair": pair or [TWICE, SECOND], "special_tokens": {}}


BAD = {
    "a prefix of NUL": ({"model.continuing_subword_prefix": "\0"}, "continuing_subword_prefix"),
    "a prefix": ({"model.continuing_subword_prefix": "##"}, "continuing_subword_prefix"),
    "a suffix": ({"model.end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
    "chance": ({"model.dropout": 0.1}, "dropout"),
    "another model": ({"model.type": "Unigram"}, "Unigram"),
    "words": ({"model.type": "WordLevel"}, "WordLevel"),
    "a vocabulary of a list": ({"model.vocab": []}, "only a BPE"),
    "an id of text": ({"model.vocab.z": "5"}, "an id"),
    "an id below zero": ({"model.vocab.z": -1}, "an id"),
    "an id beyond": ({"model.vocab.z": 4294967295}, "an id"),
    "an id twice": ({"model.vocab.zz": 5}, "the same id"),
    "a merge of three": ({"model.merges": ["a b c"]}, "merges are not all of two"),
    "a merge of numbers": ({"model.merges": [[1, 2]]}, "not a tokenizer file"),
    "a merge of strangers": ({"model.merges": ["qqq zzz"]}, "not a tokenizer file"),
    "a merge of null": ({"model.merges": [None]}, "merges are not all of two"),
    "merges in both ways": ({"model.merges": ["a b", ["a", "b"]]}, "merges are not all of two"),
    "40 byte levels": ({"pre_tokenizer": sequence(*[BYTE_LEVEL] * 40)}, "40 parts"),
    "2 byte levels": ({"pre_tokenizer": sequence(BYTE_LEVEL, BYTE_LEVEL)}, "byte-level"),
    "no byte level": ({"pre_tokenizer": sequence(split(SPLIT_PATTERN))}, "byte-level"),
    "no pre-tokenizer": ({"pre_tokenizer": None}, "byte-level"),
    "sequences in sequences": ({"pre_tokenizer": sequence(sequence(BYTE_LEVEL))}, "'Sequence'"),
    "metaspace": ({"pre_tokenizer": sequence(BYTE_LEVEL, {"type": "Metaspace", "replacement": "_"})}, "Metaspace"),
    "a split that removes": ({"pre_tokenizer": sequence(split(" ", behavior="Removed"), BYTE_LEVEL)}, "lose text"),
    "replacements": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}}] * 9}},
        "normalizer is 'Replace'",
    ),
    "a prepended mark": ({"normalizer": {"type": "Prepend", "prepend": "_"}}, "normalizer is 'Prepend'"),
    "compatibility forms": ({"normalizer": {"type": "NFKC"}}, "normalizer is 'NFKC'"),
    "small letters": ({"normalizer": {"type": "Lowercase"}}, "normalizer is 'Lowercase'"),
    "the second text alone": ({"post_processor": processor([SECOND])}, "single"),
    "the text twice": ({"post_processor": processor([TWICE, TWICE])}, "single"),
    "no text": ({"post_processor": processor([])}, "single"),
    "a processor of numbers": ({"post_processor": processor([3])}, "list of objects"),
    "an unknown processor": ({"post_processor": {"type": "Reverse"}}, "Reverse"),
    "a processor of text": ({"post_processor": "x"}, "post_processor is a str"),
    "another decoder": ({"decoder": {"type": "WordPiece"}}, "byte-level"),
    "no decoder": ({"decoder": None}, "byte-level"),
    "added tokens of text": ({"added_tokens": ["a"]}, "not both id and content"),
    "an added token without id": ({"added_tokens": [{"content": "<x>"}]}, "not both id and content"),
    "an added token elsewhere": ({"added_tokens": [{"content": "<x>", "id": 9}]}, "has the id 9, but gets"),
    "an added token of nothing": ({"added_tokens": [{"content": "", "id": 999}]}, "has the id 999"),
    "a long added token": ({"added_tokens": [{"content": "x" * 5_000_000, "id": 300}]}, "characters"),
}
PATTERNS = {
    "(a+)+$": "varying length",
    "(?:a|a)*b": "varying length",
    "(a{1,9}){9,}": "varying length",
    "((a?)?)*": "varying length",
    "(?:(?:a+)?b?)+c": "varying length",
    "(\\p{L}\\s*)+!": "varying length",
    "a{1,99999}": "repeats more than",
    "(a)\\1+": "no kind",
    "(?<n>a)\\k<n>": "no kind",
    "(?(1)a|b)": "no kind",
    "(?R)": "no kind",
    "a)": "no kind",
    "(a": "no kind",
    "[a": "no kind",
    "**": "no kind",
    "a" * 5000: "5000 characters",
    " *(?=\\w*\\w*\\w*\\w*x!)": "takes more than|split fails",
    "a?" * 60 + "a{60}\\0": "takes more than|split fails",
    "\\w*\\w*\\w*\\w*\\w*-": "takes more than|split fails",
}
# Of public tokenizers: GPT-2, GPT-4, GPT-4o, Llama 3, Qwen 2, DeepSeek 3, BLOOM, digits by threes from the right.
GOOD = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    SPLIT_PATTERN,
    SPLIT_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"),
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "[一-龥\u3040-\u309f\u30a0-ヿ]+",
    " ?[^(\\s|[.,!?…。\uff0c、।\u06d4،])]+",
    r"[\p{L}&&[^\p{Han}]]+|\p{Han}+",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    r"(?=(\d{3})+(?!\d))",
    r"[[:punct:]]|[0-9][0-9][0-9]",
]


def changed(whole: dict, changes: dict) -> dict:
    raw = copy.deepcopy(whole)
    for place, value in changes.items():
        *above, last = place.split(".")
        entry = raw
        for name in above:
            entry = entry[name]
        entry[last] = value
    return raw


def load(raw: dict, folder: Path) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_known_is_refused_by_name(case: str, whole: dict, tmp_path: Path) -> None:
    changes, complaint = BAD[case]
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be used") as caught:
        load(changed(whole, changes), tmp_path)
    assert complaint in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda text: text[:30])
def test_an_expression_that_can_take_for_ever_is_refused(pattern: str, whole: dict, tmp_path: Path) -> None:
    began = time.thread_time()
    with pytest.raises(TokenizerError, match=PATTERNS[pattern]):
        load(changed(whole, {"pre_tokenizer": sequence(split(pattern), BYTE_LEVEL)}), tmp_path)
    assert time.thread_time() - began < 10


@pytest.mark.parametrize("pattern", GOOD, ids=lambda text: text[:30])
def test_the_expressions_of_public_tokenizers_are_taken(pattern: str, whole: dict, tmp_path: Path) -> None:
    check_pattern(pattern)
    loaded = load(changed(whole, {"pre_tokenizer": sequence(split(pattern), BYTE_LEVEL)}), tmp_path)
    for text in TEXTS:
        assert loaded.decode(loaded.encode(text)) == text


OTHERS = {
    "GPT-2's": {"pre_tokenizer": BYTE_LEVEL | {"use_regex": True}},
    "digits apart": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL)},
    "composed": {"normalizer": {"type": "NFC"}},
    "composed in a sequence": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}},
    "no processor": {"post_processor": None},
    "two processors": {
        "post_processor": {
            "type": "Sequence",
            "processors": [BYTE_LEVEL, processor([TWICE])],
        }
    },
    "no type": {"model.type": "BPE", "version": None, "truncation": {"max_length": 1}},
    "a split by a text": {"pre_tokenizer": sequence({**split(""), "pattern": {"String": " "}}, BYTE_LEVEL)},
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_byte_level_tokenizers_are_read_as_the_library_reads_them(case: str, whole: dict, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library

    raw = changed(whole, OTHERS[case])
    loaded = load(raw, tmp_path)
    theirs = Library.from_str(json.dumps({**raw, "version": "1.0", "truncation": None}))
    for text in TEXTS:
        assert loaded.encode(text) == theirs.encode(text, add_special_tokens=False).ids
        assert loaded.decode(loaded.encode(text)) == text


def test_merges_may_be_written_in_both_ways(whole: dict, tmp_path: Path) -> None:
    merges = whole["model"]["merges"]
    texts = [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]
    pairs = [text.split(" ") for text in texts]
    found = [load(changed(whole, {"model.merges": form}), tmp_path).encode(WORDS) for form in (texts, pairs)]
    assert found[0] == found[1]


def test_blanks_without_end_are_refused_before_the_library_panics(whole: dict, tmp_path: Path, capfd) -> None:
    loaded = load(whole, tmp_path)
    assert loaded.decode(loaded.encode(" " * 100_000)) == " " * 100_000
    for blank in (" ", "\t", "\u3000"):
        with pytest.raises(TokenizerError, match="blanks or more in a row"):
            loaded.encode("a" + blank * 6_000_000)
    assert "panicked" not in capfd.readouterr().err


def test_a_file_of_empty_lists_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": [' + "[]," * 3_000_000 + "0]}")
    with pytest.raises(TokenizerError, match="lists and objects"):
        Tokenizer.load(tmp_path)
