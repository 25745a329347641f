"""Test items that a training text holds are found, wherever they stand in it, and nothing else is."""

import json
import random
from types import SimpleNamespace

import pytest

from mobilemoe.errors import DataError
from mobilemoe.evaluate.compare import contamination
from mobilemoe.evaluate.compare.contamination import (
    Overlap,
    doc_texts,
    find_overlaps,
    scores_without,
    task_items,
    training_texts,
)
from refusals import refusal

WORDS = ["alder", "birch", "cedar", "elm", "fir", "hazel", "ivy", "larch", "maple", "oak", "pine"]


def sentence(seed: int, length: int) -> str:
    draw = random.Random(seed)
    return " ".join(f"{draw.choice(WORDS)}{draw.randrange(1000)}" for _ in range(length))


def found(texts: list[str], *training: str) -> bool:
    overlap = find_overlaps({"task": {"1": texts}}, training)["task"]
    return overlap.found == ("1",)


def test_thirteen_words_in_a_row_are_found_and_twelve_of_a_longer_text_are_not():
    words = sentence(0, 30).split()
    item = [" ".join(words)]
    assert found(item, f"before {' '.join(words[9:22])} behind")
    assert not found(item, f"before {' '.join(words[9:21])} behind")


@pytest.mark.parametrize("length", [8, 10, 12])
def test_a_short_text_is_found_whole_only(length):
    words = sentence(1, length).split()
    item = [" ".join(words)]
    assert found(item, f"before {' '.join(words)} behind")
    assert not found(item, f"before {' '.join(words[1:])} behind", f"before {' '.join(words[:-1])} behind")


def test_case_punctuation_and_line_breaks_do_not_hide_a_text():
    words = sentence(2, 13).split()
    assert found([" ".join(words)], "\n".join(word.upper() for word in words[:6]) + "! -- " + ", ".join(words[6:]))


def test_a_run_does_not_reach_from_one_text_into_the_next():
    words = sentence(3, 13).split()
    item = [" ".join(words)]
    assert not found(item, " ".join(words[:7]), " ".join(words[7:]))
    assert not found([" ".join(words[:7]), " ".join(words[7:])], " ".join(words))


def test_what_is_too_short_is_not_checked():
    words = sentence(4, 7)
    assert find_overlaps({"task": {"1": [words], "2": []}}, [words])["task"] == Overlap(2, 0, ())
    assert find_overlaps({"task": {"1": [words]}}, [words])["task"].share is None


def test_each_item_that_holds_the_run_is_found():
    shared = sentence(5, 20)
    benchmarks = {
        "one": {"a": [shared], "b": [sentence(6, 20)], "c": ["short", f"{sentence(7, 20)} {shared}"]},
        "two": {"a": [sentence(8, 20)], "d": [shared]},
        "three": {},
    }
    overlaps = find_overlaps(benchmarks, [sentence(9, 50), f"{sentence(10, 5)} {shared} {sentence(11, 5)}"])
    assert overlaps["one"] == Overlap(3, 3, ("a", "c"))
    assert overlaps["two"] == Overlap(2, 2, ("d",))
    assert overlaps["three"] == Overlap(0, 0, ())
    assert overlaps["one"].as_json() == {"items": 3, "checked": 3, "share": 2 / 3, "found": ["a", "c"]}


def test_the_wording_of_a_task_says_nothing_about_its_items():
    wording = sentence(12, 15)
    items = {str(place): [f"{wording} {sentence(100 + place, 20)}"] for place in range(contamination.MOST_ITEMS + 1)}
    assert find_overlaps({"task": items}, [wording])["task"] == Overlap(len(items), len(items), ())
    assert find_overlaps({"task": items}, [wording, sentence(103, 20)])["task"].found == ("3",)
    few = dict([*items.items()][1:])
    assert len(find_overlaps({"task": few}, [wording])["task"].found) == contamination.MOST_ITEMS


def test_a_text_of_any_length_gives_what_the_plain_search_gives(monkeypatch):
    """Batches and pieces that are so small that runs lie across their borders."""
    monkeypatch.setattr(contamination, "_BATCH", 64)
    monkeypatch.setattr(contamination, "_PIECE", 50)
    draw = random.Random(0)
    few = [f"w{number}" for number in range(3)]  # so few words that chance makes many runs
    texts = [" ".join(draw.choices(few, k=draw.randrange(1, 4000))) for _ in range(8)]
    items = {str(place): [" ".join(draw.choices(few, k=draw.randrange(6, 18)))] for place in range(300)}
    expected = tuple(key for key, (text,) in items.items() if plain(text.split(), [each.split() for each in texts]))
    assert find_overlaps({"task": items}, texts)["task"].found == expected
    assert 20 < len(expected) < 280


def test_no_run_is_lost_between_two_batches_or_pieces(monkeypatch):
    monkeypatch.setattr(contamination, "_BATCH", 40)
    monkeypatch.setattr(contamination, "_PIECE", 30)
    words = sentence(15, 400).split()
    items = {str(at): [" ".join(words[at : at + 13])] for at in range(len(words) - 12)}
    assert len(find_overlaps({"task": items}, [" ".join(words)])["task"].found) == len(items)


def plain(item: list[str], texts: list[list[str]]) -> bool:
    length = min(len(item), 13)
    runs = [item[at : at + length] for at in range(len(item) - length + 1)] if length >= 8 else []
    return any(text[at : at + length] in runs for text in texts for at in range(len(text) - length + 1))


def test_progress_counts_every_character():
    heard = []
    texts = [sentence(13, 3000), sentence(14, 200)]
    find_overlaps({"task": {"1": ["x"]}}, texts, heard.append)
    assert heard[-1] == sum(map(len, texts))


def test_every_string_of_a_doc_is_a_text():
    doc = {"query": "q", "choices": ["a", "b"], "gold": 1, "more": {"deep": ("c", None)}, "n": 2.5}
    assert doc_texts(doc) == ["q", "a", "b", "c"]


def test_items_of_tasks_have_the_ids_of_their_examples():
    first, second = (SimpleNamespace(task_name=name, eval_docs=[{"q": name}, {"q": "b"}]) for name in ("x", "y"))
    assert task_items({"one": first, "several": [first, second]}) == {
        "one": {"0": ["x"], "1": ["b"]},
        "several": {"x/0": ["x"], "x/1": ["b"], "y/0": ["y"], "y/1": ["b"]},
    }


def test_training_texts_are_those_of_files_and_recipes(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "one"})
        + "\n"
        + json.dumps({"messages": [{"role": "user", "content": "two"}, {"role": "assistant", "content": "three"}]})
    )
    (tmp_path / "b.txt").write_text("four")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[data]\npath = "."\nseed = 1\nmixture = [{ name = "all", files = ["*.jsonl", "*.txt"], weight = 1.0 }]\n'
    )
    assert [*training_texts([tmp_path / "a.jsonl", tmp_path / "b.txt"])] == ["one", "two", "three", "four"]
    assert sorted(training_texts([recipe])) == ["four", "one", "three", "two"]


def test_what_is_no_training_text_is_refused(tmp_path):
    assert "does not exist" in refusal(lambda: [*training_texts([tmp_path / "none.jsonl"])], DataError)
    recipe = tmp_path / "recipe.toml"
    no_table = "no usable [data] table"
    for text, words in {"[model]\n": no_table, "[data]\nmixture = 3\n": no_table, "[data\n": "not valid TOML"}.items():
        recipe.write_text(text)
        assert words in refusal(lambda: [*training_texts([recipe])], DataError)


def test_scores_are_given_with_and_without_what_was_found():
    examples = {"task": {"1": 1.0, "2": 1.0, "3": 0.0, "4": 1.0}, "all": {"1": 1.0}, "other": {"1": 1.0}}
    overlaps = {"task": Overlap(4, 4, ("1", "2")), "all": Overlap(1, 1, ("1",)), "third": Overlap(1, 1, ())}
    cleaned = scores_without(examples, overlaps)
    assert [*cleaned] == ["all", "task"]
    task = cleaned["task"]
    assert (task.examples, task.score, task.clean, task.clean_score) == (4, 0.75, 2, 0.5)
    assert task.clean_stderr == pytest.approx(0.5)  # of 0 and 1: sqrt(1/2) / sqrt(2)
    assert (cleaned["all"].clean, cleaned["all"].clean_score, cleaned["all"].clean_stderr) == (0, None, None)
