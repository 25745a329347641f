"""Made-up results of evaluations, as `mobilemoe eval` writes them."""

import random

from mobilemoe.evaluate.results.results import Results
from mobilemoe.evaluate.tasks.suites import SUITES

FOURTEEN = [benchmark.name for benchmark in SUITES["foundation"]]
ZERO_SHOT = ("hellaswag", "piqa", "siqa", "winogrande", "arc_easy", "openbookqa", "boolq")
METRICS = {"nq_open": "exact_match", "triviaqa": "exact_match", "bbh": "exact_match", "gsm8k": "exact_match"}
METRICS |= {"drop": "f1", "hellaswag": "acc_norm", "piqa": "acc_norm", "arc_challenge": "acc_norm"}


def results(
    name: str = "nano", *, score: float = 0.4, flops=2e7, size=19e6, ms=1.5, without=(), limit=None, suite="foundation"
) -> Results:
    """Results on the 14 benchmarks except `without`, with scores near `score`."""
    draw, rows = random.Random(name), {}
    for benchmark in FOURTEEN:
        if benchmark not in without:
            metric, value, n = METRICS.get(benchmark, "acc"), score + draw.uniform(-0.1, 0.1), limit or 2000
            row = {"main_metric": metric, metric: value, f"{metric}_stderr": (value * (1 - value) / n) ** 0.5, "n": n}
            row |= {"shots": 0 if benchmark in ZERO_SHOT else 5, "version": 1, "published": benchmark in ZERO_SHOT}
            rows[benchmark] = row | ({"acc": value / 2, "acc_stderr": 0.01} if metric == "acc_norm" else {})
    return Results(
        model={
            "name": name,
            "hash": f"hash of {name}",
            "parameters": 29_000_000,
            "active_parameters": 9_876_543,
            "int4_bytes": size,
            "flops_per_token": flops,
            "quantization": "mobilemoe-int4-g32",
            "context": 2048,
        },
        engine={"backend": "native", "activations": "int8", "threads": 2, "version": "mobilemoe 0.1.0"},
        suite=suite,
        limit=limit,
        results=rows,
        missing={benchmark: f"there is no {benchmark}.jsonl" for benchmark in without},
        counts={"left_truncations": 1234, "token_cap_hits": 56},
        speed={"ms_per_token": ms},
        examples="examples.jsonl",
        seconds=120.0,
    )
