"""HumanEval and MBPP with lm_eval's prompts, but the programs run in a sandbox instead of in this process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mobilemoe.evaluate.tasks.sandbox.run import run_code

SECONDS = 10.0
MEMORY_BYTES = 2**30
_MBPP_SHOTS = (2, 3, 4)  # lm_eval's three


def humaneval_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the completion of the function passes its tests: 1 or 0."""
    return _passes(f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})\n")


def mbpp_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the program passes its three tests: 1 or 0."""
    return _passes("\n".join([results[0], doc["test_setup_code"], *doc["test_list"], ""]))


def _passes(program: str) -> dict[str, float]:
    return {"pass_at_1": float(run_code(program, seconds=SECONDS, memory_bytes=MEMORY_BYTES).passed)}


def _mbpp_shots(docs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**doc, "is_fewshot": True} for doc in docs if doc["task_id"] in _MBPP_SHOTS]


_METRICS = {"metric_list": [{"metric": "pass_at_1", "aggregation": "mean", "higher_is_better": True}]}
# What replaces every function that the configs of lm_eval name: those run the code without isolation.
CODE: dict[str, dict[str, Any]] = {
    "humaneval": {**_METRICS, "process_results": humaneval_results, "filter_list": None},
    "mbpp": {
        **_METRICS,
        "process_results": mbpp_results,
        "fewshot_split": "prompt",
        "fewshot_config": {"sampler": "first_n", "process_docs": _mbpp_shots},
    },
}
