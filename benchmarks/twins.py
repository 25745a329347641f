"""Trains twins of nano, which differ in one respect and read equally many tokens in several orders, and compares them.

python benchmarks/twins.py OUT [--data DIR] [--text FILE] [--seeds 3] [--processes 6] [--steps 1200] [--report]
                           [--set ENTRY=VALUE ...]

It answers two questions. Which shape is best: nano's, dense of equal active size, dense of equal bytes, coarser
experts, or a shared expert? All start from new weights and are scored in BF16. What does rounding cost? nano's runs are
trained for a quarter more steps: in BF16, with quantisation-aware training (QAT), with learnt scales (LSQ), and half
distilled from the run that they start from. The BF16 runs are also rounded (PTQ). All but BF16 are scored in INT4, with
exact activations.

The work is done by the verbs of mobilemoe, several at a time, on the GPU that CUDA_VISIBLE_DEVICES names. The same
command resumes: OUT/twins.csv holds a row for each finished run. --report only reads that table. --set applies to every
run, after this file's own settings.

The last line is one JSON object: for each question and arm the mean difference to the first arm in bits per byte, also
by source, with half the width of its 95% interval. All arms share the seeds, so the interval comes from the residuals
after subtracting the means of arm and seed, pooled over the arms of a question.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from mobilemoe import accounting
from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.config import ModelConfig

RECIPE = Path("recipes/nano-pretrain.toml")
WINDOW = 512
SOURCES = ("all", "books", "textbooks", "code", "specs", "docs", "chat")
TABLE = "twins.csv"
COLUMNS = ("run", "question", "arm", "seed", "tokens", "active", "int4_bytes", "seconds", *SOURCES)
SETTINGS = {
    "batch_size": 64,
    "sequence_length": 512,
    "learning_rate": 5e-3,
    "final_learning_rate": 0.0,
    "warmup_steps": 100,
    "schedule": '"linear"',
    "weight_decay": 0.1,  # so that little text is read twice
    "checkpoint_every": 400,
    "keep_checkpoints": 1,
}
DENSE = {"ffn_type": '"dense"', "num_local_experts": 0, "num_experts_per_tok": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "nano": {},
    "dense, equal active size": DENSE | {"intermediate_size": 1024},
    "dense, equal bytes": DENSE | {"intermediate_size": 4608},
    "coarser": {"intermediate_size": 512, "num_local_experts": 9, "num_experts_per_tok": 2},
    "shared expert": {"intermediate_size_mlp": 512, "num_local_experts": 16, "num_experts_per_tok": 2},
}
AGAIN = {"learning_rate": 1e-3, "warmup_steps": 10}  # of the runs that go on from nano's, for a quarter of its steps
ROUNDINGS: dict[str, dict[str, Any]] = {
    "BF16": {},
    "QAT": {"group_axis": '"in"'},
    "LSQ": {"group_axis": '"in"', "learn_scales": "true"},
    "QAT, half distilled": {"group_axis": '"in"', "distill_weight": 0.5},  # from its own parent, see `jobs`
}


@dataclass(frozen=True)
class Job:
    """A run, its settings, the run that it starts from, and the arms that it gives rows for, each rounded or not."""

    name: str
    question: str
    seed: int
    settings: tuple[str, ...]
    arms: dict[str, bool]
    parent: str | None = None


def jobs(out: Path, data: str | None, seeds: int, steps: int, own: Sequence[str]) -> Iterator[Job]:
    """All runs, seed by seed, so that complete sets of twins finish first."""
    for seed in range(1, seeds + 1):
        common = [*_entries("train", SETTINGS), f"train.seed={seed}", f"data.seed={seed}"]
        common += [f"data.path={data}"] if data else []
        for arm, changes in SHAPES.items():
            settings = [*common, f"train.steps={steps}", *_entries("model.changes", changes), *own]
            yield Job(f"{_name(arm)}-{seed}", "shape", seed, tuple(settings), {arm: False})
        parent = out / "runs" / f"nano-{seed}"
        for arm, table in ROUNDINGS.items():
            start = [f'model={{ init = "{parent}" }}', *_entries("train", AGAIN), f"train.steps={steps // 4}"]
            table = table | ({"distill_from": f'"{parent}"'} if "distill_weight" in table else {})
            settings = [*common, *start, f"data.seed={100 + seed}", *_entries("qat", table), *own]
            arms = {"BF16": False, "PTQ": True} if arm == "BF16" else {arm: True}
            yield Job(f"{_name(arm)}-{seed}", "rounding", seed, tuple(settings), arms, parent.name)


def _entries(table: str, values: dict[str, Any]) -> list[str]:
    return [f"{table}.{name}={value}" for name, value in values.items()]


def _name(arm: str) -> str:
    return arm.lower().replace(",", "").replace(" ", "-")


def work(job: Job, out: Path, text: Path) -> list[dict[str, Any]]:
    """Trains and scores a run, and returns the rows of its arms."""
    run = out / "runs" / job.name
    began = time.monotonic()
    _mobilemoe(out, job.name, "train", str(RECIPE), "--out", str(run), *_sets(f"name={job.name}", *job.settings))
    seconds = time.monotonic() - began
    recipe = json.loads((run / "recipe.json").read_text())["train"]
    config = ModelConfig.load(newest_model(run))
    rows = []
    for arm, rounded in job.arms.items():
        scored = out / "int4" / job.name if rounded else run
        if rounded and not scored.exists():
            _mobilemoe(out, job.name, "quantize", str(run), str(scored))
        asked = ("--text", str(text), "--window", str(WINDOW), "--backend", "torch", "--json")
        found = json.loads(_mobilemoe(out, job.name, "eval", str(scored), *asked))
        rows.append(
            {"run": job.name, "question": job.question, "arm": arm, "seed": job.seed}
            | {"tokens": recipe["steps"] * recipe["batch_size"] * recipe["sequence_length"]}
            | {"active": accounting.active_parameters(config), "int4_bytes": accounting.int4_file_bytes(config)}
            | {"seconds": round(seconds), "all": round(found["bits_per_byte"], 5)}
            | {name: round(found["by_source"][name], 5) for name in SOURCES[1:]}
        )
    return rows


def _sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def _mobilemoe(out: Path, name: str, *arguments: str) -> str:
    """The standard output of a verb; its standard error goes into the run's log."""
    with (out / "logs" / f"{name}.log").open("a") as log:
        command = [sys.executable, "-m", "mobilemoe", *arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=True).stdout


def train_all(chosen: list[Job], out: Path, text: Path, processes: int) -> None:
    """Runs the jobs in their order, each after its parent, and writes rows as they are finished."""
    path = out / TABLE
    (out / "logs").mkdir(parents=True, exist_ok=True)
    done = {row["run"] for row in read_table(path)}
    left = [job for job in chosen if job.name not in done]
    running: dict[Future[list[dict[str, Any]]], Job] = {}
    with ThreadPoolExecutor(processes) as pool:
        while left or running:
            for job in [job for job in left if job.parent is None or job.parent in done][: processes - len(running)]:
                left.remove(job)
                running[pool.submit(work, job, out, text)] = job
            if not running:
                break  # the remaining jobs wait for a run that failed
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                job = running.pop(future)
                try:
                    rows = future.result()
                except subprocess.CalledProcessError as fault:
                    print(f"{job.name} failed ({fault}): see {out / 'logs'}", flush=True)
                    continue
                _append(path, rows)
                done.add(job.name)
                print(f"{job.name}: {rows[-1]['all']:.4f} bits per byte, {rows[-1]['seconds']} s", flush=True)


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def differences(rows: list[dict[str, str]]) -> dict[str, Any]:
    """For each question the arms' mean bits per byte, and their differences to the first arm with half the interval.

    Only seeds that every arm has are used. The interval is Student's, from the residuals of arm and seed over all arms.
    """
    found: dict[str, Any] = {}
    for question in dict.fromkeys(row["question"] for row in rows):
        arms: dict[str, dict[str, dict[str, str]]] = {}
        for row in rows:
            if row["question"] == question:
                arms.setdefault(row["arm"], {})[row["seed"]] = row
        first = "nano" if question == "shape" else "BF16"
        arms = {arm: arms[arm] for arm in sorted(arms, key=lambda arm: (arm != first, arm))}
        seeds = sorted(set.intersection(*(set(of) for of in arms.values())))
        freedom = (len(arms) - 1) * (len(seeds) - 1)
        scores: dict[str, Any] = {arm: {} for arm in arms}
        halves: dict[str, float | None] = {}
        for source in SOURCES if seeds else ():
            bits_AS = np.array([[float(arms[arm][seed][source]) for seed in seeds] for arm in arms])
            left_AS = bits_AS - bits_AS.mean(axis=1, keepdims=True) - bits_AS.mean(axis=0) + bits_AS.mean()
            for arm, bits_S in zip(arms, bits_AS, strict=True):
                mean, difference = float(bits_S.mean()), float((bits_S - bits_AS[0]).mean())
                scores[arm][source] = {"mean": round(mean, 4), "difference": round(difference, 4)}
            halves[source] = None
            if freedom:
                error = math.sqrt(2 / len(seeds) * float((left_AS**2).sum()) / freedom)
                halves[source] = round(float(t.ppf(0.975, freedom)) * error, 4)
        found[question] = {"seeds": len(seeds), "half_interval": halves, "arms": scores}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", help="in place of the recipe's data.path")
    parser.add_argument("--text", type=Path, default=Path("tests/data/heldout.jsonl"), help="to score on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=6, help="runs at a time")
    parser.add_argument("--steps", type=int, default=1200, help="of a shape's run; a quarter of it after that")
    parser.add_argument("--set", action="append", default=[], metavar="ENTRY=VALUE")
    parser.add_argument("--report", action="store_true", help="only read the table")
    asked = parser.parse_args()
    if not asked.report:
        chosen = list(jobs(asked.out, asked.data, asked.seeds, asked.steps, asked.set))
        train_all(chosen, asked.out, asked.text, asked.processes)
    found = differences(read_table(asked.out / TABLE))
    for question, answer in found.items():
        half = answer["half_interval"].get("all")
        print(f"{question}, {answer['seeds']} seeds, differences +- {half} bits per byte over all sources:")
        for arm, scores in answer["arms"].items():
            if scores:
                print(f"  {arm:26} {scores['all']['mean']:.4f} {scores['all']['difference']:+.4f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
