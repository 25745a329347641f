"""A conversation with other numbers or one other word is a near duplicate; the wording of a task alone is not."""

import json

import pytest

from mobilemoe.data.chats import write_chats
from mobilemoe.data.near_duplicates import near_duplicates, read_conversations
from mobilemoe.errors import DataError

QUESTION = "A gardener plants 12 rows of 9 tulips along the old wall behind the house. How many tulips are there?"


def chat(question, answer="The answer is this."):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_a_question_with_another_number_or_word_is_a_near_copy():
    changed = [QUESTION.replace("9", "8"), QUESTION.replace("tulips", "roses"), QUESTION.upper() + "!!"]
    assert near_duplicates([chat(text) for text in changed], [chat(QUESTION)]) == {0: 0, 1: 0, 2: 0}


def test_another_question_is_none_and_each_copy_names_its_own():
    held_out = [chat("Why does the moon seem larger when it stands low above the hills?"), chat(QUESTION)]
    training = [chat("How many tulips does a florist need for nine vases?"), chat(QUESTION + " Please explain.")]
    assert near_duplicates(training, held_out) == {1: 1}


def test_the_wording_of_a_task_does_not_count():
    task = "Is the following statement true or false? Answer with yes or no and give a reason: "
    training = [chat(f"{task} number {n} is prime") for n in range(60)]
    held_out = [chat(f"{task} whales are fish that live in the deep sea")]
    assert near_duplicates(training, held_out) == {}
    few = [chat(f"{task} {animal} lay eggs") for animal in ("snakes", "geese", "ants")]
    assert near_duplicates(training[:1], few) == {}
    assert near_duplicates([chat(f"{task} whales are fish that live in the deep seas")], held_out) == {0: 0}


def test_chats_leave_near_copies_out(tmp_path):
    def write(name, *questions):
        rows = [{"messages": chat(text), "source": "s", "license": "MIT", "category": "math"} for text in questions]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    other = "Which of the seven seas is named after a colour that it does not have?"
    training = write("train[1].jsonl", QUESTION.replace("12", "14"), other)
    counts = write_chats([training], tmp_path / "out.jsonl", 1, 0.0, apart_from=write("held[out].jsonl", QUESTION))
    assert (counts["near_copies"], counts["written"]) == (1, 1)
    assert other in (tmp_path / "out.jsonl").read_text()


def test_a_file_without_conversations_is_refused(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "no conversation"}\n')
    with pytest.raises(DataError, match="holds no conversation"):
        read_conversations(tmp_path / "texts.jsonl")
