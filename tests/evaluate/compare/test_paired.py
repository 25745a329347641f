"""The paired bootstrap tells real differences from chance, and says which benchmarks it does not compare."""

from dataclasses import replace

import numpy as np
import pytest

from mobilemoe.errors import DataError
from mobilemoe.evaluate.compare.paired import paired, read_examples, unlike
from refusals import refusal
from report_results import results

TRIALS = 200
ITEMS = 150


def answers(draw: np.random.Generator, only_a: float, only_b: float, items: int = ITEMS):
    """Two models that are both right in half of the rest; A alone in a share `only_a` of all items, B in `only_b`."""
    kind = draw.choice(3, size=items, p=[only_a, only_b, 1 - only_a - only_b])
    both = draw.random(items) < 0.5
    a, b = np.where(kind == 2, both, kind == 0), np.where(kind == 2, both, kind == 1)
    return [{"task": {str(place): float(right) for place, right in enumerate(each)}} for each in (a, b)]


def compared(seed: int, only_a: float, only_b: float):
    draw = np.random.default_rng(seed)
    return paired(*answers(draw, only_a, only_b), resamples=1000, seed=seed).differences["task"]


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says():
    found = [compared(seed, 0.2, 0.1) for seed in range(TRIALS)]
    covered = sum(each.low <= 0.1 <= each.high for each in found) / TRIALS
    assert 0.90 <= covered <= 0.995  # a nominal 95%, and not by being endless:
    assert np.mean([each.high - each.low for each in found]) < 0.2


def test_equal_models_are_seldom_told_apart():
    found = [compared(seed, 0.15, 0.15) for seed in range(TRIALS)]
    assert sum(not each.low <= 0 <= each.high for each in found) / TRIALS <= 0.10
    assert sum(each.share < 0.05 for each in found) / TRIALS <= 0.10


def test_the_better_model_is_the_one_whose_side_the_interval_is_on():
    draw = np.random.default_rng(0)
    a, b = answers(draw, 0.3, 0.05, 400)
    forth, back = paired(a, b).differences["task"], paired(b, a).differences["task"]
    assert 0 < forth.low < forth.difference < forth.high
    assert back.low < back.difference < back.high < 0
    assert forth.difference == pytest.approx(-back.difference)
    assert (forth.wins, forth.losses) == (back.losses, back.wins)
    assert forth.share < 0.001


def test_pairing_is_narrower_than_two_separate_samples():
    a, b = answers(np.random.default_rng(0), 0.06, 0.02, 1000)
    found = paired(a, b).differences["task"]
    apart = 2 * 1.96 * np.sqrt((found.a * (1 - found.a) + found.b * (1 - found.b)) / 1000)
    assert found.high - found.low < 0.6 * apart


def test_a_model_against_itself_differs_by_nothing():
    a, _ = answers(np.random.default_rng(0), 0.2, 0.1)
    found = paired(a, a).differences["task"]
    assert (found.difference, found.low, found.high, found.share) == (0, 0, 0, 1)
    assert (found.wins, found.losses) == (0, 0)


def test_the_same_seed_gives_the_same_numbers():
    a, b = answers(np.random.default_rng(0), 0.2, 0.1)
    assert paired(a, b, seed=3) == paired(a, b, seed=3)
    assert paired(a, b, seed=3) != paired(a, b, seed=4)


def test_graded_scores_agree_with_the_plain_bootstrap():
    draw = np.random.default_rng(0)
    gains = draw.normal(0.1, 0.4, 60)
    a, b = ({"f1": dict(enumerate(values))} for values in (gains, np.zeros(60)))
    found = paired(a, b).differences["f1"]
    means = gains[draw.integers(60, size=(20_000, 60))].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.01)


def test_only_shared_examples_count_and_the_others_are_told():
    found = paired({"task": {"1": 1.0, "2": 0.0, "3": 1.0}}, {"task": {"2": 1.0, "3": 1.0, "9": 0.0}})
    difference = found.differences["task"]
    assert (difference.examples, difference.only_a, difference.only_b) == (2, 1, 1)
    assert (difference.a, difference.b) == (0.5, 1)


def test_there_is_no_average_unless_it_is_asked_for():
    a = {"one": {"1": 1.0, "2": 1.0}, "two": {"1": 0.0, "2": 1.0}}
    b = {"one": {"1": 0.0, "2": 0.0}, "two": {"1": 0.0, "2": 1.0}}
    assert paired(a, b).average is None
    mean = paired(a, b, average=True).average
    assert (mean.benchmarks, mean.difference) == (("one", "two"), 0.5)
    assert paired(a, b, left_out={"one": "it is not alike"}, average=True).average.difference == 0


def test_what_is_not_compared_has_a_reason():
    found = paired({"one": {"1": 1.0}, "two": {"1": 1.0}}, {"one": {"2": 1.0}, "two": {"1": 1.0}})
    assert found.left_out == {"one": "no example was scored by both"}
    assert [*found.differences] == ["two"]
    found = paired({"two": {"1": 1.0}}, {"two": {"1": 1.0}}, left_out={"two": "the shots differ"})
    assert (found.differences, found.left_out) == ({}, {"two": "the shots differ"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shots": 5}, "the shots differ: 0 and 5"),
        ({"version": 2}, "the task versions differ: 1 and 2"),
        ({"n": 500}, "the numbers of examples differ: 2000 and 500"),
        ({"main_metric": "acc"}, "the main metrics differ: acc_norm and acc"),
    ],
)
def test_benchmarks_that_were_asked_otherwise_are_unlike(change, words):
    ours = results()
    theirs = replace(ours, results=ours.results | {"hellaswag": ours.results["hellaswag"] | change})
    assert unlike(ours, theirs) == {"hellaswag": words}


def test_results_of_other_limits_or_benchmarks_are_unlike():
    ours = results()
    assert unlike(ours, ours) == {}
    limited = unlike(ours, results(limit=200))
    assert limited == dict.fromkeys(ours.results, "the numbers of examples differ: 2000 and 200")
    rest = {name: row for name, row in ours.results.items() if name not in ("piqa", "boolq")}
    fewer = replace(ours, results=rest, missing={"piqa": "no file piqa.jsonl"})
    assert unlike(ours, fewer) == {
        "piqa": "nano has no score: no file piqa.jsonl",
        "boolq": "nano has no score: it was not asked for",
    }


def test_examples_are_read_by_benchmark_and_id(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_text(
        '{"benchmark": "piqa", "id": 7, "correct": 1, "tokens": 9}\n\n'
        '{"benchmark": "drop", "id": "7", "correct": 0.25, "tokens": 9}\n'
    )
    assert read_examples(path) == {"piqa": {"7": 1.0}, "drop": {"7": 0.25}}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2, is not valid JSON"),
        ("[1]", "line 2, is [1], not an object"),
        ('{"benchmark": 5, "id": 8, "correct": 1}', "line 2, is no scored example"),
        ('{"benchmark": "piqa", "id": 8, "correct": "1"}', "line 2, is no scored example"),
        ('{"benchmark": "piqa", "id": 8, "correct": 1e999}', "line 2, is no scored example"),
        ('{"benchmark": "piqa", "id": 8}', "line 2, is no scored example"),
        ('{"benchmark": "piqa", "id": 8, "correct": NaN}', "line 2, is no scored example"),
        ('{"benchmark": "piqa", "id": 7, "correct": 1}', "has the example 7 twice"),
    ],
)
def test_other_files_are_refused(tmp_path, line, words):
    path = tmp_path / "examples.jsonl"
    path.write_text('{"benchmark": "piqa", "id": 7, "correct": 1}\n' + line + "\n")
    assert words in refusal(lambda: read_examples(path), DataError)
    assert "cannot be read" in refusal(lambda: read_examples(tmp_path / "none"), DataError)
