"""Benchmarks from a folder of JSONL files, as lm_eval's own tasks: only the source of the items differs.

Each row is converted to the fields of the data set that lm_eval's task expects, so that prompt, choices, filters and
metrics are the task's own. Where upstream draws its shots from a training split, the first other items of the file are
taken, and never the item in question; shots that are part of the task stay.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from mobilemoe.errors import DataError
from mobilemoe.evaluate.results.rows import FieldError, Row, label, read_rows, text, texts, whole_number
from mobilemoe.files import read_json

_GSM8K_ANSWER = re.compile(r"\$?-?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?")
_STEM = (
    *("abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry", "college_computer_science"),
    *("college_mathematics", "college_physics", "computer_security", "conceptual_physics", "electrical_engineering"),
    *("elementary_mathematics", "high_school_biology", "high_school_chemistry", "high_school_computer_science"),
    *("high_school_mathematics", "high_school_physics", "high_school_statistics", "machine_learning"),
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NO_HUB = "the Hub cannot be reached"


class Unavailable(Exception):  # noqa: N818 - no error: such a benchmark is listed as missing, with this reason
    """A benchmark's data, or another requirement of it, are not available here."""


@dataclass(frozen=True)
class LocalFile:
    """The file of a benchmark: its rows in the fields of lm_eval's task, and the changes to the task's config.

    alike: whether all rows have the same number of choices, so that guessing is right equally often. part: the task of
    a group that a row belongs to. split: the part of the data set that it belongs to; the splits in `needs` must exist.
    """

    name: str
    row: Callable[[Row], Row]
    config: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    alike: bool = True
    part: Callable[[Row], str] | None = None
    split: Callable[[Row], str] = lambda row: "test"
    needs: tuple[str, ...] = ("test",)


def _choose(row: Row) -> Row:
    """A question, its choices and the index of the right one, under our names."""
    choices = texts(row, "choices", 2, len(_LETTERS))
    return {"query": text(row, "query"), "choices": choices, "gold": label(row, "gold", choices)}


def _hellaswag(row: Row) -> Row:
    asked = _choose(row)
    return {"query": asked["query"], "choices": asked["choices"], "label": asked["gold"]}


def _arc(row: Row) -> Row:
    return _lettered("question", _choose(row), "Question: ")


def _openbookqa(row: Row) -> Row:
    return _lettered("question_stem", _choose(row))


def _lettered(question: str, asked: Row, prefix: str = "") -> Row:
    letters = [*_LETTERS[: len(asked["choices"])]]
    return {
        question: asked["query"].removeprefix(prefix),
        "choices": {"text": asked["choices"], "label": letters},
        "answerKey": letters[asked["gold"]],
    }


def _piqa(row: Row) -> Row:
    first, second = choices = texts(row, "choices", 2, 2)
    goal = text(row, "query").removeprefix("Question: ").removesuffix("\n")
    return {"goal": goal, "sol1": first, "sol2": second, "label": label(row, "gold", choices)}


def _winogrande(row: Row) -> Row:
    """The two contexts fill a gap at the beginning of the text: lm_eval joins them to the same texts as upstream's."""
    first, second = contexts = texts(row, "context_options", 2, 2)
    return {
        "sentence": f"_ {text(row, 'continuation')}",
        "option1": first,
        "option2": second,
        "answer": str(label(row, "gold", contexts) + 1),
    }


def _boolq(row: Row) -> Row:
    passage, between, question = text(row, "query").removeprefix("Passage: ").rpartition("\nQuestion: ")
    if not (between and passage.strip() and question.strip()):
        raise FieldError(
            f"'query' is {row['query']!r:.60}, but must be 'Passage: ...' and, on a new line, 'Question: ...'"
        )
    choices = ["no", "yes"]
    if row.get("choices", choices) != choices:
        raise FieldError(f"'choices' is {row['choices']!r:.60}, but must be {choices}, as boolq's labels count them")
    return {"passage": passage, "question": question.removesuffix("?"), "label": label(row, "gold", choices)}


def _nq_open(row: Row) -> Row:
    return {"question": text(row, "question"), "answer": texts(row, "answer", 1)}


def _triviaqa(row: Row) -> Row:
    # The question keeps its "?", though lm_eval adds one: so it does to upstream's, which have theirs too.
    question = text(row, "context").removeprefix("Question: ").removesuffix("\nAnswer:")
    return {"question": question, "answer": {"aliases": texts(row, "aliases", 1)}}


def _gsm8k(row: Row) -> Row:
    is_number = isinstance(row.get("answer"), int) and not isinstance(row["answer"], bool)
    answer = str(row["answer"]) if is_number else text(row, "answer")
    if not _GSM8K_ANSWER.fullmatch(answer):  # lm_eval would find nothing in an answer that could be equal to it
        raise FieldError(f"'answer' is {answer!r:.60}, but must be a number in digits")
    return {"question": text(row, "context"), "answer": f"{text(row, 'chain_of_thought')}\n#### {answer}"}


def _mmlu(row: Row) -> Row:
    choices = texts(row, "choices", 4, 4)
    return {"question": text(row, "question"), "choices": choices, "answer": label(row, "answer", choices)}


def _mmlu_subject(row: Row) -> str:
    return f"mmlu_{text(row, 'type')}"


def _stem_subject(row: Row) -> str:
    if text(row, "type") not in _STEM:
        raise FieldError(f"'type' is {row['type']!r:.60}, but must be one of MMLU's subjects of science: {_STEM}")
    return _mmlu_subject(row)


def _math500(row: Row) -> Row:
    solution = text(row, "solution")
    _, boxed, rest = solution.rpartition("\\boxed")
    depths = accumulate((letter == "{") - (letter == "}") for letter in rest)
    if not boxed or not (rest.startswith(" ") or (rest.startswith("{") and 0 in depths)):
        raise FieldError("'solution' holds no \\boxed{...}, which is where the answer is taken from")
    return {"problem": text(row, "problem"), "solution": solution}


def _humaneval(row: Row) -> Row:
    names = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    fields = {name: text(row, name) for name in names if name in row or name != "canonical_solution"}
    if "def check(" not in fields["test"]:
        raise FieldError("'test' defines no function check, so nothing would be tested")
    if not fields["entry_point"].isidentifier():
        raise FieldError(f"'entry_point' is {fields['entry_point']!r:.60}, but must be the name of a function")
    if not re.search(rf"\bdef\s+{fields['entry_point']}\b", fields["prompt"]):
        raise FieldError(f"'prompt' defines no function {fields['entry_point']!r:.60}, which is the 'entry_point'")
    return fields


def _mbpp(row: Row) -> Row:
    tests = texts(row, "test_list", 3)  # the prompt shows three of them
    if idle := [test for test in tests if "assert" not in test]:
        raise FieldError(f"'test_list' holds {idle[0]!r:.60}, which asserts nothing")
    return {
        "task_id": whole_number(row, "task_id", 1, 2**31),
        "text": text(row, "text"),
        "code": text(row, "code"),
        "test_setup_code": text(row, "test_setup_code", may_be_blank=True),
        "test_list": tests,
    }


def _mbpp_split(row: Row) -> str:
    return "prompt" if row["task_id"] <= 10 else "test" if row["task_id"] <= 510 else "train"


_LETTERED = {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"}
_ONE_SHORT = "one choice fewer than upstream, as lettered prompts: not comparable with published numbers"
_OWN_SHOTS = "the shots are the file's first other items"
FILES = {
    "hellaswag": LocalFile("hellaswag.jsonl", _hellaswag, {"process_docs": None}),
    "piqa": LocalFile("piqa.jsonl", _piqa),
    "siqa": LocalFile("siqa.jsonl", _choose, _LETTERED, _ONE_SHORT),
    "commonsense_qa": LocalFile("commonsense_qa.jsonl", _choose, _LETTERED, _ONE_SHORT),
    "winogrande": LocalFile("winogrande.jsonl", _winogrande),
    "arc_easy": LocalFile("arc_easy.jsonl", _arc, alike=False),
    "arc_challenge": LocalFile("arc_challenge.jsonl", _arc, alike=False),
    "openbookqa": LocalFile("openbook_qa.jsonl", _openbookqa),
    "boolq": LocalFile("boolq.jsonl", _boolq),
    "nq_open": LocalFile("nq_open.jsonl", _nq_open, note=_OWN_SHOTS),
    "triviaqa": LocalFile("triviaqa_sm_sub.jsonl", _triviaqa, note=f"3,000 questions of the set; {_OWN_SHOTS}"),
    "gsm8k": LocalFile("gsm8k.jsonl", _gsm8k, note=_OWN_SHOTS),
    "mmlu": LocalFile("mmlu.jsonl", _mmlu, note=f"{_OWN_SHOTS} of the subject", part=_mmlu_subject),
    "mmlu_stem": LocalFile(
        "mmlu_stem.jsonl",
        _mmlu,
        note=f"18 of MMLU's 57 subjects: not MMLU's number; {_OWN_SHOTS} of the subject",
        part=_stem_subject,
    ),
    "math500": LocalFile("math500.jsonl", _math500),
    "humaneval": LocalFile("humaneval.jsonl", _humaneval),
    "mbpp": LocalFile("mbpp.jsonl", _mbpp, split=_mbpp_split, needs=("prompt", "test")),
}
NOTES = {name: file.note for name, file in FILES.items() if file.note}
BBH = "bbh"  # a folder of JSON files, one a task: {"examples": [{"input", "target"}, ...]}

Splits = dict[str, list[Row]]


def read_items(name: str, data_dir: Path) -> dict[str, Splits]:
    """Rows by part of the benchmark `name` ("" if it has no parts) and by split, in the fields of lm_eval's tasks.

    Every row is checked before any is returned: required fields exist, with the right type and range, and no others are
    kept. Raises Unavailable, naming the file that was looked for, or DataError, with the line, for a damaged file.
    """
    if name == BBH:
        return _read_bbh(data_dir / BBH)
    path = data_dir / (FILES[name].name if name in FILES else f"{name}.jsonl")
    if not path.is_file():
        raise Unavailable(f"{data_dir} holds no {path.name}")
    if name not in FILES:
        raise Unavailable(f"{path.name} has no layout that can be read here")
    file = FILES[name]
    parts: dict[str, Splits] = defaultdict(lambda: defaultdict(list))
    first: tuple[str, Row] | None = None
    for place, row in read_rows(path):
        try:
            item = file.row(row)
            if file.alike and "choices" in row:
                first = first or (place, row)
                _check_alike(row, *first)
            parts[file.part(row) if file.part else ""][file.split(item)].append(item)
        except FieldError as fault:
            raise DataError(f"{place}, is no item of {name}: {fault}") from None
    if not parts or not all(split in splits for splits in parts.values() for split in file.needs):
        raise DataError(f"{path} lacks items of {name}: it must hold some of {' and '.join(file.needs)}")
    return parts


def _check_alike(row: Row, place: str, first: Row) -> None:
    here, there = len(row["choices"]), len(first["choices"])
    if here != there:
        raise FieldError(f"'choices' are {here}, but {there} in {place}")


def config_of(name: str) -> dict[str, Any]:
    """The changes to the config of lm_eval's task when it reads this benchmark's file."""
    return FILES[name].config if name in FILES else {}


def has_stem_alone(data_dir: Path) -> bool:
    """Whether the folder has the STEM part of MMLU without MMLU itself."""
    return (data_dir / FILES["mmlu_stem"].name).is_file() and not (data_dir / FILES["mmlu"].name).exists()


def _read_bbh(folder: Path) -> dict[str, Splits]:
    parts: dict[str, Splits] = {}
    for path in sorted(folder.glob("*.json")):
        examples = read_json(path, DataError).get("examples")
        if not isinstance(examples, list) or not examples:
            raise DataError(f"{path} holds no list of 'examples'")
        parts[f"bbh_cot_fewshot_{path.stem}"] = {"test": [_bbh(path, *each) for each in enumerate(examples, start=1)]}
    if not parts:
        raise Unavailable(f"{folder.parent} holds no {BBH}/*.json")
    return parts


def _bbh(path: Path, number: int, example: Any) -> Row:
    place = f"{path}, example {number}"
    if not isinstance(example, dict):
        raise DataError(f"{place}, is no object: {example!r:.60}")
    try:
        return {"input": text(example, "input"), "target": text(example, "target")}
    except FieldError as fault:
        raise DataError(f"{place}, is no item of {BBH}: {fault}") from None
