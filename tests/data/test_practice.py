"""Promises of data.practice: right answers, answers that are in the passage, no repetition, the same for a seed."""

import json
import re
from collections import Counter
from random import Random

import pytest

from mobilemoe.chat import check_messages
from mobilemoe.data.practice.passages import about_passage, read_passages
from mobilemoe.data.practice.reading import UNKNOWN, reading
from mobilemoe.data.practice.sums import REFUSALS, plain_sum, short_sum, story, sum_and_another, two_steps
from mobilemoe.data.practice.write import write_practice
from mobilemoe.errors import DataError


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("practice") / "practice.jsonl"
    counts = write_practice(path, 2000, seed=3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert counts == Counter(row["category"] for row in rows)
    return rows


def equations(text):
    """Everything of the form `a + b = c` or `a plus b is c`."""
    found = re.findall(r"(\d+) ([-+*]|plus|minus|times|divided by) (\d+) (?:=|is) (-?\d+)", text)
    assert found, text
    return found


def right(a, sign, b, c):
    a, b, c = int(a), int(b), int(c)
    if sign == "divided by":
        return a == b * c
    return c == {"+": a + b, "-": a - b, "*": a * b}[{"plus": "+", "minus": "-", "times": "*"}.get(sign, sign)]


@pytest.mark.parametrize("make", [plain_sum, two_steps, story], ids=lambda make: make.__name__)
def test_every_step_of_a_sum_is_right(make):
    random = Random(1)
    for _ in range(500):
        asked, answer = make(random)
        if answer not in REFUSALS:
            assert all(right(*equation) for equation in equations(answer)), (asked, answer)


def test_a_sum_is_refused_exactly_where_a_number_is_too_large():
    random, refused = Random(2), 0
    for _ in range(1000):
        asked, answer = plain_sum(random)
        times = re.search(r"times|\*|Multiply|\d x \d", asked)
        largest = max(map(int, re.findall(r"\d+", asked)))
        assert (answer in REFUSALS) == (largest > (12 if times else 100)), (asked, answer)
        refused += answer in REFUSALS
    assert 50 < refused < 250


def test_a_number_alone_is_the_result():
    random = Random(3)
    for _ in range(300):
        asked, answer = short_sum(random)
        a, b = map(int, re.findall(r"\d+", asked))
        if asked.startswith("Take"):
            a, b = b, a
        if asked.startswith("Subtract"):
            a, b = b, a
        assert int(answer) in (a + b, a - b, a * b)


def test_a_sum_goes_on_from_the_last_result():
    random = Random(4)
    for _ in range(200):
        (_, first), (_, second) = sum_and_another(random)
        assert equations(first)[-1][3] == equations(second)[0][0]


def test_answers_stand_in_the_passage_and_unknown_ones_do_not():
    random, unknown = Random(5), 0
    for _ in range(500):
        exchanges = reading(random)
        passage = exchanges[0][0]
        for asked, answer in exchanges:
            if answer in UNKNOWN:
                unknown += 1
                continue
            value = answer.rstrip(".").split()[-1]
            assert value in passage, (asked, answer, passage)
    assert unknown > 50


def test_conversations_are_whole_and_differ(chats):
    assert len({json.dumps(row) for row in chats}) == len(chats) == 2000
    for row in chats:
        roles = [message["role"] for message in check_messages(row["messages"])]
        rest = roles[roles[0] == "system" :]
        assert rest == ["user", "assistant"] * (len(rest) // 2)
        assert "{" not in "".join(message["content"] for message in row["messages"])


def test_what_was_told_is_remembered_and_what_was_not_is_not_known(chats):
    """A name that the assistant gives back is the last one that the user gave."""
    checked = 0
    for row in chats:
        name = None
        for message in row["messages"]:
            if found := re.match(r"Nice to meet you, (\w+)!|Thank you, .*Your name is (\w+)", message["content"]):
                name = found[1] or found[2]
            elif found := re.match(r"Your name is (\w+)\.", message["content"]):
                assert found[1] == name
                checked += 1
            elif "not told me your name" in message["content"]:
                assert name is None
                checked += 1
    assert checked > 30


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_practice(tmp_path / name, 50, seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
    with pytest.raises(DataError, match="a"):
        write_practice(tmp_path / "a", 50, 1)


PROSE = (
    "Merchants crossed the northern mountains every spring. They carried copper and salted herring to the market. "
    "The harbour was frozen until the middle of April."
)
MORE = (
    "Astronomers measured the brightness of several comets. Their telescope was built from polished bronze mirrors. "
    "Clouds covered the valley during most of the autumn."
)


def test_questions_about_real_text_are_answered_by_its_sentences_or_refused(tmp_path):
    rows = [{"text": f"# Title\n\n{text}\n\nshort", "source": text[:5], "license": "CC0"} for text in (PROSE, MORE)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    passages = read_passages([tmp_path / "text.jsonl"])
    assert [" ".join(passage.sentences) for passage in passages] == [PROSE, MORE]
    random, refused = Random(6), 0
    for _ in range(300):
        (layout, first), *more = about_passage(random, *passages)
        assert PROSE in layout
        for asked, answer in [(layout.replace(PROSE, ""), first), *more]:
            word = re.search(r"(?:about|mention) (\w+)\?", asked)
            if answer in UNKNOWN or answer.startswith("No,"):
                assert word[1].lower() not in PROSE.lower()
                refused += 1
            elif not answer.startswith("Yes,"):
                assert answer in passages[0].sentences
                assert word is None or word[1] in answer
    assert refused > 30
    counts = write_practice(tmp_path / "out.jsonl", 200, 1, [tmp_path / "text.jsonl"])
    assert counts["passages"] > 20
    (tmp_path / "code.jsonl").write_text('{"text": "x = 1"}\n')
    with pytest.raises(DataError, match="no paragraph"):
        read_passages([tmp_path / "code.jsonl"])


def test_the_verb_writes_and_counts_them(mobilemoe_cli, tmp_path):
    told = mobilemoe_cli("data", "practice", "--out", tmp_path / "p.jsonl", "--count", 30, "--seed", 2, "--json").json
    assert sum(told[kind] for kind in ("sums", "reading", "remembering", "limits") if kind in told) == 30
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 30
