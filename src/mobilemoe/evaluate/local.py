"""Benchmarks from a folder of JSONL files, as lm_eval's own tasks: only where the items come from differs.

Each row is put back into the fields of the data set that lm_eval's task expects, so that prompt, choices, filters and
metrics are the task's own. Shots that upstream draws from a training split are the first other items of the file
itself, never the item that is asked; shots that the task brings along stay.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilemoe.errors import DataError
from mobilemoe.files import read_json

Row = dict[str, Any]

NO_HUB = "the Hub cannot be reached"


class Unavailable(Exception):  # noqa: N818 - no error: such a benchmark is listed as missing, with this reason
    """A benchmark's data, or what it needs besides, cannot be had here."""


@dataclass(frozen=True)
class LocalFile:
    """A benchmark's file: a row in the fields of lm_eval's task, and what of the task's config changes with it.

    part: which task of a group a row is of; split: which part of the data set, of which `needs` must be there.
    """

    name: str
    row: Callable[[Row], Row]
    config: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    part: Callable[[Row], str] | None = None
    split: Callable[[Row], str] = lambda row: "test"
    needs: tuple[str, ...] = ("test",)


def _arc(row: Row) -> Row:
    return {"question": row["query"].removeprefix("Question: "), **_labelled(row)}


def _labelled(row: Row) -> Row:
    letters = [chr(ord("A") + place) for place in range(len(row["choices"]))]
    return {"choices": {"text": row["choices"], "label": letters}, "answerKey": letters[row["gold"]]}


def _piqa(row: Row) -> Row:
    first, second = row["choices"]
    goal = row["query"].removeprefix("Question: ").removesuffix("\n")
    return {"goal": goal, "sol1": first, "sol2": second, "label": row["gold"]}


def _winogrande(row: Row) -> Row:
    """The two contexts fill a gap that stands at the beginning: lm_eval joins them to the same texts as upstream's."""
    first, second = row["context_options"]
    return {
        "sentence": f"_ {row['continuation']}",
        "option1": first,
        "option2": second,
        "answer": str(row["gold"] + 1),
    }


def _boolq(row: Row) -> Row:
    passage, _, question = row["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    return {"passage": passage, "question": question.removesuffix("?"), "label": row["gold"]}


def _triviaqa(row: Row) -> Row:
    # The question keeps its "?", though lm_eval adds one: so it does to upstream's, which have theirs too.
    question = row["context"].removeprefix("Question: ").removesuffix("\nAnswer:")
    return {"question": question, "answer": {"aliases": row["aliases"]}}


def _gsm8k(row: Row) -> Row:
    return {"question": row["context"], "answer": f"{row['chain_of_thought']}\n#### {row['answer']}"}


def _mmlu(row: Row) -> Row:
    return {name: row[name] for name in ("question", "choices", "answer")}


def _mbpp_split(row: Row) -> str:
    return "prompt" if row["task_id"] <= 10 else "test" if row["task_id"] <= 510 else "train"


def _as_it_is(row: Row) -> Row:
    return row


_LETTERED = {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"}
_ONE_SHORT = "one choice fewer than upstream, as lettered prompts: not comparable with published numbers"
_OWN_SHOTS = "the shots are the file's first other items"
FILES = {
    "hellaswag": LocalFile(
        "hellaswag.jsonl",
        lambda row: {"query": row["query"], "choices": row["choices"], "label": row["gold"]},
        {"process_docs": None},
    ),
    "piqa": LocalFile("piqa.jsonl", _piqa),
    "siqa": LocalFile("siqa.jsonl", _as_it_is, _LETTERED, _ONE_SHORT),
    "commonsense_qa": LocalFile("commonsense_qa.jsonl", _as_it_is, _LETTERED, _ONE_SHORT),
    "winogrande": LocalFile("winogrande.jsonl", _winogrande),
    "arc_easy": LocalFile("arc_easy.jsonl", _arc),
    "arc_challenge": LocalFile("arc_challenge.jsonl", _arc),
    "openbookqa": LocalFile("openbook_qa.jsonl", lambda row: {"question_stem": row["query"], **_labelled(row)}),
    "boolq": LocalFile("boolq.jsonl", _boolq),
    "nq_open": LocalFile("nq_open.jsonl", _as_it_is, note=_OWN_SHOTS),
    "triviaqa": LocalFile("triviaqa_sm_sub.jsonl", _triviaqa, note=f"3,000 questions of the set; {_OWN_SHOTS}"),
    "gsm8k": LocalFile("gsm8k.jsonl", _gsm8k, note=_OWN_SHOTS),
    "mmlu": LocalFile("mmlu.jsonl", _mmlu, note=f"{_OWN_SHOTS} of the subject", part=lambda row: f"mmlu_{row['type']}"),
    "mmlu_stem": LocalFile(
        "mmlu_stem.jsonl",
        _mmlu,
        note=f"18 of MMLU's 57 subjects: not MMLU's number; {_OWN_SHOTS} of the subject",
        part=lambda row: f"mmlu_{row['type']}",
    ),
    "math500": LocalFile("math500.jsonl", _as_it_is),
    "humaneval": LocalFile("humaneval.jsonl", _as_it_is),
    "mbpp": LocalFile("mbpp.jsonl", _as_it_is, split=_mbpp_split, needs=("prompt", "test")),
}
NOTES = {name: file.note for name, file in FILES.items() if file.note}
BBH = "bbh"  # a folder of JSON files, one a task: {"examples": [{"input", "target"}, ...]}

Splits = dict[str, list[Row]]


def read_items(name: str, data_dir: Path) -> dict[str, Splits]:
    """Rows by the part of the benchmark `name` ("" for one of no parts) and by split, in the fields of lm_eval's tasks.

    Raises Unavailable, which names the file that was looked for, or DataError if that is damaged.
    """
    if name == BBH:
        return _read_bbh(data_dir / BBH)
    file = FILES.get(name, LocalFile(f"{name}.jsonl", _as_it_is))
    path = data_dir / file.name
    if not path.is_file():
        raise Unavailable(f"{data_dir} holds no {file.name}")
    if name not in FILES:
        raise Unavailable(f"{file.name} has no layout that can be read here")
    parts: dict[str, Splits] = defaultdict(lambda: defaultdict(list))
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                parts[file.part(row) if file.part else ""][file.split(row)].append(file.row(row))
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as fault:
                raise DataError(f"{path}, line {number}, is no item of {name}: {fault!r}") from None
    if not parts or not all(split in splits for splits in parts.values() for split in file.needs):
        raise DataError(f"{path} lacks items of {name}: it must hold some of {' and '.join(file.needs)}")
    return parts


def config_of(name: str) -> dict[str, Any]:
    """What changes in the config of lm_eval's task when it reads this benchmark's file."""
    return FILES[name].config if name in FILES else {}


def has_stem_alone(data_dir: Path) -> bool:
    """Whether the folder has the STEM part of MMLU and not MMLU itself."""
    return (data_dir / FILES["mmlu_stem"].name).is_file() and not (data_dir / FILES["mmlu"].name).exists()


def _read_bbh(folder: Path) -> dict[str, Splits]:
    parts: dict[str, Splits] = {}
    for path in sorted(folder.glob("*.json")):
        examples = read_json(path, DataError).get("examples")
        rows = examples if isinstance(examples, list) else []
        if not rows or not all(isinstance(row, dict) and {"input", "target"} <= row.keys() for row in rows):
            raise DataError(f"{path} must hold examples with input and target")
        parts[f"bbh_cot_fewshot_{path.stem}"] = {"test": rows}
    if not parts:
        raise Unavailable(f"{folder.parent} holds no {BBH}/*.json")
    return parts


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as fault:
        raise DataError(f"{path} cannot be read: {fault.strerror}") from None
    except UnicodeDecodeError as fault:
        raise DataError(f"{path} is not UTF-8 text: {fault}") from None
