"""How much of its decoding speed an engine keeps beside busy processes on the same cores.

    python benchmarks/loaded.py nano [--busy 4] [--threads 1,2] [--rounds 5] [--seconds 1] [--peer nano.gguf]

Decodes greedily for some seconds alone and beside `--busy` processes that do nothing but use a core, in turn: these are
stopped and continued. With --peer, llama-cpp-python decodes the same model in the same rounds (the file is one of
`mobilemoe export MODEL --to gguf`). `kept` is the loaded speed divided by that alone, of each round: the median and its
quartiles. `fair` is what the threads' share of the cores would be. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quartiles import quartiles

import mobilemoe
from mobilemoe.cores import allowed_cores, default_threads

_CONTEXT = 512  # tokens, after which a text begins anew


def decoder(model: str, threads: int) -> Callable[[], None]:
    """A function that decodes one token with our engine."""
    session = mobilemoe.load(model, threads=threads).engine.session()
    ids = [5]

    def step() -> None:
        if len(session) >= _CONTEXT:
            session.truncate(0)
        ids[0] = int(session.append(ids).argmax())

    return step


def peer_decoder(path: Path, threads: int) -> Callable[[], None]:
    """The same with llama.cpp."""
    import llama_cpp

    llama = llama_cpp.Llama(str(path), n_ctx=_CONTEXT, n_threads=threads, verbose=False, logits_all=False)
    ids = [5]

    def step() -> None:
        if llama.n_tokens >= _CONTEXT - 1:
            llama.reset()
        llama.eval(ids)
        ids[0] = int(llama.sample(temp=0.0))

    return step


def tokens_per_second(step: Callable[[], None], seconds: float) -> float:
    """Runs `step` for at least `seconds`."""
    step()
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        step()
        count += 1
    return count / taken


class Busy:
    """Processes that compute all the time, but are stopped at first."""

    def __init__(self, count: int) -> None:
        self._processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        self._send(signal.SIGSTOP)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._send(signal.SIGCONT)
        try:
            yield
        finally:
            self._send(signal.SIGSTOP)

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)


def measure(steps: dict[str, Callable[[], None]], busy: int, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """By name: the median tokens/s alone and loaded, and the quartiles of their ratio."""
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    load = Busy(busy)
    try:
        for _ in range(rounds):
            for name, step in steps.items():
                alone = tokens_per_second(step, seconds)
                with load.running():
                    speeds[name].append((alone, tokens_per_second(step, seconds)))
    finally:
        load.end()
    results = {}
    for name, pairs in speeds.items():
        kept = [loaded / alone for alone, loaded in pairs]
        alone, loaded = (statistics.median(column) for column in zip(*pairs, strict=True))
        low, middle, high = quartiles(kept)
        results[name] = {"alone": alone, "loaded": loaded, "kept": middle, "quartiles": [low, high]}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--busy", type=int, default=2 * allowed_cores())
    parser.add_argument("--threads", default=str(default_threads()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--peer", type=Path, help="a GGUF file for llama-cpp-python")
    given = parser.parse_args()
    cores = allowed_cores()
    steps: dict[str, Callable[[], None]] = {}
    fair: dict[str, float] = {}
    for threads in map(int, given.threads.split(",")):
        names = {f"mobilemoe, {threads} threads": lambda threads=threads: decoder(given.model, threads)}
        if given.peer:
            names[f"llama.cpp, {threads} threads"] = lambda threads=threads: peer_decoder(given.peer, threads)
        for name, make in names.items():
            steps[name] = make()
            fair[name] = min(1.0, cores / (given.busy + min(threads, cores)))
    before = os.getloadavg()[0]
    results = measure(steps, given.busy, given.rounds, given.seconds)
    print(f"{given.busy} busy processes on {cores} cores, load before {before:.1f}; tokens/s")
    for name, found in results.items():
        low, high = found["quartiles"]
        print(
            f"{name:24} alone {found['alone']:8.1f}  loaded {found['loaded']:8.1f}  "
            f"kept {found['kept']:.2f} ({low:.2f} to {high:.2f}), fair {fair[name]:.2f}"
        )
        found["fair"] = fair[name]
    print(json.dumps({"busy": given.busy, "cores": cores, "load": before, "results": results}))


if __name__ == "__main__":
    main()
