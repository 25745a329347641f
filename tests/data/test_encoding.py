"""Promises of data.encoding: the ids are those of the runtime, and the taught ones are what a model has to write."""

import json
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilemoe.chat import ChatTemplate, encode_chat
from mobilemoe.data import encoding
from mobilemoe.data.encoding import Encoder, open_tokenizer
from mobilemoe.data.sources import Document
from mobilemoe.errors import DataError, TokenizerError
from mobilemoe.tokenizer import Tokenizer

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)
STARTS = st.sampled_from(["", " ", "\n", "\n\n", "<|eot|>", "a"])


@pytest.fixture(scope="module")
def opened():
    return open_tokenizer("nano")


@pytest.fixture(scope="module")
def encoder(opened):
    return Encoder(*opened)


def chat(*messages):
    return Document(None, [{"role": role, "content": content} for role, content in messages], "s", "chat.jsonl:7")


@settings(max_examples=200, deadline=None)
@given(user=TEXT, start=STARTS, answer=TEXT)
def test_a_conversation_is_encoded_as_the_runtime_does_and_its_answer_is_taught(opened, encoder, user, start, answer):
    tokenizer, template = opened
    document = chat(("system", "Be brief."), ("user", user), ("assistant", start + answer))
    [encoded] = encoder.encode([document])
    ids = encode_chat(tokenizer, template, document.messages, add_generation_prompt=False)
    assert encoded.ids_N.tolist() == ids
    prompt = encode_chat(tokenizer, template, document.messages[:-1])
    taught = encoded.taught_N.tolist()
    if not (start + answer).strip():
        assert not any(taught)
    elif ids[: len(prompt)] == prompt:
        assert taught == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    else:  # the answer's first line ends share a token with those of the header
        assert taught == [False] * (len(prompt) - 1) + [True] * (len(ids) - len(prompt) + 1)


def test_a_tokenizer_that_composes_characters_teaches_the_same_words(opened, tmp_path):
    tokenizer, template = opened
    tokenizer.save(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"normalizer": {"type": "NFC"}}))
    composes = Tokenizer.load(tmp_path)
    apart = normalize("NFD", "Zażółć gęślą jaźń, é")
    [encoded] = Encoder(composes, template).encode([chat(("user", apart), ("assistant", apart), ("user", apart))])
    assert composes.decode(encoded.ids_N[encoded.taught_N], skip_special=False) == normalize("NFC", apart) + "<|eot|>"


def test_texts_are_framed_and_conversations_of_a_batch_do_not_mix(opened, encoder):
    tokenizer, _ = opened
    documents = [
        Document("Once", None, "s", "k", ends=False),
        chat(("user", "Once"), ("assistant", "Twice"), ("user", "And?"), ("assistant", "Once")),
        Document("Twice", None, "s", "k"),
    ]
    start, talk, whole = encoder.encode(documents)
    assert start.ids_N.tolist() == tokenizer.encode("Once", bos=True)
    assert whole.ids_N.tolist() == [*tokenizer.encode("Twice", bos=True), tokenizer.end_of_text_id]
    assert start.taught_N is None
    assert tokenizer.decode(talk.ids_N[talk.taught_N], skip_special=False) == "Twice<|eot|>Once<|eot|>"
    assert talk.ids_N.dtype == np.int64


def test_a_conversation_that_the_template_refuses_is_named(opened):
    template = ChatTemplate("{{ raise_exception('no system message') }}")
    with pytest.raises(DataError, match=r"chat\.jsonl:7 of s cannot be encoded: .*no system message"):
        Encoder(opened[0], template).encode([chat(("user", "Hi"))])


def test_a_message_of_weight_0_is_shown_and_not_learnt(opened, encoder):
    document = chat(("user", "Once"), ("assistant", "No."), ("user", "And?"), ("assistant", "Yes."))
    whole, shown, silent = encoder.encode(
        [document, document._replace(unlearnt=(1,)), document._replace(unlearnt=(1, 3))]
    )
    assert whole.ids_N.tolist() == shown.ids_N.tolist() == silent.ids_N.tolist()
    tokenizer, _ = opened
    assert tokenizer.decode(shown.ids_N[shown.taught_N], skip_special=False) == "Yes.<|eot|>"
    assert not silent.taught_N.any()


def test_very_long_texts_and_messages_are_cut_before_they_are_split(opened, encoder, monkeypatch):
    monkeypatch.setattr(encoding, "LONGEST_CHARS", 100)
    text = "One two three.\n" * 50 + " " * 1000
    conversation = chat(("user", text), ("assistant", text))
    tokenizer, _ = opened
    found, talk = encoder.encode([Document(text, None, "s", "k"), conversation])
    assert tokenizer.decode(found.ids_N) == text
    assert tokenizer.decode(talk.ids_N[talk.taught_N]) == text


class Refusing:
    """A tokenizer that refuses one word, as the real one does a million blanks."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def encode_batch(self, texts):
        if any("blanks" in text for text in texts):
            raise TokenizerError("too many")
        return self._tokenizer.encode_batch(texts)


def test_the_document_that_the_tokenizer_refuses_is_named(opened):
    tokenizer, template = opened
    encoder = Encoder(Refusing(tokenizer), template)
    documents = [Document("fine", None, "s", "a:1"), chat(("user", "blanks")), Document("blanks", None, "s", "a:3")]
    with pytest.raises(DataError, match=r"^chat\.jsonl:7 of s cannot be split into tokens: too many"):
        encoder.encode(documents)
