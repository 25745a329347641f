"""Promises of `mobilemoe.chat`: the right prompt, no control ids from a message's text, no harm from a template."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilemoe.chat import CHAT_TEMPLATE, MARKS, ChatTemplate, chat_parts, encode_chat
from mobilemoe.data.train_tokenizer import train_tokenizer
from mobilemoe.errors import TokenizerError
from mobilemoe.tokenizer import SPECIAL_NAMES, Tokenizer

CONVERSATION = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": '\n\nName one <b>JVM</b> & "language" — zażółć\t'},
    {"role": "assistant", "content": "Kotlin."},
    {"role": "user", "content": "  "},
]
HI = [{"role": "user", "content": "Hi"}]
PIECES = st.sampled_from([*SPECIAL_NAMES, "<|", "|>", "<", "eot", "a", "\n", " ", MARKS[0], MARKS[1]])
CONTENT = st.one_of(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.lists(PIECES).map("".join))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(["The user and the assistant of a system talk about language. " * 9]), 300)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate()


def test_the_published_fixture_is_reproduced(template: ChatTemplate) -> None:
    llama_models = pytest.importorskip("llama_models")
    llama = Tokenizer.load(Path(llama_models.__file__).parent / "llama3")
    ids = [128000, 128005, 882, 128006, 271, 678, 832, 73479, 4221, 13, 128008, 128005, 78191, 128006, 271]
    assert encode_chat(llama, template, [{"role": "user", "content": "Name one JVM language."}]) == ids


def test_the_prompt_is_the_format_of_the_specification(template: ChatTemplate) -> None:
    said = "".join(
        f"<|header_start|>{message['role']}<|header_end|>\n\n{message['content']}<|eot|>" for message in CONVERSATION
    )
    assert template.render(CONVERSATION, add_generation_prompt=False) == "<|begin_of_text|>" + said
    assert template.render(CONVERSATION) == f"<|begin_of_text|>{said}<|header_start|>assistant<|header_end|>\n\n"


def test_ids_without_control_names_in_content_are_the_ordinary_ones(
    tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    rendered = template.render(CONVERSATION)
    assert encode_chat(tokenizer, template, CONVERSATION) == tokenizer.encode(rendered, special=True)


def test_transformers_renders_and_encodes_a_saved_template_alike(
    tokenizer: Tokenizer, template: ChatTemplate, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, chat_template=CHAT_TEMPLATE)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for generation in (True, False):
        given = {"add_generation_prompt": generation}
        assert theirs.apply_chat_template(CONVERSATION, tokenize=False, **given) == template.render(
            CONVERSATION, **given
        )
        encoded = theirs.apply_chat_template(CONVERSATION, return_dict=True, **given)["input_ids"]
        assert encoded == encode_chat(tokenizer, ChatTemplate.load(tmp_path), CONVERSATION, **given)


@settings(max_examples=300, deadline=None)
@given(content=CONTENT, role=CONTENT)
def test_no_message_can_write_a_control_id(
    tokenizer: Tokenizer, template: ChatTemplate, content: str, role: str
) -> None:
    ids = encode_chat(tokenizer, template, [{"role": role, "content": content}])
    control = [i for i in ids if i in tokenizer.special_ids]
    names = [
        "<|begin_of_text|>",
        *["<|header_start|>", "<|header_end|>", "<|eot|>"],
        "<|header_start|>",
        "<|header_end|>",
    ]
    assert control == [tokenizer.encode(name, special=True)[0] for name in names]
    assert tokenizer.decode(ids) == f"{role}\n\n{content}assistant\n\n"


def test_overlapping_control_names_are_hidden_too(template: ChatTemplate) -> None:
    class Letters:
        special_pattern = re.compile("(ab|bc)")

        def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
            return [-1] if special else [ord(character) for character in text]

    plain = ChatTemplate("{{ messages[0].content }}")
    assert encode_chat(Letters(), plain, [{"role": "user", "content": "abcab"}]) == [ord(c) for c in "abcab"]


TURN = "{% for m in messages %}<|header_start|>{{ m.role }}<|header_end|>\n"
TEMPLATES = {
    "ours": (CHAT_TEMPLATE, "{}<|eot|>"),
    "strips": (TURN + "{{ m.content | trim }}<|eot|>{% endfor %}", "{}<|eot|>"),
    "ends the line": (TURN + "{{ m.content }}<|eot|>\n{% endfor %}", "{}<|eot|>"),
    "blanks before the end": (TURN + "{{ m.content | trim }} <|eom|>{% endfor %}", "{} <|eom|>"),
    "no end": (TURN + "{{ m.content }} Over.{% endfor %}", "{}"),
    "system in the last question": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ messages[0].content if loop.last }}{{ m.content }}"
        " [/INST]{% elif m.role == 'assistant' %} {{ m.content }}<|eot|>{% endif %}{% endfor %}",
        "{}<|eot|>",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", ["Kotlin.", "<|eot|>, yes.", "zażółć 🙂", "two\n\nlines"])
def test_the_assistants_part_of_a_conversation_is_known(tokenizer: Tokenizer, name: str, answer: str) -> None:
    source, closed = TEMPLATES[name]
    template = ChatTemplate(source)
    messages = [*CONVERSATION[:2], {"role": "assistant", "content": answer}, *CONVERSATION[1:]]
    parts = chat_parts(tokenizer.special_pattern, template, messages)
    taught = b"".join(part.text.encode()[begin:end] for part in parts for begin, end in part.taught)
    assert taught.decode() == closed.format(answer) + closed.format("Kotlin.")
    assert "".join(part.text for part in parts) == template.render(messages, add_generation_prompt=False)
    ids = [i for part in parts for i in tokenizer.encode(part.text, special=part.special)]
    assert ids == encode_chat(tokenizer, template, messages, add_generation_prompt=False)


def test_blanks_at_the_ends_of_an_answer_are_its_own_unless_the_template_takes_them(tokenizer: Tokenizer) -> None:
    for name, expected in (("ours", " \n Hi \n<|eot|>"), ("strips", "Hi<|eot|>")):
        messages = [*HI, {"role": "assistant", "content": " \n Hi \n"}]
        parts = chat_parts(tokenizer.special_pattern, ChatTemplate(TEMPLATES[name][0]), messages)
        assert "".join(p.text[begin:end] for p in parts for begin, end in p.taught) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content | upper | replace('I', 'Y') | reverse }}{% endfor %}",
        "{{ messages[-1].content[1:] }}",
        "{{ messages[-1].content | length }}",
        "{{ messages[-1].content.split('there') | join('<|eot|>') }}",
    ],
)
def test_a_template_that_rewrites_the_answer_is_refused(tokenizer: Tokenizer, source: str) -> None:
    messages = [*HI, {"role": "assistant", "content": "Hi there, you"}]
    assert encode_chat(tokenizer, ChatTemplate(source), messages)
    with pytest.raises(TokenizerError, match="rewrites what the assistant says"):
        chat_parts(tokenizer.special_pattern, ChatTemplate(source), messages)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}some more words{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{{ nobody_said_this }}",
        "{{ messages[0].nothing + 'x' }}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('roles must\n alternate') }}",
        "{{ unclosed",
        "{% for %}",
        "{% nothing %}",
    ],
)
def test_a_hostile_or_broken_template_is_one_sentence(source: str) -> None:
    with pytest.raises(TokenizerError, match="the chat template") as caught:
        ChatTemplate(source).render(HI)
    assert "\n" not in str(caught.value)


def test_templates_get_what_transformers_offers() -> None:
    source = (
        "{% if tools is not none or documents or custom_flag %}\n  no\n{% endif %}\n"
        "{% for message in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}\n"
        "{{ {'<é>': message.content} | tojson }}{% endfor %}{{ eos_token }}{{ strftime_now('%%') }}"
    )
    rendered = ChatTemplate(source, tokens={"eos_token": "<end>"}).render([*HI, *HI])
    assert rendered == '{"<é>": "Hi"}<end>%'


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "at least one"),
        ("hello", "must be a list"),
        ([3], "message 0 is a int"),
        ([*HI, {"role": "user"}], "message 1 has no content"),
        ([{"content": "x"}], "message 0 has no role"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 0 has no content that is text"),
        ([{**HI[0], "tool_calls": []}], "message 0 has tool_calls"),
    ],
)
def test_a_malformed_message_is_named(
    tokenizer: Tokenizer, template: ChatTemplate, messages: list, complaint: str
) -> None:
    with pytest.raises(TokenizerError, match=complaint):
        template.render(messages)
    with pytest.raises(TokenizerError, match=complaint):
        encode_chat(tokenizer, template, messages)


def test_a_template_is_found_where_model_folders_keep_it(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "{{ bos_token }}1", "bos_token": {"content": "<s>"}}))
    assert ChatTemplate.load(tmp_path).render(HI) == "<s>1"
    both = [{"name": "tool_use", "template": "2"}, {"name": "default", "template": "3"}]
    config.write_text(json.dumps({"chat_template": both}))
    assert ChatTemplate.load(tmp_path).render(HI) == "3"
    (tmp_path / "chat_template.jinja").write_text("4")
    assert ChatTemplate.load(tmp_path).render(HI) == "4"


@pytest.mark.parametrize("config", [None, {}, {"chat_template": None}, {"chat_template": []}])
def test_a_base_model_has_no_chat_template(config: dict | None, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="has no chat template"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"chat_template": 3}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default", "template": 3}]}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": ["default"], "template": "x"}]}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "tool_use", "template": "x"}]}'),
        ("tokenizer_config.json", b'{"chat_template": "{% for"}'),
        ("chat_template.json", b'{"chat_template": "{% for"}'),
        ("chat_template.jinja", b"{% for"),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_a_damaged_file_is_named(name: str, damage: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(TokenizerError, match=name.replace(".", r"\.")):
        ChatTemplate.load(tmp_path)


PICTURES = (
    "{% for m in messages %}{{ m.role }}:{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endfor %}"
)


def test_a_template_that_leaves_out_what_is_said_is_refused(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(PICTURES)
    with pytest.raises(TokenizerError, match="leaves out the last message"):
        encode_chat(tokenizer, template, HI)
    with pytest.raises(TokenizerError, match="leaves out what the assistant says"):
        chat_parts(tokenizer.special_pattern, template, [*HI, {"role": "assistant", "content": "Hello."}])
    assert encode_chat(tokenizer, template, [{"role": "user", "content": " "}])


@pytest.mark.parametrize("source", ["{{ messages[-1].content | upper }}", "{{ messages[-1].content | length }}"])
def test_a_template_may_change_what_a_user_says(tokenizer: Tokenizer, source: str) -> None:
    assert encode_chat(tokenizer, ChatTemplate(source), HI)
