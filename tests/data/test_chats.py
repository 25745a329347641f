"""Promises of data.chats: every conversation occurs once, held-out ones never, and joined ones are of one category."""

import json
from collections import Counter

import pytest

from mobilemoe.data.chats import SYSTEM_MESSAGES, SYSTEM_MESSAGES_BY_CATEGORY, TOOLS_MESSAGE, write_chats
from mobilemoe.data.sources import Document, is_held_out
from mobilemoe.errors import DataError

TOOLS = (
    "toolformer: enabled\ntoolformer access: search, news\nA search engine.\nsearch(query)\n"
    "The headlines.\nnews(query)\nWho won?\n\nsearch(this)"
)


def pair(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def chats(tmp_path):
    rows = [
        {"messages": pair(f"{kind} {n}?", f"{n}!"), "source": f"{kind}/{n % 2}", "license": "MIT", "category": kind}
        for kind in ("math", "chat")
        for n in range(1000)
    ]
    rows.append({"messages": pair(TOOLS, "search('who won')"), "source": "t", "license": "MIT", "category": "tools"})
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "chats.jsonl"


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def turns(messages):
    """(question, answer) pairs, and what stands before them."""
    system = [m["content"] for m in messages if m["role"] == "system"]
    rest = messages[len(system) :]
    assert [m["role"] for m in rest] == ["user", "assistant"] * (len(rest) // 2)
    return system, [(q["content"], a["content"]) for q, a in zip(rest[::2], rest[1::2], strict=True)]


def test_every_conversation_that_is_not_held_out_appears_once_in_its_category(chats, tmp_path):
    counts = write_chats([chats], tmp_path / "out.jsonl", 1, 0.1)
    found = Counter()
    for entry in read(tmp_path / "out.jsonl"):
        for question, answer in turns(entry["messages"])[1]:
            found[question, answer] += 1
            assert question.startswith(entry["category"]) or entry["category"] == "tools"
    kept = [
        (question["content"], answer["content"])
        for question, answer in (row["messages"] for row in read(chats)[:-1])
        if not is_held_out(Document(None, [question, answer], "s", "k"), 0.1)
    ]
    assert found == Counter([*kept, ("Who won?\n\nsearch(this)", "search('who won')")])
    assert counts["read"] == 2001
    assert counts["held_out"] == 2001 - len(kept) - 1


def test_shares_are_about_those_that_are_meant(chats, tmp_path):
    counts = write_chats([chats], tmp_path / "out.jsonl", 1, 0.0)
    entries = read(tmp_path / "out.jsonl")
    lengths = Counter(len(turns(entry["messages"])[1]) for entry in entries)
    assert set(lengths) == {1, 2, 3, 4}
    assert 0.35 < 1 - lengths[1] / len(entries) < 0.45
    assert 0.25 < counts["with_system"] / len(entries) < 0.35
    assert counts["several_turns"] == len(entries) - lengths[1]
    for entry in entries:
        for system in turns(entry["messages"])[0]:
            known = SYSTEM_MESSAGES + SYSTEM_MESSAGES_BY_CATEGORY.get(entry["category"], ())
            assert system in known or system.startswith(TOOLS_MESSAGE)
    assert {entry["source"] for entry in entries} == {"math/0", "math/1", "math/0 + math/1"} | {
        "chat/0",
        "chat/1",
        "chat/0 + chat/1",
        "t",
    }
    assert {entry["license"] for entry in entries} == {"MIT"}


def test_the_descriptions_of_tools_become_a_system_message(chats, tmp_path):
    write_chats([chats], tmp_path / "out.jsonl", 1, 0.0)
    [entry] = [entry for entry in read(tmp_path / "out.jsonl") if entry["category"] == "tools"]
    system, asked = turns(entry["messages"])
    assert system == [TOOLS_MESSAGE + "A search engine.\nsearch(query)\nThe headlines.\nnews(query)"]
    assert asked == [("Who won?\n\nsearch(this)", "search('who won')")]


def test_a_seed_gives_the_same_bytes_and_another_one_others(chats, tmp_path):
    written = []
    for number, seed in enumerate((1, 1, 2)):
        write_chats([chats], tmp_path / f"{number}.jsonl", seed, 0.0)
        written.append((tmp_path / f"{number}.jsonl").read_bytes())
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_texts_and_a_file_that_is_there_are_refused(chats, tmp_path):
    with pytest.raises(DataError, match="exists already"):
        write_chats([chats], chats, 1, 0.0)
    (tmp_path / "text.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match="is a text"):
        write_chats([tmp_path / "text.jsonl"], tmp_path / "out.jsonl", 1, 0.0)


def test_the_verb_tells_what_it_wrote(mobilemoe_cli, chats, tmp_path):
    told = mobilemoe_cli("data", "chats", chats, "--out", tmp_path / "out.jsonl", "--seed", 3, "--json").json
    assert told["written"] == len(read(tmp_path / "out.jsonl"))
    assert told["read"] == 2001
    assert 0 < told["held_out"] < 60  # the default is a recipe's
