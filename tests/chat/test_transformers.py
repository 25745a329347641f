"""A chat template gives the same text, and marks the same parts as the assistant's, as in transformers."""

import json
from pathlib import Path

import pytest

from mobilemoe.chat import ChatTemplate
from mobilemoe.data.encoding import Encoder
from mobilemoe.data.sources import Document
from mobilemoe.data.train_tokenizer import train_tokenizer
from mobilemoe.errors import TokenizerError
from mobilemoe.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

CHAT = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": 'Name one <b>JVM</b> & "language" — zażółć\t🙂'},
    {"role": "assistant", "content": "Kotlin.\n\n"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "  Kotlin, Scala"},
]
TOKENS = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": {
        "__type": "AddedToken",
        "content": "<|end_of_text|>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
    },
    "pad_token": "<|eom|>",
    "unk_token": "<|eot|>",
}
TURN = "<|header_start|>{{ m.role }}<|header_end|>\n\n"
RENDERED = {
    "tokens": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ sep_token }}|{{ cls_token }}"
    "{% if mask_token is defined %}no{% endif %}{% if unk_token is defined %}yes{% endif %}",
    "tojson": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{{ m | tojson(ensure_ascii=True) }}"
    "{{ m | tojson(separators=(',', ':')) }}{{ {'b': 1, 'a': [1.5, none, true]} | tojson(sort_keys=true) }}"
    "{% endfor %}",
    "tojson by place": "{{ messages[1] | tojson(True, 1, (';', '='), True) }}",
    "generation": "{% for m in messages %}" + TURN + "{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|eot|>{% endgeneration %}{% else %}{{ m.content }}<|eot|>{% endif %}{% endfor %}",
    "namespace": "{% set n = namespace(i=0, last='') %}{% for m in messages %}{% set n.i = n.i + 1 %}"
    "{% set n.last = m.content %}{% endfor %}{{ n.i }}{{ n.last }}",
    "macro": "{% macro turn(m, end='!') %}{{ m.role | upper }}: {{ m['content'] | trim }}{{ end }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{{ turn(m, end='?') }}{% endfor %}",
    "loops": "{% for m in messages if m.role != 'system' %}{% if loop.last %}{% break %}{% endif %}"
    "{% if loop.first %}{% continue %}{% endif %}{{ loop.index }}{{ loop.previtem.role }}{% endfor %}",
    "methods": "{% for m in messages %}{{ m.content.strip().replace('K', 'k').split('o')[0].title() }}"
    "{{ m.content.startswith('Name') }}{{ m.items() | list | length }}{{ m.get('name', 'nobody') }}{% endfor %}",
    "dict": "{{ dict(a=1, b='x') | tojson }}{{ dict.fromkeys(['a'], 2) | tojson }}",
    "lines": "a\r\n{% if true %}\n  b\n{% endif %}\n\n{#- c -#}\n  d\n",
    "tools": "{% if tools is not none %}no{% endif %}{% if not documents %}none{% endif %}",
    "names that nobody gives, asked through filters": "{% if safety_mode | upper == 'NONE' %}no{% endif %}"
    "{% if messages[0].thinking | trim %}no{% endif %}{{ nobody ~ 'x' }}{{ nobody | default('y') }}",
    "time": "{{ strftime_now('%Y-%m-%d %z%Z') }}",
    "prompt": "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|header_start|>{% endif %}",
    "filters": "{{ messages | map(attribute='role') | join(',') }}{{ messages | selectattr('role', 'eq', 'user') "
    "| map(attribute='content') | list | tojson }}"
    "{{ [3, 1, 2] | sort | first }}{{ 'x' is string }}{{ 7 is divisibleby 7 }}",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(["The user and the assistant of a system name Kotlin, Scala, one language. " * 9]), 310)


def folder_with(tokenizer: Tokenizer, folder: Path, source: str | dict) -> Path:
    tokenizer.save(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS, "chat_template": source})
    )
    return folder


@pytest.mark.parametrize("name", RENDERED)
def test_a_template_writes_what_it_writes_in_transformers(tokenizer: Tokenizer, name: str, tmp_path: Path) -> None:
    folder = folder_with(tokenizer, tmp_path, RENDERED[name])
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), ChatTemplate.load(folder)
    for begins in (True, False):
        expected = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=begins)
        assert ours.render(CHAT, add_generation_prompt=begins) == expected


@pytest.mark.parametrize("source", ["{{ bos_token + 'x' }}", "{{ pad_token.strip() }}"])
def test_what_fails_there_for_want_of_a_token_fails_here(source: str) -> None:
    with pytest.raises(TokenizerError, match="undefined"):
        ChatTemplate(source, tokens={}).render(CHAT)


MARKED = {
    "turns with their ends": RENDERED["generation"],
    "content alone": "{% for m in messages %}" + TURN + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|eot|>{% endfor %}",
    "stripped, in the middle of a word": "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}"
    "{%- generation -%} {{ m.content | trim }}x{%- endgeneration -%}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "rewritten": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content | upper }}"
    "<|eot|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "the last answer only": "{% for m in messages %}"
    + TURN
    + "{% if loop.last %}{% generation %}{{ m.content }}<|eot|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|eot|>{% endif %}{% endfor %}",
    "with the header": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    + TURN
    + "{{ m.content }}"
    "<|eot|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "nothing": "{% for m in messages %}{% if m.role == 'tool' %}{% generation %}x{% endgeneration %}{% endif %}"
    "{{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("name", MARKED)
def test_what_generation_marks_is_what_is_learnt(tokenizer: Tokenizer, name: str, tmp_path: Path) -> None:
    folder = folder_with(tokenizer, tmp_path, MARKED[name])
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    [ours] = Encoder(tokenizer, ChatTemplate.load(folder)).encode([Document(None, CHAT, "chat", "chat:1")])
    assert ours.ids_N.tolist() == expected["input_ids"]
    assert ours.taught_N is not None
    assert ours.taught_N.astype(int).tolist() == expected["assistant_masks"]


def test_templates_by_name_are_read_as_there(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = folder_with(tokenizer, tmp_path, {"default": "by name", "rag": "other"})
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert ChatTemplate.load(folder).source == theirs.get_chat_template() == "by name"
    assert ChatTemplate.load(folder).named == {"rag": "other"}


PLACES = ("config", "jinja", "named file", "list", "legacy")


@pytest.mark.parametrize("chosen", range(1, 2 ** len(PLACES)))
def test_the_template_that_counts_is_the_one_that_transformers_takes(
    tokenizer: Tokenizer, chosen: int, tmp_path: Path
) -> None:
    present = {name for bit, name in enumerate(PLACES) if chosen >> bit & 1}
    tokenizer.save(tmp_path)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS}
    if "config" in present:
        config["chat_template"] = "config"
    if "list" in present:
        both = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "list"}]
        config["chat_template"] = both
    if "jinja" in present:
        (tmp_path / "chat_template.jinja").write_text("jinja")
    if "named file" in present:
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    if "legacy" in present:  # of processors: a tokenizer has no other, or does not look there
        (tmp_path / "chat_template.json").write_text('{"chat_template": "legacy"}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    if not theirs.chat_template:
        assert ChatTemplate.load(tmp_path).source == "legacy"
        return
    try:
        expected = theirs.get_chat_template()
    except ValueError:
        with pytest.raises(TokenizerError, match="none that is named default"):
            ChatTemplate.load(tmp_path)
        return
    found = ChatTemplate.load(tmp_path)
    assert found.source == expected
    saved = tmp_path / "saved"
    tokenizer.save(saved)
    found.save(saved)
    again = transformers.AutoTokenizer.from_pretrained(saved)
    assert again.get_chat_template() == expected == ChatTemplate.load(saved).source
    assert again.chat_template == theirs.chat_template
    assert (again.bos_token, again.pad_token) == (theirs.bos_token, theirs.pad_token)
