"""How fast a model is under a limit of memory, which the system enforces.

    python benchmarks/small_memory.py MODEL --limits 800MB,1GB,2GB,none [--gguf FILE.gguf] [--rounds 3] [--csv OUT.csv]
    python benchmarks/small_memory.py --draw IN.csv OUT.png

MODEL is nano, a folder, or the name of a preset, whose shape then gets random weights. Each measurement is a process of
its own in a memory cgroup of that limit, which counts cached files too, and finds no page of the model's file cached;
they take turns. It decodes `--tokens` tokens right after it has opened the model ("cold"), reads a prompt of `--prompt`
and decodes as many behind it. The ids are those of a real text. "mapped" is the engine without a limit of its own, in
the same cgroup; `--gguf` adds llama.cpp (llama-cpp-python), with the file mapped, and its weights left as they are in
it: repacked copies would not fit. Needs root or a delegated cgroup. Nothing else may have the model open.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mobilemoe
from mobilemoe.cli.quantity import BYTES, quantity
from mobilemoe.drawing import figure_kind
from mobilemoe.engine import Engine, engine_files
from mobilemoe.engine.expert_use import hit_rate
from mobilemoe.presets import PRESETS
from mobilemoe.profile.random_model import random_model
from mobilemoe.profile.tokens import TEXT

CGROUPS = Path("/sys/fs/cgroup")
PROGRAMS = ("limited", "mapped", "llama.cpp")
COLUMNS = ["model", "program", "limit", "open_s", "cold_tok_s", "cold_hits", "cold_bytes", "prefill_tok_s"]
COLUMNS += ["decode_tok_s", "decode_hits", "decode_bytes", "places", "experts", "rss_bytes", "cgroup_bytes", "fault"]


@contextmanager
def cgroup(limit: int) -> Iterator[Path]:
    """A memory cgroup that this process may move children into; without a limit if that is 0."""
    second = (CGROUPS / "cgroup.controllers").exists()
    if second:
        parent = CGROUPS
    else:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        parent = CGROUPS / "memory" / next(line.split(":")[2] for line in lines if ":memory:" in line).lstrip("/")
    group = parent / f"small-memory-{os.getpid()}"
    group.mkdir()
    try:
        if limit:
            (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(limit))
        yield group
    finally:
        for _ in range(50):
            try:
                group.rmdir()
                break
            except OSError:  # pages of the process that has just ended are still being counted
                time.sleep(0.1)


def counted(group: Path) -> int:
    """The most bytes that the cgroup has had."""
    names = ("memory.peak", "memory.max_usage_in_bytes")
    return next(int((group / name).read_text()) for name in names if (group / name).exists())


def forget_pages(path: Path) -> None:
    """Takes the file out of the system's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak() -> int:
    """The most bytes that this process has had in memory, mapped files included."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Opens the model and measures it; `append` computes the ids of one pass."""
    began = time.perf_counter()
    use: Callable[[], dict[str, int]] = dict
    if job["program"] == "llama.cpp":
        append, restart = _llama(job)
    else:
        options = {"max_memory": job["limit"]} if job["program"] == "limited" else {}
        engine = Engine(job["path"], threads=job["threads"], speculate="off", **options)
        use = lambda: engine.native.expert_use  # noqa: E731
        session = engine.session(job["prompt"] + job["tokens"])
        append, restart = session.append, lambda: session.truncate(0)
    found: dict[str, Any] = {"open_s": time.perf_counter() - began}
    ids, tokens, prompt = job["ids"], job["tokens"], job["prompt"]

    def decode(kind: str, some: Sequence[int]) -> None:
        before, began = use(), time.perf_counter()
        for token in some:
            append([token])
        found[f"{kind}_tok_s"] = len(some) / (time.perf_counter() - began)
        made = {name: count - before[name] for name, count in use().items()}
        if made and (hits := hit_rate(made)) is not None:
            found[f"{kind}_hits"], found[f"{kind}_bytes"] = hits, made["bytes_read"] / len(some)

    decode("cold", ids[:tokens])
    restart()
    began = time.perf_counter()
    append(ids[:prompt])
    found["prefill_tok_s"] = prompt / (time.perf_counter() - began)
    decode("decode", ids[prompt : prompt + tokens])
    if places := use().get("places"):
        found |= {"places": places, "experts": use()["experts"]}
    return found | {"rss_bytes": peak()}


def _llama(job: dict[str, Any]) -> tuple[Callable[[Sequence[int]], Any], Callable[[], Any]]:
    import llama_cpp
    from llama_cpp import llama_cpp as functions

    defaults = functions.llama_model_default_params

    def without_copies() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    functions.llama_model_default_params = without_copies
    threads, rows = job["threads"], job["rows"]
    model = llama_cpp.Llama(
        job["gguf"],
        n_ctx=job["prompt"] + job["tokens"],
        n_batch=rows,
        n_ubatch=rows,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    return model.eval, model.reset


def measure(job: dict[str, Any], limit: int) -> dict[str, Any]:
    """One process in a cgroup of `limit` bytes."""
    for path in filter(None, (job["file"], job["gguf"])):
        forget_pages(Path(path))
    enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    with cgroup(limit) as group:
        called = [sys.executable, __file__, "--child", json.dumps(job | {"limit": limit})]
        command = ["sh", "-c", enter, str(group), *called]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=job["seconds"])
            if done.returncode == 0:
                found = json.loads(done.stdout.splitlines()[-1])
            else:  # the system ends a process that does not fit with signal 9
                found = {"fault": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
        except subprocess.TimeoutExpired:
            found = {"fault": f"not done in {job['seconds']} s"}
        return {"program": job["program"], "limit": limit, **found, "cgroup_bytes": counted(group)}


def draw(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Tokens per second over the limit, and the share of visited experts that were in memory over that of all."""
    figure = figure_kind("drawing", "train")(figsize=(11, 4.2), layout="constrained")
    speeds, hits = figure.subplots(1, 2)
    measured = [row for row in rows if row["decode_tok_s"] and row["limit"] != "0"]
    for number, shape in enumerate(dict.fromkeys(row["model"] for row in measured)):
        for program, mark in zip(PROGRAMS, ("o-", "s", "^"), strict=True):
            at: dict[float, list[dict[str, str]]] = {}
            for row in measured:
                if (row["model"], row["program"]) == (shape, program):
                    at.setdefault(int(row["limit"]) / 1e9, []).append(row)
            limits = sorted(at)
            name = shape if program == "limited" else f"{shape}, {program}"
            if limits and limits[-1] > 0.2:  # nano would be a point at the left edge
                speed = [
                    max(float(row["decode_tok_s"]) for row in at[limit]) for limit in limits
                ]  # others only slow it
                speeds.plot(limits, speed, mark, color=f"C{number}", label=name)
            if limits and program == "limited":
                held = [100 * _median(at[limit], "places") / _median(at[limit], "experts") for limit in limits]
                found = [100 * _median(at[limit], "decode_hits") for limit in limits]
                hits.plot(held, found, mark, color=f"C{number}", label=name)
    speeds.set_xlabel("limit, GB")
    speeds.set_ylabel("tokens per second, decoding (fastest round)")
    hits.set_xlabel("% of the experts that may be in memory")
    hits.set_ylabel("% of visited experts that were in memory")
    for axes in (speeds, hits):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _median(rows: Sequence[dict[str, str]], name: str) -> float:
    values = sorted(float(row[name]) for row in rows)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--limits", default="1GB", help="sizes, or none")
    parser.add_argument("--programs", default="limited,mapped", help=f"of {', '.join(PROGRAMS)}")
    parser.add_argument("--gguf", default="", help="the same model for llama.cpp")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=64, help="of a pass of llama.cpp")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=120, help="that a process may take")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--draw", nargs=2, type=Path, metavar=("IN.csv", "OUT.png"))
    parser.add_argument("--child", type=json.loads)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child)))
    elif given.draw:
        draw(list(csv.DictReader(given.draw[0].open())), given.draw[1])
    else:
        take_turns(given)


def take_turns(given: argparse.Namespace) -> None:
    """Measures every limit with every program, `rounds` times."""
    path = Path(given.model)
    if given.model in PRESETS and given.model != "nano":
        path = random_model(given.model, "in", print)
    model = mobilemoe.load(str(path) if path.is_dir() else given.model)
    path = model.folder
    ids = [token % model.config.vocab_size for token in mobilemoe.load("nano").encode(TEXT.read_text())]
    job = {name: getattr(given, name) for name in ("gguf", "prompt", "tokens", "rows", "threads", "seconds")}
    job |= {"path": str(path), "file": str(engine_files(path)[0]), "ids": ids[: given.prompt + given.tokens]}
    del model
    rows = []
    for _ in range(given.rounds):
        for text in given.limits.split(","):
            limit = 0 if text == "none" else int(quantity("--limits", text, BYTES, "1GB") or 0)
            for program in given.programs.split(","):
                if program == "limited" and not limit:
                    continue
                row = {"model": Path(given.model).name, **measure(job | {"program": program}, limit)}
                rows.append(row)
                print(json.dumps(row), flush=True)
    if given.csv:
        with given.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
