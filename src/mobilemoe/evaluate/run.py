"""Evaluates one model on a suite of benchmarks, with lm-evaluation-harness's own evaluation."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr

from mobilemoe.errors import DataError, TokenizerError
from mobilemoe.evaluate.models.harness import HarnessModel, OnProgress
from mobilemoe.evaluate.models.scorer import decode_ms
from mobilemoe.evaluate.results.results import Example, Results
from mobilemoe.evaluate.tasks.build import build_tasks
from mobilemoe.evaluate.tasks.lm_tasks import data_revisions
from mobilemoe.evaluate.tasks.local import NO_HUB
from mobilemoe.evaluate.tasks.score import Part, Parts, quiet, score_all
from mobilemoe.evaluate.tasks.suites import Benchmark, find_benchmarks

Row = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A suite whose data are available: `tasks` as `build.build_tasks` gives them, and why others are `missing`."""

    suite: str
    benchmarks: tuple[Benchmark, ...]
    tasks: dict[str, Any]
    missing: dict[str, str]


def prepare(suite: str, *, data_dir: Path | None = None, allow_code: bool = False) -> Prepared:
    """A suite, or the benchmarks of a comma-separated list, with data from a folder if one is given, else from the Hub.

    allow_code: whether programs that a model writes may be run. UsageError for unknown names, DataError if no
    benchmark's data can be read.
    """
    benchmarks = find_benchmarks(suite, data_dir)
    with quiet():
        random.seed(0)  # some tasks shuffle their choices
        tasks, missing = build_tasks(benchmarks, data_dir, allow_code)
    if not tasks and data_dir is None and all(reason.startswith(NO_HUB) for reason in missing.values()):
        raise DataError(f"{NO_HUB}: give the data sets as JSONL files with --data DIR")
    if not tasks:
        raise _nothing_of(suite, missing)
    return Prepared(suite, benchmarks, tasks, missing)


def evaluate(
    model: HarnessModel,
    prepared: Prepared,
    *,
    limit: int | None = None,
    chat: bool | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Results, list[Example]]:
    """The scores of `model` on a suite, and its scored examples, both for `save_results`.

    limit: the number of examples of each benchmark, the first ones, divided about equally among its tasks. chat:
    whether prompts are put as conversations; by default those of benchmarks that ask for it, if the model has a chat
    template. `on_progress` is that of `HarnessModel`. Items that cannot be put to this model are left out, and the
    benchmark's note says so; a benchmark without any other items is missing. DataError if all are.
    """
    began = time.perf_counter()
    model.on_progress = on_progress
    model.left_truncations = model.token_cap_hits = 0
    model.unscorable = {}
    parts = {name: _parts(name, found) for name, found in prepared.tasks.items()}
    in_chat = _in_chat(model, prepared.benchmarks) if chat is None else parts.keys() if chat else set()
    found: dict[str, Part] = {}
    missing = dict(prepared.missing)
    with quiet():
        for is_chat in (False, True):
            some = {name: each for name, each in parts.items() if (name in in_chat) == is_chat}
            if some:
                found |= score_all(model, some, limit, is_chat, missing)
    rows: dict[str, Row] = {}
    examples: list[Example] = []
    for benchmark in prepared.benchmarks:
        of_parts = {key: found[key] for key in parts.get(benchmark.name, ()) if key in found}
        unscored = _unscored(model, of_parts)
        of_parts = {key: part for key, part in of_parts.items() if part.size}
        if of_parts:
            row = _row(benchmark, of_parts) | {"prompt": "conversation" if benchmark.name in in_chat else "text"}
            row["note"] = "; ".join(filter(None, (row["note"], unscored)))
            row["data"] = data_revisions(parts[benchmark.name].values())
            examples += _examples(benchmark.name, row["main_metric"], of_parts, model)
            rows[benchmark.name] = row
        elif unscored:
            missing[benchmark.name] = unscored
    if not rows:
        raise _nothing_of(prepared.suite, missing)
    results = Results(
        model=dict(model.scorer.model),
        engine=dict(model.scorer.engine),
        suite=prepared.suite,
        limit=limit,
        results=rows,
        missing=missing,
        counts={"left_truncations": model.left_truncations, "token_cap_hits": model.token_cap_hits},
        speed={"ms_per_token": decode_ms(model.scorer)},
        examples="",
        seconds=time.perf_counter() - began,
    )
    return results, examples


def prompts(model: HarnessModel, prepared: Prepared, count: int) -> dict[str, list[list[int]]]:
    """Ids of the first `count` different prompts of each benchmark, as an evaluation puts them to `model`."""
    found: dict[str, list[list[int]]] = {}
    for name, tasks in prepared.tasks.items():
        each = tasks if isinstance(tasks, list) else [tasks]
        per_task = [[*dict.fromkeys(request.args[0] for request in task.instances or ())] for task in each]
        mixed = [text for texts in zip_longest(*per_task) for text in texts if text is not None]
        found[name] = [model.tok_encode(text) or [model.prefix_token_id] for text in mixed[:count]]
    return found


def _nothing_of(suite: str, missing: Mapping[str, str]) -> DataError:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    return DataError(f"no benchmark of {suite} can be run: {reasons}")


def _unscored(model: HarnessModel, parts: Mapping[str, Part]) -> str:
    """How many items of a benchmark were left out, and why; empty for none."""
    lengths = [length for part in parts.values() for length in part.unscorable]
    if not lengths:
        return ""
    items = sum(part.size for part in parts.values()) + len(lengths)
    return (
        f"{len(lengths):,} of {items:,} items left out: an answer has {max(lengths):,} tokens, "
        f"but must have from 1 to the {model.max_length:,} of the model's context"
    )


def _in_chat(model: HarnessModel, benchmarks: Sequence[Benchmark]) -> set[str]:
    """The benchmarks whose prompts are put as conversations: those for instruct models, if it has a template."""
    try:
        model.chat_template(True)
    except TokenizerError:
        return set()
    return {benchmark.name for benchmark in benchmarks if benchmark.chat}


def _parts(name: str, found: Any) -> Parts:
    """The tasks of a benchmark under unique names: the benchmark's, followed by the task's if there are several."""
    return {f"{name}/{task.task_name}": task for task in found} if isinstance(found, list) else {name: found}


def _row(benchmark: Benchmark, parts: Mapping[str, Part]) -> Row:
    """The scores of a benchmark; for several tasks the mean over all their examples, with a pooled standard error."""
    first, *others = parts.values()
    sizes = [part.size for part in parts.values()]
    row: Row = {}
    for name in first.metrics:
        if name.endswith("_stderr") or any(name not in part.metrics for part in others):
            continue
        stderrs = [part.metrics.get(f"{name}_stderr") for part in parts.values()]
        row[name] = float(aggregate_subtask_metrics([part.metrics[name] for part in parts.values()], sizes))
        row[f"{name}_stderr"] = None if None in stderrs else float(_pooled(stderrs, sizes))
    facts = {
        "main_metric": _find_metric(benchmark, row),
        "n": sum(sizes),
        "shots": benchmark.shots,
        "version": first.version,
        "published": benchmark.published,
        "note": benchmark.note,
    }
    if others:
        names = {key: key.removeprefix(f"{benchmark.name}/") for key in parts}
        facts["parts"] = {names[key]: {**part.metrics, "n": part.size} for key, part in parts.items()}
    return facts | row


def _pooled(stderrs: Sequence[Any], sizes: Sequence[int]) -> Any:
    return stderrs[0] if len(sizes) == 1 else pooled_sample_stderr(list(stderrs), list(sizes))


def _find_metric(benchmark: Benchmark, row: Row) -> str:
    """The name of the main metric in `row`; a benchmark may leave out the filter."""
    for name in row:
        if benchmark.metric in (name, name.partition(",")[0]):
            return name
    raise DataError(f"{benchmark.name} gave no {benchmark.metric}, its main metric, but only {', '.join(row)}")


def _examples(benchmark: str, metric: str, parts: Mapping[str, Part], model: HarnessModel) -> Iterator[Example]:
    name, _, filter_name = metric.partition(",")
    for key, part in parts.items():
        within = key.removeprefix(benchmark).removeprefix("/")
        for sample in part.samples:
            is_number = not isinstance(sample.get(name), tuple | list | None)  # perplexities are of sums
            if sample["filter"] == (filter_name or "none") and is_number:
                yield {
                    "benchmark": benchmark,
                    "id": f"{within}/{sample['doc_id']}" if within else str(sample["doc_id"]),
                    "correct": float(sample[name]),
                    "tokens": max(map(model.tokens_of, sample["arguments"])),
                }
