"""results.json and the examples beside it: whole or absent, back as they were written, refused by name if damaged."""

import json
from dataclasses import asdict, replace

import pytest

from mobilemoe.errors import DataError
from mobilemoe.evaluate.results.results import read_results, save_results, write_results
from refusals import refusal
from report_results import FOURTEEN, results


@pytest.fixture
def path(tmp_path):
    write_results(results(), tmp_path / "results.json")
    return tmp_path / "results.json"


def damaged(path, change) -> str:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return refusal(lambda: read_results(path), DataError)


def test_results_come_back_as_they_were_written(path, tmp_path):
    assert read_results(path) == results()
    partial = results(without=("drop",), limit=50, ms=None)
    write_results(partial, tmp_path / "partial.json")
    assert read_results(tmp_path / "partial.json") == partial


def test_entries_of_a_later_version_are_left_out(path):
    values = json.loads(path.read_text()) | {"new": {"a": 1}}
    path.write_text(json.dumps(values))
    assert read_results(path) == results()


@pytest.mark.parametrize("name", [*asdict(results())])
def test_each_missing_entry_is_named(path, name):
    sentence = damaged(path, lambda values: values.pop(name))
    assert f"results.json holds no results of an evaluation: its {name!r} is missing" in sentence


@pytest.mark.parametrize(
    ("group", "key"),
    [
        ("model", "hash"),
        ("model", "context"),
        ("engine", "threads"),
        ("engine", "backend"),
        ("counts", "token_cap_hits"),
    ],
)
def test_each_missing_fact_is_named(path, group, key):
    assert f"its {group} lack {key}" in damaged(path, lambda values: values[group].pop(key))


@pytest.mark.parametrize("fact", ["main_metric", "n", "shots", "version", "published"])
def test_each_missing_fact_of_a_benchmark_is_named(path, fact):
    sentence = damaged(path, lambda values: values["results"]["piqa"].pop(fact))
    assert f"its results of piqa lack {fact}" in sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.update(n="2000"), "n of piqa is '2000', but must be a whole number"),
        (lambda row: row.update(published=1), "published of piqa is 1, but must be true or false"),
        (lambda row: row.update(parts=[]), "parts of piqa is [], but must be an object"),
        (lambda row: row.update(acc_norm=None), "piqa has no number for its main metric"),
        (lambda row: row.update(acc_norm=10**400), "piqa has no number for its main metric"),
        (lambda row: row.update(acc_norm_stderr=-1), "acc_norm_stderr of piqa is -1"),
        (lambda row: row.update(extra=1e300), "extra of piqa is 1e+300, which is no number of any use"),
    ],
)
def test_a_row_that_cannot_be_is_named_with_its_value(path, change, words):
    assert words in damaged(path, lambda values: change(values["results"]["piqa"]))


@pytest.mark.parametrize("name", ["parameters", "int4_bytes", "flops_per_token", "context"])
def test_what_is_not_known_of_a_model_is_none_and_nothing_else(path, tmp_path, name):
    unknown = replace(results(), model=results().model | {name: None})
    write_results(unknown, tmp_path / "unknown.json")
    assert read_results(tmp_path / "unknown.json") == unknown
    assert f"its {name} is 'many'" in damaged(path, lambda values: values["model"].update({name: "many"}))


def test_counts_are_never_unknown(path):
    assert "its token_cap_hits is None" in damaged(path, lambda values: values["counts"].update(token_cap_hits=None))


def test_other_files_are_no_results(tmp_path):
    for name, content in (("list.json", "[]"), ("text.json", '"results"'), ("half.json", '{"model": ')):
        (tmp_path / name).write_text(content)
        assert name in refusal(lambda name=name: read_results(tmp_path / name), DataError)
    assert "none.json" in refusal(lambda: read_results(tmp_path / "none.json"), DataError)


def test_examples_are_a_line_each_in_their_own_letters(tmp_path):
    examples = [{"benchmark": name, "id": str(n), "text": "naïve 東京\n"} for n, name in enumerate(FOURTEEN)]
    path = save_results(results(), examples, tmp_path / "new", "nano-quick", "nano-quick")
    assert path == tmp_path / "new/nano-quick.json"
    assert read_results(path) == replace(results(), examples="nano-quick.jsonl")
    written = path.with_suffix(".jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in written.splitlines()] == examples
    assert "東京" in written


def test_the_same_results_take_their_own_place_again(tmp_path):
    again = replace(results(), seconds=1.0, speed={"ms_per_token": 2.0}, engine=results().engine | {"threads": 9})
    for found in (results(), again):
        assert save_results(found, [{"id": "0"}], tmp_path, "nano", "nano-long").name == "nano.json"
    assert read_results(tmp_path / "nano.json").seconds == 1.0
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda found: {"model": found.model | {"hash": "another"}},
        lambda found: {"engine": found.engine | {"activations": "fp32"}},
        lambda found: {"limit": 5},
        lambda found: {"results": {"piqa": found.results["piqa"]}},
        lambda found: {"suite": "quick"},
        lambda found: {},
    ],
)
def test_other_results_are_written_beside_those_that_are_there(tmp_path, change):
    save_results(results(), [{"id": "0"}], tmp_path, "nano", "nano-long")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other, examples = replace(results(), **change(results())), [{"id": "1"}]
    for _ in range(2):  # the second time they find their own place
        assert save_results(other, examples, tmp_path, "nano", "nano-long").name == "nano-long.json"
    assert read_results(tmp_path / "nano-long.json").examples == "nano-long.jsonl"
    assert len([*tmp_path.iterdir()]) == 4
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert save_results(results(limit=7), [], tmp_path, "nano", "nano-long").name == "nano-long-2.json"


@pytest.mark.parametrize("name", ["nano.json", "nano.jsonl"])
def test_a_file_of_another_kind_is_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("[]")
    assert save_results(results(), [], tmp_path, "nano", "nano-long").name == "nano-long.json"
    assert (tmp_path / name).read_text() == "[]"
