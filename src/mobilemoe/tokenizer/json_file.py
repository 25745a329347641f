"""Reads a tokenizer.json. Only known structures are accepted, and the tokenizer is rebuilt from them.

The library's own reader accepts every structure that it has, and some of them make it panic, abort the process, or use
all memory. So the file is read as JSON here, every part is checked, and the pipeline is built from the checked parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from mobilemoe.errors import MobileMoEError, TokenizerError
from mobilemoe.files import read_json
from mobilemoe.tokenizer.pipeline import SPLIT_PATTERN
from mobilemoe.tokenizer.split_pattern import check_pattern, check_speed

_MAX_ID = 2**24  # the largest vocabulary of a model
_MAX_PARTS = 16
_MAX_ADDED, _MAX_ADDED_CHARACTERS = 2**17, 2**22

_Object = dict[str, Any]


def read_json_file(path: Path) -> tokenizers.Tokenizer:
    """The byte-level BPE in the file. Raises TokenizerError, without the file's name, for any other kind."""
    raw = read_json(path, TokenizerError)
    parts = _checked_parts(raw)
    with no_panic("it is not a tokenizer file"):
        backend = tokenizers.Tokenizer(_model(_object(raw.get("model"), "model")))
        frame = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}, **parts}
        made = tokenizers.Tokenizer.from_str(json.dumps(frame))
        for name in parts:
            setattr(backend, name, getattr(made, name))
        _add_tokens(backend, raw.get("added_tokens"))
    _try_splits(parts["pre_tokenizer"], made.pre_tokenizer)
    return backend


@contextmanager
def no_panic(sentence: str) -> Iterator[None]:
    """Turns whatever the library raises, even a panic, into a TokenizerError that begins with `sentence`."""
    try:
        yield
    except (MobileMoEError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as fault:  # a panic in Rust
        raise TokenizerError(f"{sentence} ({' '.join(str(fault).split())})") from None


def _checked_parts(raw: Mapping[str, Any]) -> dict[str, _Object]:
    """Those of normalizer, pre_tokenizer, post_processor and decoder that are not null, each checked."""
    decoder = _object(raw.get("decoder") or {}, "decoder")
    splits = [part["type"] for part in _flat(raw.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers")]
    if decoder.get("type") != "ByteLevel" or splits.count("ByteLevel") != 1:
        raise TokenizerError("the tokenizer is not a byte-level BPE, the only kind that MobileMoE models use")
    for part in _flat(raw.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers"):
        _check_split(part)
    for part in _flat(raw.get("normalizer"), "normalizer", "normalizers"):
        if part["type"] != "NFC":
            raise TokenizerError(f"its normalizer is {part['type']!r}, but only NFC is known here")
    for part in _flat(raw.get("post_processor"), "post_processor", "processors"):
        _check_post_processor(part)
    names = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {name: raw[name] for name in names if raw.get(name) is not None}


def _flat(value: Any, name: str, inside: str) -> list[_Object]:
    """The parts of a sequence, or the single part; each has a type."""
    if value is None:
        return []
    part = _object(value, name)
    if part.get("type") != "Sequence":
        found = [part]
    elif isinstance(part.get(inside), list):
        found = [_object(each, name) for each in part[inside]]
    else:
        raise TokenizerError(f"its {name} is a sequence without {inside}")
    if len(found) > _MAX_PARTS:
        raise TokenizerError(f"its {name} has {len(found)} parts, more than the {_MAX_PARTS} allowed here")
    for each in found:
        if not isinstance(each.get("type"), str) or each["type"] == "Sequence":
            raise TokenizerError(f"its {name} has a part of the type {each.get('type')!r}, which is not known here")
    return found


def _check_split(part: _Object) -> None:
    kind = part["type"]
    if kind == "Split":
        pattern = _object(part.get("pattern"), "pattern")
        if part.get("behavior") not in ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
            raise TokenizerError(f"its split has the behavior {part.get('behavior')!r}, which would lose text")
        if set(pattern) == {"Regex"} and isinstance(pattern["Regex"], str):
            check_pattern(pattern["Regex"])
        elif set(pattern) != {"String"} or not isinstance(pattern["String"], str):
            raise TokenizerError("its split has no pattern")
    elif kind not in ("ByteLevel", "Digits"):
        raise TokenizerError(f"its pre_tokenizer has a part of the type {kind!r}, which is not known here")


def _check_post_processor(part: _Object) -> None:
    """A processor may add special tokens, which are never requested here; it must contain the text exactly once."""
    kind = part["type"]
    if kind in ("ByteLevel", "BertProcessing", "RobertaProcessing"):
        return
    if kind != "TemplateProcessing":
        raise TokenizerError(f"its post_processor has a part of the type {kind!r}, which is not known here")
    for name, texts in (("single", ["A"]), ("pair", ["A", "B"])):
        pieces = part.get(name)
        if not isinstance(pieces, list) or not all(isinstance(piece, dict) for piece in pieces):
            raise TokenizerError(f"its post_processor has a {name} that is not a list of objects")
        sequences = [piece["Sequence"] for piece in pieces if "Sequence" in piece]
        if sorted(str(_object(each, name).get("id")) for each in sequences) != texts:
            raise TokenizerError(f"its post_processor has a {name} that does not hold {' and '.join(texts)} once")


def _model(model: _Object) -> models.BPE:
    vocab, merges = model.get("vocab"), model.get("merges")
    if model.get("type", "BPE") != "BPE" or not isinstance(vocab, dict) or not isinstance(merges, list):
        raise TokenizerError(f"its model is of the type {model.get('type')!r}, but only a BPE is known here")
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            raise TokenizerError(f"its model has the {name} {model[name]!r}, which is not known here")
    ids = set(vocab.values()) if set(map(type, vocab.values())) <= {int} else {-1}
    if ids and not 0 <= min(ids) <= max(ids) < _MAX_ID:
        raise TokenizerError(f"its vocabulary has an id that is not a whole number below {_MAX_ID}")
    if len(ids) != len(vocab):
        raise TokenizerError("its vocabulary gives two tokens the same id")
    pairs: list[Any] = [merge.split(" ") for merge in merges] if set(map(type, merges)) == {str} else merges
    if not set(map(type, pairs)) <= {list} or not set(map(len, pairs)) <= {2}:
        raise TokenizerError("its merges are not all of two tokens")
    switches = {name: bool(model.get(name)) for name in ("fuse_unk", "byte_fallback", "ignore_merges")}
    return models.BPE(vocab=vocab, merges=list(map(tuple, pairs)), unk_token=model.get("unk_token"), **switches)


def _add_tokens(backend: tokenizers.Tokenizer, raw: Any) -> None:
    """The added tokens, at the ids that the file gives them."""
    entries = [] if raw is None else raw
    if not isinstance(entries, list) or len(entries) > _MAX_ADDED:
        raise TokenizerError(f"its added_tokens are not a list of at most {_MAX_ADDED}")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or type(entry.get("id")) is not int:
            raise TokenizerError("its added_tokens hold one that has not both id and content")
    if sum(len(entry["content"]) for entry in entries) > _MAX_ADDED_CHARACTERS:
        raise TokenizerError(f"its added_tokens are more than {_MAX_ADDED_CHARACTERS} characters")
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    backend.add_tokens(
        [AddedToken(entry["content"], **{name: bool(entry.get(name)) for name in names}) for entry in entries]
    )
    for entry in entries:
        if (found := backend.token_to_id(entry["content"])) != entry["id"]:
            raise TokenizerError(f"its added token {entry['content']!r} has the id {entry['id']}, but gets {found}")


def _try_splits(raw: _Object, made: pre_tokenizers.PreTokenizer) -> None:
    """Splits that are not ours are tried on texts that make a bad expression slow."""
    patterns = [part["pattern"].get("Regex", "") for part in _flat(raw, "", "pretokenizers") if part["type"] == "Split"]
    if any(pattern not in ("", SPLIT_PATTERN) for pattern in patterns):
        with no_panic("its split fails"):
            check_speed(made.pre_tokenize_str, "".join(patterns))


def _object(value: Any, name: str) -> _Object:
    if not isinstance(value, dict):
        raise TokenizerError(f"its {name} is a {type(value).__name__}, not an object")
    return value
