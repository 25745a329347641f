"""A suite of benchmarks on one model, by lm-evaluation-harness's own evaluation."""

from __future__ import annotations

import logging
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from lm_eval import evaluator
from lm_eval.api import task as lm_eval_task
from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr

from mobilemoe.errors import DataError, TokenizerError
from mobilemoe.evaluate.harness import HarnessModel, OnProgress
from mobilemoe.evaluate.local import NO_HUB
from mobilemoe.evaluate.results import Results, write_examples
from mobilemoe.evaluate.scorer import decode_ms
from mobilemoe.evaluate.suites import Benchmark, build_tasks, find_benchmarks
from mobilemoe.evaluate.tasks.build import data_revisions

FEWSHOT_SEED = 1234  # lm_eval's own, with which it draws the examples of a prompt
_RESAMPLES = 1000  # for standard errors of metrics that are no means
_FACTS = ("name", "alias", "sample_len")  # what lm_eval has beside the metrics of a task
Row = dict[str, Any]
Parts = Mapping[str, Any]  # the tasks of a benchmark, under names of their own
# What lm_eval's tasks raise for items that they do not expect; the faults of the machine are none of these.
_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, TemplateError)


@dataclass(frozen=True)
class _Part:
    """lm_eval's results of one task: means and standard errors by name, over `size` examples, which are `samples`.

    unscorable: for each item that was left out, the tokens of an answer that the model cannot be asked for.
    """

    metrics: dict[str, float | None]
    size: int
    version: Any
    samples: list[dict[str, Any]]
    unscorable: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A suite whose data are at hand: `tasks` as `suites.build_tasks` gives them, and why others are `missing`."""

    suite: str
    benchmarks: tuple[Benchmark, ...]
    tasks: dict[str, Any]
    missing: dict[str, str]


def prepare(suite: str, *, data_dir: Path | None = None, allow_code: bool = False) -> Prepared:
    """A suite, or the benchmarks of a comma-separated list; with data from a folder instead of the Hub if one is given.

    allow_code: whether code that a model writes may be run. UsageError for unknown names, DataError if no benchmark's
    data can be read.
    """
    benchmarks = find_benchmarks(suite, data_dir)
    with _quiet():
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
    examples: Path | str,
    limit: int | None = None,
    chat: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Results:
    """Scores of `model` on a suite; its scored examples as JSONL.

    examples: the file for them, a line each: benchmark, id, correct (the main metric's value for it), tokens (of its
    longest request, answer included). limit: examples of each benchmark, the first ones, of its tasks about as many
    each. chat: whether prompts are put as conversations; by default those of benchmarks that ask for it, if the model
    has a chat template. `on_progress` is that of `HarnessModel`. Items that cannot be put to this model are left out,
    and the benchmark's note says so; one of which nothing is left is missing. DataError if all are.
    """
    began = time.perf_counter()
    model.on_progress = on_progress
    model.left_truncations = model.token_cap_hits = 0
    model.unscorable = {}
    parts = {name: _parts(name, found) for name, found in prepared.tasks.items()}
    in_chat = _in_chat(model, prepared.benchmarks) if chat is None else parts.keys() if chat else set()
    found: dict[str, _Part] = {}
    missing = dict(prepared.missing)
    with _quiet():
        for is_chat in (False, True):
            some = {name: each for name, each in parts.items() if (name in in_chat) == is_chat}
            if some:
                found |= _run_all(model, some, limit, is_chat, missing)
    rows: dict[str, Row] = {}
    lines: list[dict[str, Any]] = []
    for benchmark in prepared.benchmarks:
        of_parts = {key: found[key] for key in parts.get(benchmark.name, ()) if key in found}
        unscored = _unscored(model, of_parts)
        of_parts = {key: part for key, part in of_parts.items() if part.size}
        if of_parts:
            row = _row(benchmark, of_parts) | {"prompt": "conversation" if benchmark.name in in_chat else "text"}
            row["note"] = "; ".join(filter(None, (row["note"], unscored)))
            row["data"] = data_revisions(parts[benchmark.name].values())
            lines += _examples(benchmark.name, row["main_metric"], of_parts, model)
            rows[benchmark.name] = row
        elif unscored:
            missing[benchmark.name] = unscored
    if not rows:
        raise _nothing_of(prepared.suite, missing)
    write_examples(lines, examples)
    return Results(
        model=dict(model.scorer.model),
        engine=dict(model.scorer.engine),
        suite=prepared.suite,
        limit=limit,
        results=rows,
        missing=missing,
        counts={"left_truncations": model.left_truncations, "token_cap_hits": model.token_cap_hits},
        speed={"ms_per_token": decode_ms(model.scorer)},
        examples=Path(examples).name,
        seconds=time.perf_counter() - began,
    )


def prompts(model: HarnessModel, prepared: Prepared, count: int) -> dict[str, list[list[int]]]:
    """Ids of the first `count` different prompts of each benchmark, as an evaluation has put them to `model`."""
    found: dict[str, list[list[int]]] = {}
    for name, tasks in prepared.tasks.items():
        each = tasks if isinstance(tasks, list) else [tasks]
        per_task = [[*dict.fromkeys(request.args[0] for request in task.instances)] for task in each]
        mixed = [text for texts in zip_longest(*per_task) for text in texts if text is not None]
        found[name] = [model.tok_encode(text) or [model.prefix_token_id] for text in mixed[:count]]
    return found


def _nothing_of(suite: str, missing: Mapping[str, str]) -> DataError:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    return DataError(f"no benchmark of {suite} can be run: {reasons}")


def _unscored(model: HarnessModel, parts: Mapping[str, _Part]) -> str:
    """How many items of a benchmark were left out, and why; "" for none."""
    lengths = [length for part in parts.values() for length in part.unscorable]
    if not lengths:
        return ""
    items = sum(part.size for part in parts.values()) + len(lengths)
    return (
        f"{len(lengths):,} of {items:,} items left out: an answer has {max(lengths):,} tokens, "
        f"but must have from 1 to the {model.max_length:,} of the model's context"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm_eval's own bars and notes, and with what tasks print on standard error: the output is ours."""
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, lm_eval_task.tqdm
    logger.setLevel(logging.ERROR)
    lm_eval_task.tqdm = partial(bar, disable=True)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
        lm_eval_task.tqdm = bar


def _in_chat(model: HarnessModel, benchmarks: Sequence[Benchmark]) -> set[str]:
    """The benchmarks whose prompts are put as conversations: those for instruct models, if it has a template."""
    try:
        model.chat_template(True)
    except TokenizerError:
        return set()
    return {benchmark.name for benchmark in benchmarks if benchmark.chat}


def _parts(name: str, found: Any) -> Parts:
    """The tasks of a benchmark under names of their own: that of the benchmark, and of the task if it has several."""
    return {f"{name}/{task.task_name}": task for task in found} if isinstance(found, list) else {name: found}


def _run_all(
    model: HarnessModel, parts: Mapping[str, Parts], limit: int | None, chat: bool, missing: dict[str, str]
) -> dict[str, _Part]:
    """Results of the tasks of all benchmarks; one whose task fails in lm_eval's code goes into `missing`, no other."""
    try:
        return _run(model, parts, limit, chat)
    except _FAULTS:
        found: dict[str, _Part] = {}
        for name, of_one in parts.items():
            try:
                found |= _run(model, {name: of_one}, limit, chat)  # what was answered before the fault is kept
            except _FAULTS as fault:
                missing[name] = f"lm_eval cannot score it ({type(fault).__name__}: {str(fault).partition(chr(10))[0]})"
        return found


def _run(model: HarnessModel, parts: Mapping[str, Parts], limit: int | None, chat: bool) -> dict[str, _Part]:
    """lm_eval's results of all tasks, whose requests are put to the model together."""
    tasks = {key: task for each in parts.values() for key, task in each.items()}
    samples = None
    if limit is not None:
        counts = {key: count for each in parts.values() for key, count in _counts(each, limit).items()}
        samples = {key: list(range(count)) for key, count in counts.items() if count}
        tasks = {key: tasks[key] for key in samples}  # to lm_eval no examples are all of them
    found = _score(model, tasks, samples, chat)
    for key, part in found.items():
        lengths = {sample["doc_id"]: model.unscorable_of(sample["arguments"]) for sample in part.samples}
        left_out = tuple(length for length in lengths.values() if length is not None)
        if left_out:
            rest = sorted(place for place, length in lengths.items() if length is None)
            without = (
                _score(model, {key: tasks[key]}, {key: rest}, chat)[key] if rest else _Part({}, 0, part.version, [])
            )
            found[key] = replace(without, unscorable=left_out)
    return found


def _score(
    model: HarnessModel, tasks: Mapping[str, Any], samples: dict[str, list[int]] | None, chat: bool
) -> dict[str, _Part]:
    """lm_eval's results of `tasks`, over all their examples or those numbered in `samples`."""
    for task in tasks.values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    results = evaluator.evaluate(
        lm=model,
        task_dict={"tasks": dict(tasks), "groups": {}},
        samples=samples,
        bootstrap_iters=_RESAMPLES,
        log_samples=True,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        confirm_run_unsafe_code=True,  # tasks of code are ours, which run it in the sandbox, and are built on request
    )
    return {
        key: _Part(
            metrics=_metrics(results["results"][key]),
            size=results["n-samples"][key]["effective"],
            version=results["versions"][key],
            samples=results["samples"][key],
        )
        for key in tasks
    }


def _counts(tasks: Mapping[str, Any], limit: int) -> dict[str, int]:
    """How many examples of each task make up `limit`: of all as many, as far as they go."""
    sizes = {key: len(task.eval_docs) for key, task in tasks.items()}
    counts = dict.fromkeys(sizes, 0)
    for _ in range(min(limit, sum(sizes.values()))):
        counts[min((key for key in sizes if counts[key] < sizes[key]), key=counts.__getitem__)] += 1
    return counts


def _row(benchmark: Benchmark, parts: Mapping[str, _Part]) -> Row:
    """Scores of a benchmark: of several tasks the mean over all their examples, with a pooled standard error."""
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


def _metrics(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Means and standard errors by name: "acc" for lm_eval's "acc,none", else with the filter's: "f1,first-line"."""
    metrics: dict[str, float | None] = {}
    for key, value in scores.items():
        if key not in _FACTS:
            metric, _, filter_name = key.partition(",")
            is_error = metric.endswith("_stderr")
            name = metric.removesuffix("_stderr") + ("" if filter_name == "none" else f",{filter_name}")
            known = value != "N/A" and not (is_error and math.isnan(value))
            metrics[f"{name}_stderr" if is_error else name] = float(value) if known else None
    return metrics


def _pooled(stderrs: Sequence[Any], sizes: Sequence[int]) -> Any:
    return stderrs[0] if len(sizes) == 1 else pooled_sample_stderr(list(stderrs), list(sizes))


def _find_metric(benchmark: Benchmark, row: Row) -> str:
    """The name of the main metric in `row`; a benchmark may leave out the filter."""
    for name in row:
        if benchmark.metric in (name, name.partition(",")[0]):
            return name
    raise DataError(f"{benchmark.name} gave no {benchmark.metric}, its main metric, but only {', '.join(row)}")


def _examples(benchmark: str, metric: str, parts: Mapping[str, _Part], model: HarnessModel) -> Iterator[dict[str, Any]]:
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
