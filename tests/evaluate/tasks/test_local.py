"""A benchmark's file is checked row by row before anything is asked; a damaged one is missing, and it alone."""

import json
import os
from pathlib import Path

import pytest

from mobilemoe.errors import DataError
from tiny_model import write_model

pytest.importorskip("lm_eval")

from mobilemoe.evaluate import run
from mobilemoe.evaluate.models.harness import HarnessModel
from mobilemoe.evaluate.results.results import read_results, write_results
from mobilemoe.evaluate.tasks.build import build_tasks
from mobilemoe.evaluate.tasks.suites import BENCHMARKS

CHOICE = {"query": "A dog", "choices": ["barks aloud", "reads", "is a stone"], "gold": 0}
PAIR = {"query": "Question: To eat?\n", "choices": ["use a spoon", "sleep"], "gold": 1}
PASSAGE = {"query": "Passage: A plum.\nQuestion: is it sweet?", "choices": ["no", "yes"], "gold": 1}
GAP = {"context_options": ["Ann saw Bob so Ann", "Ann saw Bob so Bob"], "continuation": "ran.", "gold": 0}
ASKED = {"question": "who ate it", "answer": ["Ann"]}
TRIVIA = {"context": "Question: Who ate it?\nAnswer:", "aliases": ["Ann"]}
SUM = {"context": "What is 1+1?", "chain_of_thought": "It is 2.", "answer": "2"}
SUBJECT = {"question": "Is it?", "type": "astronomy", "choices": [*"wxyz"], "answer": 3}
PROOF = {"problem": "What is 1+1?", "solution": "It is $\\boxed{2}$."}
FUNCTION = {
    "task_id": "HumanEval/0",
    "prompt": "def add(x):\n",
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}
PROGRAM = {
    "task_id": 11,
    "text": "Add.",
    "code": "def add(x): ...",
    "test_setup_code": "",
    "test_list": ["assert add(1)", "assert add(2)", "assert add(3)"],
}
ROWS = {
    "hellaswag": ("hellaswag.jsonl", CHOICE),
    "siqa": ("siqa.jsonl", CHOICE),
    "commonsense_qa": ("commonsense_qa.jsonl", CHOICE),
    "arc_easy": ("arc_easy.jsonl", CHOICE),
    "arc_challenge": ("arc_challenge.jsonl", CHOICE),
    "openbookqa": ("openbook_qa.jsonl", CHOICE),
    "piqa": ("piqa.jsonl", PAIR),
    "boolq": ("boolq.jsonl", PASSAGE),
    "winogrande": ("winogrande.jsonl", GAP),
    "nq_open": ("nq_open.jsonl", ASKED),
    "triviaqa": ("triviaqa_sm_sub.jsonl", TRIVIA),
    "gsm8k": ("gsm8k.jsonl", SUM),
    "mmlu_stem": ("mmlu_stem.jsonl", SUBJECT),
    "math500": ("math500.jsonl", PROOF),
    "humaneval": ("humaneval.jsonl", FUNCTION),
    "mbpp": ("mbpp.jsonl", PROGRAM),
}
LABELS = (-1, 4, 9, 10**400, "1", 1.0, True, None, [0], {}, float("nan"))
DAMAGES = {  # of single fields, whatever the benchmark
    "query": (None, "", " \n", 5, ["a"]),
    "choices": (None, [], "abcd", ["one"], ["a", None], ["a", ""], ["a", 5], {"a": 1}),
    "gold": LABELS,
    "continuation": (None, "", " ", 5),
    "context_options": (None, ["a"], ["a", "b", "c"], ["a", ""], "ab"),
    "question": (None, "", 5),
    "context": (None, "", 5),
    "aliases": (None, [], "Ann", [""], [None]),
    "chain_of_thought": (None, "", 5),
    "type": (None, "", 5, ["astronomy"]),
    "problem": (None, "", 5),
    "solution": (None, "", "It is 2.", "It is $\\boxed{2$."),
    "prompt": (None, "", 5, "def adds(x):\n", "add = 3"),
    "entry_point": (None, "", "not a name", 5),
    "test": (None, "", "pass"),
    "text": (None, "", 5),
    "test_setup_code": (None, 5),
    "test_list": (None, [], ["assert True"], "assert True", ["assert True", "assert True", "add(3)"]),
}
OWN = {  # and of those whose meaning depends on it
    "nq_open": [("answer", bad) for bad in (None, [], "Ann", [""], [None], 5)],
    "gsm8k": [("answer", bad) for bad in (None, "", "two", True, 2.5, ["2"], "1..2", "1,2,3", "12,34")],
    "mmlu_stem": [("answer", bad) for bad in LABELS] + [("choices", ["a", "b", "c"]), ("type", "philosophy")],
    **{
        name: [("choices", [*"abcdefg"]), ("choices", [*"ab"])]
        for name in ("hellaswag", "openbookqa", "siqa", "commonsense_qa")
    },
    "piqa": [("choices", ["a", "b", "c"])],
    "boolq": [("choices", ["yes", "no"]), ("query", "no passage here?"), ("query", "Passage: \nQuestion: ")],
    "mbpp": [("task_id", bad) for bad in (None, "11", 0, -1, 10**400, 11.0, True)],
}
CASES = [
    (name, field, bad)
    for name, (_, row) in ROWS.items()
    for field, bad in [(field, bad) for field in row for bad in DAMAGES.get(field, ())] + OWN.get(name, [])
]


def write_rows(path: Path, *rows: object) -> None:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def why_missing(name: str, folder: Path) -> str:
    tasks, missing = build_tasks((BENCHMARKS[name],), folder, True)
    assert not tasks
    return missing[name]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_whose_field_is_not_what_it_must_be_is_named(name, tmp_path):
    file, good = ROWS[name]
    cases = [(field, bad) for benchmark, field, bad in CASES if benchmark == name]
    assert len(cases) >= 7
    for field, bad in cases:
        write_rows(tmp_path / file, good, {**good, field: bad})
        assert f"{file}, line 2, is no item of {name}: {field!r}" in why_missing(name, tmp_path), (field, bad)
    needed = good.keys() - ({"choices"} if name == "boolq" else set())
    for field in needed:
        write_rows(tmp_path / file, good, {key: value for key, value in good.items() if key != field})
        assert f"line 2, is no item of {name}: it has no {field!r}" in why_missing(name, tmp_path)


@pytest.mark.parametrize("line", ["{\n", "[]\n", "null\n", "5\n", '"x"\n', '{"query": "a', "[" * 100_000 + "\n"])
def test_a_line_that_is_no_object_is_named(line, tmp_path):
    write_rows(tmp_path / "arc_easy.jsonl", CHOICE, line)
    assert "arc_easy.jsonl, line 2" in why_missing("arc_easy", tmp_path)


@pytest.mark.parametrize("blank", ["", "\r\n", " \n"])
def test_a_byte_order_mark_and_blank_lines_change_nothing(blank, tmp_path):
    line = json.dumps(CHOICE)
    (tmp_path / "arc_easy.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{blank}{line}\r\n{line}".encode())
    (tmp_path / "bbh").mkdir()
    examples = json.dumps({"examples": [{"input": "a", "target": "b"}]})
    (tmp_path / "bbh" / "snarks.json").write_bytes(b"\xef\xbb\xbf" + examples.encode())
    tasks, missing = build_tasks((BENCHMARKS["arc_easy"], BENCHMARKS["bbh"]), tmp_path, False)
    assert not missing
    assert [doc["question"] for doc in tasks["arc_easy"].eval_docs] == ["A dog"] * 2


@pytest.mark.parametrize(
    "data", [b'{"query": "\\ud83d"}', b'{"query": "\xe9"}', b'{"id": "\\udc00"}', b"\xff\xfe{\x00}\x00"]
)
def test_what_is_no_text_is_named(data, tmp_path):
    (tmp_path / "arc_easy.jsonl").write_bytes(data + b"\n")
    assert "arc_easy.jsonl" in why_missing("arc_easy", tmp_path)


def test_what_is_no_file_is_missing_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "arc_easy.jsonl")
    (tmp_path / "piqa.jsonl").mkdir()
    (tmp_path / "bbh").mkdir()
    os.mkfifo(tmp_path / "bbh" / "snarks.json")
    for name, file in {"arc_easy": "arc_easy.jsonl", "piqa": "piqa.jsonl", "bbh": "snarks.json"}.items():
        assert file in why_missing(name, tmp_path)


def test_a_file_without_rows_or_without_the_part_that_is_scored_is_missing(tmp_path):
    write_rows(tmp_path / "arc_easy.jsonl", "\n")
    assert "arc_easy.jsonl lacks items" in why_missing("arc_easy", tmp_path)
    write_rows(tmp_path / "mbpp.jsonl", *({**PROGRAM, "task_id": place} for place in (2, 3, 4)))
    assert "mbpp.jsonl lacks items" in why_missing("mbpp", tmp_path)


def test_a_hidden_label_is_called_so(tmp_path):
    write_rows(tmp_path / "arc_easy.jsonl", CHOICE, {**CHOICE, "gold": -1})
    assert "hides its labels" in why_missing("arc_easy", tmp_path)


@pytest.mark.parametrize(
    "examples",
    [
        None,
        [],
        {},
        [5],
        [{"input": "a"}],
        [{"input": "a", "target": None}],
        [{"input": "", "target": "b"}],
        [{"input": "a", "target": ["b"]}],
    ],
)
def test_bbh_is_checked_too(examples, tmp_path):
    (tmp_path / "bbh").mkdir()
    (tmp_path / "bbh" / "snarks.json").write_text(json.dumps({"examples": examples}))
    assert "bbh/snarks.json" in why_missing("bbh", tmp_path)


def test_fields_that_are_not_used_may_hold_anything(tmp_path):
    write_rows(tmp_path / "arc_easy.jsonl", {**CHOICE, "id": 1}, {**CHOICE, "id": "two"}, {**CHOICE, "id": [None]})
    tasks, missing = build_tasks((BENCHMARKS["arc_easy"],), tmp_path, False)
    assert not missing
    assert len(tasks["arc_easy"].eval_docs) == 3


@pytest.mark.parametrize("rows", [[1], [1, 2, 3], [1] * 20, [1, 1, 1, 1, 1, 1, 2, 3, 4, 5], [*"1123456"]])
def test_too_few_others_to_take_shots_from_are_said(rows, tmp_path):
    write_rows(tmp_path / "nq_open.jsonl", *({**ASKED, "question": f"who ate {number}"} for number in rows))
    others = len({*rows}) - 1
    if others < 5:
        assert f"needs 5 shots for each item, but has only {others} other items" in why_missing("nq_open", tmp_path)
    else:
        assert build_tasks((BENCHMARKS["nq_open"],), tmp_path, True)[0].keys() == {"nq_open"}


def test_a_damaged_benchmark_takes_no_other_along(tmp_path):
    model = HarnessModel(write_model(tmp_path / "model"), threads=1, cache_dir=tmp_path / "kept")
    write_rows(tmp_path / "arc_easy.jsonl", CHOICE, {**CHOICE, "gold": 1})
    write_rows(tmp_path / "nq_open.jsonl", ASKED)
    write_rows(tmp_path / "piqa.jsonl", PAIR, {**PAIR, "gold": "0"})
    prepared = run.prepare("nq_open,arc_easy,piqa", data_dir=tmp_path)
    results, _ = run.evaluate(model, prepared)
    assert results.results["arc_easy"]["n"] == 2
    assert results.missing.keys() == {"nq_open", "piqa"}
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results


def test_a_task_that_fails_in_the_harness_takes_no_other_along(tmp_path, monkeypatch):
    model = HarnessModel(write_model(tmp_path / "model"), threads=1, cache_dir=tmp_path / "kept")
    write_rows(tmp_path / "arc_easy.jsonl", CHOICE, {**CHOICE, "gold": 1})
    write_rows(tmp_path / "piqa.jsonl", PAIR)
    prepared = run.prepare("arc_easy,piqa", data_dir=tmp_path)

    def fail(doc, results):
        raise KeyError("label")

    prepared.tasks["piqa"].process_results = fail
    results, _ = run.evaluate(model, prepared)
    assert results.results.keys() == {"arc_easy"}
    assert results.missing == {"piqa": "lm_eval cannot score it (KeyError: 'label')"}


def test_items_with_a_choice_beyond_the_context_are_left_out_and_counted(tmp_path):
    model = HarnessModel(write_model(tmp_path / "model"), threads=1, cache_dir=tmp_path / "kept")
    long = {**CHOICE, "choices": ["word " * model.max_length, "reads"]}
    rows = [CHOICE, {**CHOICE, "gold": 1}, {**CHOICE, "gold": 2}]

    def evaluate(*rows):
        write_rows(tmp_path / "arc_easy.jsonl", *rows)
        write_rows(tmp_path / "piqa.jsonl", PAIR)
        prepared = run.prepare("arc_easy,piqa", data_dir=tmp_path)
        return run.evaluate(model, prepared)

    whole = evaluate(*rows)[0].results["arc_easy"]
    results, examples = evaluate(rows[0], long, *rows[1:], long)
    found = results.results["arc_easy"]
    note = found.pop("note")
    assert "2 of 5 items left out: an answer has" in note
    assert found == {key: value for key, value in whole.items() if key != "note"}
    assert [example["id"] for example in examples] == ["0", "2", "3", "0"], "the others keep their numbers"
    nothing, _ = evaluate(long)
    assert nothing.results.keys() == {"piqa"}
    assert "1 of 1 items left out" in nothing.missing["arc_easy"]
    write_rows(tmp_path / "arc_easy.jsonl", long)
    with pytest.raises(DataError, match=r"no benchmark of arc_easy can be run: arc_easy: 1 of 1 items"):
        run.evaluate(model, run.prepare("arc_easy", data_dir=tmp_path))
