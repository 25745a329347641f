"""Runs lm_eval's own evaluation of tasks: requests are put to a model, and the answers are scored."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from lm_eval import evaluator
from lm_eval.api import task as lm_eval_task

if TYPE_CHECKING:
    from mobilemoe.evaluate.models.harness import HarnessModel

FEWSHOT_SEED = 1234  # lm_eval's own, with which it draws the examples of a prompt
_RESAMPLES = 1000  # for standard errors of metrics that are no means
_FACTS = ("name", "alias", "sample_len")  # what lm_eval has beside the metrics of a task
Parts = Mapping[str, Any]  # the tasks of a benchmark, under names of their own
# What lm_eval's tasks raise for items that they do not expect; the faults of the machine are none of these.
_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, TemplateError)


@dataclass(frozen=True)
class Part:
    """lm_eval's results of one task: means and standard errors by name, over `size` examples, which are `samples`.

    unscorable: for each item that was left out, the tokens of an answer that the model cannot score.
    """

    metrics: dict[str, float | None]
    size: int
    version: Any
    samples: list[dict[str, Any]]
    unscorable: tuple[int, ...] = ()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences lm_eval's bars and notes, and what tasks print on standard error."""
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


def score_all(
    model: HarnessModel, parts: Mapping[str, Parts], limit: int | None, chat: bool, missing: dict[str, str]
) -> dict[str, Part]:
    """The results of the tasks of all benchmarks. A benchmark whose task fails in lm_eval's code goes into `missing`
    alone.
    """
    try:
        return _run(model, parts, limit, chat)
    except _FAULTS:
        found: dict[str, Part] = {}
        for name, of_one in parts.items():
            try:
                found |= _run(model, {name: of_one}, limit, chat)  # what was answered before the fault is kept
            except _FAULTS as fault:
                missing[name] = f"lm_eval cannot score it ({type(fault).__name__}: {str(fault).partition(chr(10))[0]})"
        return found


def _run(model: HarnessModel, parts: Mapping[str, Parts], limit: int | None, chat: bool) -> dict[str, Part]:
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
                _score(model, {key: tasks[key]}, {key: rest}, chat)[key] if rest else Part({}, 0, part.version, [])
            )
            found[key] = replace(without, unscorable=left_out)
    return found


def _score(
    model: HarnessModel, tasks: Mapping[str, Any], samples: dict[str, list[int]] | None, chat: bool
) -> dict[str, Part]:
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
        key: Part(
            metrics=_metrics(results["results"][key]),
            size=results["n-samples"][key]["effective"],
            version=results["versions"][key],
            samples=results["samples"][key],
        )
        for key in tasks
    }


def _counts(tasks: Mapping[str, Any], limit: int) -> dict[str, int]:
    """How many examples of each task make up `limit`: equally many of each, or all that a smaller task has."""
    sizes = {key: len(task.eval_docs) for key, task in tasks.items()}
    counts = dict.fromkeys(sizes, 0)
    for _ in range(min(limit, sum(sizes.values()))):
        counts[min((key for key in sizes if counts[key] < sizes[key]), key=counts.__getitem__)] += 1
    return counts


def _metrics(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Means and standard errors by name: "acc" for lm_eval's "acc,none", else with the filter: "f1,first-line"."""
    metrics: dict[str, float | None] = {}
    for key, value in scores.items():
        if key not in _FACTS:
            metric, _, filter_name = key.partition(",")
            is_error = metric.endswith("_stderr")
            name = metric.removesuffix("_stderr") + ("" if filter_name == "none" else f",{filter_name}")
            known = value != "N/A" and not (is_error and math.isnan(value))
            metrics[f"{name}_stderr" if is_error else name] = float(value) if known else None
    return metrics
