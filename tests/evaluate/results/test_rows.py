"""Fields of rows that others wrote: each as it must be, or a sentence with the field, its value and the rule."""

import gzip

import pytest

from mobilemoe.errors import DataError
from mobilemoe.evaluate.results.rows import FieldError, is_number, label, read_rows, text, texts, whole_number
from refusals import refusal


def test_rows_come_in_order_each_with_its_place(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"b": [2]}\n')
    assert [*read_rows(path)] == [(f"{path}, line 1", {"a": 1}), (f"{path}, line 3", {"b": [2]})]
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [row for _, row in read_rows(packed)] == [{"a": 1}, {"b": [2]}]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": 1}\n[1, 2]\n', ", line 2, "),
        (b'{"a": 1}\n{"a": \n', "line 2"),
        (b'{"a": "\xff"}\n', "rows.jsonl"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path, data, words):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    assert words in refusal(lambda: [*read_rows(path)], DataError)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    assert "none.jsonl cannot be read" in refusal(lambda: [*read_rows(tmp_path / "none.jsonl")], DataError)


def refused(call) -> str:
    return refusal(call, FieldError)


@pytest.mark.parametrize("value", ["", " \n", None, 3, ["x"]])
def test_a_text_has_something_to_read(value):
    sentence = refused(lambda: text({"name": value}, "name"))
    assert sentence == f"'name' is {value!r}, but must be a text that is not blank"
    assert text({"name": " x "}, "name") == " x "


def test_a_text_may_be_blank_where_that_is_allowed_but_nothing_else():
    assert text({"name": ""}, "name", may_be_blank=True) == ""
    assert refused(lambda: text({"name": None}, "name", may_be_blank=True)).endswith("but must be a text")


def test_a_missing_field_is_named_whatever_it_should_be():
    for read in (text, lambda row, name: texts(row, name, 1), lambda row, name: whole_number(row, name, 0, 9)):
        assert refused(lambda read=read: read({"other": 1}, "name")) == "it has no 'name'"
    assert refused(lambda: label({}, "gold", ["a"])) == "it has no 'gold'"


@pytest.mark.parametrize(
    ("least", "most", "value", "rule"),
    [
        (2, 2, ["a"], "a list of 2 texts"),
        (2, 4, ["a"] * 5, "a list of 2 to 4 texts"),
        (1, None, [], "a list of 1 or more texts"),
        (1, None, "abc", "a list of 1 or more texts"),
        (1, None, {"a": 1}, "a list of 1 or more texts"),
    ],
)
def test_a_list_of_another_length_or_kind_is_refused_with_the_rule(least, most, value, rule):
    assert f"but must be {rule} that are not blank" in refused(
        lambda: texts({"choices": value}, "choices", least, most)
    )


def test_a_list_names_the_text_that_is_blank():
    sentence = refused(lambda: texts({"choices": ["a", " "]}, "choices", 1))
    assert sentence.startswith("'choices' holds ' ', but must be")
    assert texts({"choices": ["a", "b", "c"]}, "choices", 1) == ["a", "b", "c"]


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -1, 5, 10**400])
def test_a_whole_number_is_one_and_lies_between_its_ends(value):
    sentence = refused(lambda: whole_number({"n": value}, "n", 0, 4))
    assert sentence.endswith("but must be a whole number from 0 to 4")
    assert [whole_number({"n": n}, "n", 0, 4) for n in (0, 4)] == [0, 4]


@pytest.mark.parametrize("value", [-1, "-1", ""])
def test_a_label_of_a_hidden_set_is_called_hidden(value):
    assert "hides its labels" in refused(lambda: label({"gold": value}, "gold", ["a", "b"]))


@pytest.mark.parametrize("value", [2, "1", 1.0, True, -2])
def test_a_label_is_the_place_of_a_choice(value):
    assert "but must be a whole number from 0 to 1" in refused(lambda: label({"gold": value}, "gold", ["a", "b"]))
    assert label({"gold": 1}, "gold", ["a", "b"]) == 1


def test_long_values_are_cut_in_a_sentence():
    assert len(refused(lambda: text({"name": ["x" * 10_000]}, "name"))) < 150


@pytest.mark.parametrize(
    ("value", "usable"),
    [
        *((number, True) for number in (0, -1.5, 1e100)),
        *((number, False) for number in (1e101, 10**400, float("nan"), float("inf"), "1", None, [])),
    ],
)
def test_numbers_of_use_have_finite_squares(value, usable):
    assert is_number(value) == usable
