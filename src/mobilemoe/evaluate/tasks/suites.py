"""The benchmarks: for each the pinned task of lm-evaluation-harness, the number of shots and the main metric.

Tasks, prompts, filters and versions are those of lm_eval 0.4.13. The paper publishes shots for its seven 0-shot rows
alone (spec section 6: `published`); all other shots are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mobilemoe.errors import UsageError
from mobilemoe.evaluate.tasks import local

Kind = Literal["loglikelihood", "generation", "code"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One row of a results table.

    task: its name in lm_eval, of the `version` it has there, found in `folder` of lm_eval's tasks; None if it has none.
    metric: the main one, followed by a comma and the filter if the task has several. published: whether the paper gives
    these shots. chat: whether it asks for an instruct model, by its chat template. limit: at most so many examples.
    note: what a reader of the score must know.
    """

    name: str
    task: str | None
    folder: str
    version: float
    shots: int
    metric: str
    published: bool = False
    kind: Kind = "loglikelihood"
    chat: bool = False
    limit: int | None = None
    note: str = ""


def _choice(name: str, folder: str, version: float, shots: int, metric: str, **more: Any) -> Benchmark:
    task = more.pop("task", name)
    return Benchmark(name=name, task=task, folder=folder, version=version, shots=shots, metric=metric, **more)


def _text(name: str, folder: str, version: float, shots: int, metric: str, **more: Any) -> Benchmark:
    return _choice(name, folder, version, shots, metric, kind="generation", **more)


def _code(name: str, version: float, shots: int) -> Benchmark:
    return _choice(name, name, version, shots, "pass_at_1", kind="code", note="run in our sandbox, not by lm_eval")


_FOUNDATION = (
    _choice("hellaswag", "hellaswag", 1.0, 0, "acc_norm", published=True),
    _choice("piqa", "piqa", 1.0, 0, "acc_norm", published=True),
    _choice("siqa", "siqa", 0.0, 0, "acc", published=True, task="social_iqa"),
    _choice("winogrande", "winogrande", 1.0, 0, "acc", published=True),
    _choice("mmlu", "mmlu/default", 1.0, 5, "acc"),
    _text("nq_open", "nq_open", 4.0, 5, "exact_match"),
    _text("triviaqa", "triviaqa", 3.0, 5, "exact_match"),
    _choice("arc_easy", "arc", 1.0, 0, "acc_norm", published=True),
    _choice("arc_challenge", "arc", 1.0, 0, "acc_norm"),
    _choice("openbookqa", "openbookqa", 1.0, 0, "acc_norm", published=True),
    _choice("boolq", "super_glue/boolq", 2.0, 0, "acc", published=True),
    _text("drop", "drop", 3.0, 3, "f1"),
    _text("bbh", "bbh/cot_fewshot", 4.0, 3, "exact_match", task="bbh_cot_fewshot"),
    _text("gsm8k", "gsm8k", 3.0, 5, "exact_match,strict-match"),
)
_ADVANCED = (
    _text("math500", "minerva_math", 3.1, 0, "math_verify", chat=True, task="minerva_math500"),
    _code("humaneval", 1.0, 0),
    _code("mbpp", 1.0, 3),
    _text("ifeval", "ifeval", 4.0, 0, "prompt_level_strict_acc", chat=True),
    _text("ifbench", "", 0.0, 0, "prompt_level_strict_acc", chat=True, task=None),
    _text("mmlu_pro", "mmlu_pro", 3.1, 5, "exact_match", chat=True),
    _choice("gpqa", "gpqa/zeroshot", 2.2, 0, "acc_norm", task="gpqa_main_zeroshot"),
)
# In no suite; it is added next to MMLU where a folder has only that part of MMLU.
MMLU_STEM = _choice("mmlu_stem", "mmlu/default", 1.0, 5, "acc", note="18 of MMLU's 57 subjects: not MMLU's number")
_OTHERS = (MMLU_STEM, _choice("commonsense_qa", "commonsense_qa", 0.0, 0, "acc"))
BENCHMARKS = {benchmark.name: benchmark for benchmark in (*_FOUNDATION, *_ADVANCED, *_OTHERS)}

_QUICK = {
    "hellaswag": 1000,
    "piqa": 1000,
    "siqa": 500,
    "winogrande": 1267,
    "arc_easy": 1000,
    "arc_challenge": 500,
    "openbookqa": 500,
    "boolq": 500,
    "nq_open": 100,
}
SUITES: dict[str, tuple[Benchmark, ...]] = {
    "foundation": _FOUNDATION,
    "advanced": _ADVANCED,
    "quick": tuple(replace(BENCHMARKS[name], limit=limit) for name, limit in _QUICK.items()),
}


def find_benchmarks(text: str, data_dir: Path | None = None) -> tuple[Benchmark, ...]:
    """The benchmarks of a suite, or of a comma-separated list of names; with the notes on the data of `data_dir`.

    MMLU of a folder that has its STEM part alone is followed by "mmlu_stem". UsageError for a name that is neither.
    """
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in BENCHMARKS]
    if text in SUITES:
        found = SUITES[text]
    elif not unknown:
        found = tuple(BENCHMARKS[name] for name in dict.fromkeys(names))
    else:
        raise UsageError(
            f"there is no suite or benchmark {unknown[0]!r}: give one suite of {', '.join(SUITES)}, "
            f"or some of {', '.join(BENCHMARKS)}"
        )
    if data_dir is None:
        return found
    if BENCHMARKS["mmlu"] in found and MMLU_STEM not in found and local.has_stem_alone(data_dir):
        place = found.index(BENCHMARKS["mmlu"]) + 1
        found = (*found[:place], MMLU_STEM, *found[place:])
    return tuple(replace(each, note=local.NOTES.get(each.name, each.note)) for each in found)
