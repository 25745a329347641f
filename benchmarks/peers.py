"""How fast our engine is beside llama.cpp and ik_llama.cpp, each measured by its own llama-bench on the same model.

    python benchmarks/peers.py MODEL GGUF [--llama LLAMA_BENCH] [--ik LLAMA_BENCH] [--ik-gguf FILE]
                               [--prefill 512] [--depths 0,1024] [--rounds 5] [--threads N] [--idle 0.1] [--wait 600]
                               [--cpu]

MODEL is nano, a folder, or the name of a preset, whose shape then gets random weights in a folder that is told. GGUF is
the same model, of `mobilemoe export MODEL --to gguf`; --ik-gguf is what benchmarks/gguf_for_ik.py makes of GGUF.
llama.cpp runs without and with flash attention, and the faster counts; ik_llama.cpp runs with flash attention, run-time
repacking and fused experts. Keys and values are kept as each keeps them by default: here in 8 bits, by peers in 16.
MOBILEMOE_ISA=avx2 holds our engine to these instructions, but peers use what they were built for.

All take turns in every round, each as soon as the machine is idle: other programs use at most the share --idle of the
cores, which is waited for up to --wait seconds. A speed is the median of three, in a row. A ratio is our tokens/s by a
peer's of the same round: its median and quartiles. The last line is JSON, where `busy` is the largest share of the
cores that other programs used while one of the engines ran.

--cpu is for a machine that does not get idle: one thread, and the processor's seconds in place of the clock's. Those in
which a peer starts are left out, by the difference between many tokens and few.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from quartiles import quartiles

import mobilemoe
from mobilemoe.cores import default_threads
from mobilemoe.errors import MobileMoEError, UsageError
from mobilemoe.presets import PRESETS
from mobilemoe.profile.random_model import random_model
from mobilemoe.profile.speed import DECODED, Subject, measure
from mobilemoe.profile.tokens import tokens_for

REPEATS = 3  # of a point, in a row
MANY = 8 * DECODED  # tokens written behind the first, from which the processor's seconds are told
Speeds = dict[str, float]  # tokens/s by "prefill LENGTH" or "decode DEPTH"


@dataclass(frozen=True)
class Peer:
    """A llama-bench, its model, and how it is asked for speed and for tokens behind a context."""

    name: str
    binary: Path
    gguf: Path
    ways: tuple[tuple[str, ...], ...]  # flags of each way to run it; the fastest counts
    has_depths: bool  # llama.cpp's -d; ik_llama.cpp generates behind a prompt with -gp

    def speeds(self, lengths: list[int], depths: list[int], threads: int, cpu: bool) -> Speeds:
        """One measurement of every point. SystemExit with what it said if it fails."""
        once, several, more = (("-r", str(repeats)) for repeats in (1, REPEATS, 1 + REPEATS))
        found = {}
        for n in lengths:
            prefill = ("-p", str(n), "-n", "0")
            if cpu:
                found[f"prefill {n}"] = self._cpu_speed((*prefill, *once), (*prefill, *more), REPEATS * n)
            else:
                found[f"prefill {n}"] = self._speed(threads, *prefill, *several)
        for depth in depths:
            few, many = (self._decode(depth, tokens) for tokens in (DECODED, DECODED + MANY))
            if cpu:
                found[f"decode {depth}"] = self._cpu_speed((*few, *once), (*many, *once), MANY)
            else:
                found[f"decode {depth}"] = self._speed(threads, *few, *several)
        return found

    def _decode(self, depth: int, tokens: int) -> tuple[str, ...]:
        if depth and not self.has_depths:
            return "-p", "0", "-n", "0", "-gp", f"{depth},{tokens}"
        return "-p", "0", "-n", str(tokens), *(("-d", str(depth)) if depth else ())

    def _speed(self, threads: int, *point: str) -> float:
        """Tokens/s by the clock, as the peer tells them."""
        return max(self._run(threads, *way, *point) for way in self.ways)

    def _cpu_speed(self, few: tuple[str, ...], many: tuple[str, ...], tokens: int) -> float:
        """Tokens per second of the processor: `many` computes so many `tokens` more than `few`."""
        found = []
        for way in self.ways:
            began = child_seconds()
            self._run(1, *way, *few)
            between = child_seconds()
            self._run(1, *way, *many)
            seconds = child_seconds() - between - (between - began)
            if seconds <= 0:
                sys.exit(f"{self.name} computes {tokens} tokens too fast for its seconds to be told apart")
            found.append(tokens / seconds)
        return max(found)

    def _run(self, threads: int, *flags: str) -> float:
        """The median of its tokens/s. SystemExit with what it said if it tells none."""
        command = [str(self.binary), "-m", str(self.gguf), "-t", str(threads), "-o", "json", *flags]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        except OSError as fault:
            sys.exit(f"{self.name} does not start: {fault}")
        try:
            (test,) = json.loads(ended.stdout)
            return statistics.median(test["samples_ts"])
        except (ValueError, KeyError, TypeError):  # there is no JSON, or no test in it
            said = " / ".join((ended.stderr or ended.stdout).strip().splitlines()[-3:])
            sys.exit(f"{self.name} measured nothing with {' '.join(flags)} (exit {ended.returncode}): {said}")


def child_seconds() -> float:
    """Processor time of the processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


class Ours:
    """Our engine with real text, or pseudo-random tokens if the model has no tokenizer."""

    name = "mobilemoe"

    def __init__(self, model: str, longest: int, threads: int) -> None:
        """MobileMoEError if the model cannot be loaded, or its context is shorter than `longest`."""
        loaded = mobilemoe.load(model, threads=threads, speculate="off")
        assert loaded.engine
        if longest > loaded.engine.context:
            raise UsageError(f"{longest} tokens are more than the {loaded.engine.context} of the model's context")
        self.engine, self._ids = loaded.engine, tokens_for(loaded, longest, dummy=False).ids

    def speeds(self, lengths: list[int], depths: list[int], threads: int, cpu: bool) -> Speeds:
        """One measurement of every point."""
        if cpu:
            return self._cpu_speeds(lengths, depths)
        subject = Subject(self.name, self.engine, self._ids)
        measure([subject], lengths, depths, repeats=REPEATS)
        found = {f"prefill {n}": subject.prefill_speed(n) for n in lengths}
        return found | {f"decode {n}": subject.decode_speed(n) for n in depths}

    def _cpu_speeds(self, lengths: list[int], depths: list[int]) -> Speeds:
        """Tokens per second of the processor, of the same positions as a peer's."""
        found = {}
        for n in lengths:
            self.engine.session(n).append(self._ids[:n])  # warms up
            began = time.process_time()
            for _ in range(REPEATS):
                self.engine.session(n).append(self._ids[:n])
            found[f"prefill {n}"] = REPEATS * n / (time.process_time() - began)
        for depth in depths:
            start = depth + DECODED
            session = self.engine.session(start + MANY)
            session.append(self._ids[:start])
            began = time.process_time()
            for token in self._ids[start : start + MANY]:
                session.append([token])
            found[f"decode {depth}"] = MANY / (time.process_time() - began)
        return found


def wait_until_idle(share: float, seconds: float) -> None:
    """Waits until others use at most `share` of the cores, or the time is over."""
    until = time.monotonic() + seconds
    while (busy := psutil.cpu_percent(interval=1) / 100) > share and time.monotonic() < until:
        print(f"waiting: the cores are busy by {busy:.0%}", file=sys.stderr)


def measured(each: Ours | Peer, given: argparse.Namespace) -> tuple[Speeds, float]:
    """The speeds, and the share of the cores that others used meanwhile."""
    began, own = time.monotonic(), sum(os.times()[:4])  # with the processes that have ended
    psutil.cpu_percent()
    speeds = each.speeds(given.prefill, given.depths, given.threads, given.cpu)
    seconds = (time.monotonic() - began) * (psutil.cpu_count() or 1)
    return speeds, max(0.0, psutil.cpu_percent() / 100 - (sum(os.times()[:4]) - own) / seconds)


def spread(ratios: list[float]) -> dict[str, Any]:
    """Median, quartiles and number of ratios."""
    low, middle, high = quartiles(ratios)
    return {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)], "rounds": len(ratios)}


def integers(text: str) -> list[int]:
    """What "0,1024" says; ValueError for what is no number, or less than 0."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 0:
        raise ValueError
    return numbers


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--llama", type=Path, help="llama-bench of llama.cpp")
    parser.add_argument("--ik", type=Path, help="llama-bench of ik_llama.cpp")
    parser.add_argument("--ik-gguf", type=Path, help="the model for ik_llama.cpp, if not GGUF")
    parser.add_argument("--prefill", type=integers, default="512")
    parser.add_argument("--depths", type=integers, default="0,1024")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--idle", type=float, default=0.1)
    parser.add_argument("--wait", type=float, default=600)
    parser.add_argument("--cpu", action="store_true", help="count seconds of the processor, with one thread")
    given = parser.parse_args()
    if given.cpu and given.threads not in (None, 1):
        parser.error("--cpu measures with one thread: leave --threads out")
    given.threads = given.threads or (1 if given.cpu else default_threads())
    peers = []
    if given.llama:
        peers.append(Peer("llama.cpp", given.llama, given.gguf, (("-fa", "0"), ("-fa", "1")), has_depths=True))
    if given.ik:
        flags = ("-fa", "1", "-rtr", "1", "-fmoe", "1")
        peers.append(Peer("ik_llama.cpp", given.ik, given.ik_gguf or given.gguf, (flags,), has_depths=False))
    for path in {path for peer in peers for path in (peer.binary, peer.gguf)}:
        if not path.is_file():
            parser.error(f"{path} is not a file")
    if not peers:
        parser.error("no peer is given: --llama or --ik, or both")
    written = DECODED + MANY if given.cpu else DECODED
    longest = max(*given.prefill, *(max(depth, 1) + written for depth in given.depths))
    try:
        name = given.model
        if name in PRESETS and name != "nano":
            name = str(random_model(name, "in", print))  # grouped as Q4_0 is, which then holds the same weights
            print(f"the random weights are in {name}", file=sys.stderr)
        ours = Ours(name, longest, given.threads)
    except MobileMoEError as fault:
        sys.exit(str(fault))
    rounds: list[dict[str, Speeds]] = []
    busy = []
    for _ in range(given.rounds):
        rounds.append({})
        for each in (ours, *peers):
            if not given.cpu:
                wait_until_idle(given.idle, given.wait)
            rounds[-1][each.name], others = measured(each, given)
            busy.append(others)
    found: dict[str, Any] = {"model": given.model, "threads": given.threads, "isa": ours.engine.isa, "cpu": given.cpu}
    found["busy"] = round(max(busy), 2)
    for point in rounds[0][ours.name]:
        found[point] = {ours.name: round(statistics.median(each[ours.name][point] for each in rounds), 1)}
        line = f"{point:<14} {found[point][ours.name]:9,.1f} tokens/s"
        for peer in peers:
            ratio = spread([each[ours.name][point] / each[peer.name][point] for each in rounds])
            speed = statistics.median(each[peer.name][point] for each in rounds)
            found[point][peer.name] = {"tok_s": round(speed, 1), "ratio": ratio}
            low, high = ratio["quartiles"]
            line += f", {ratio['median']:.2f} times {peer.name}'s {speed:,.1f} ({low:.2f} to {high:.2f})"
        print(line)
    if max(busy) > given.idle and not given.cpu:
        print(f"the machine was not idle: others used up to {max(busy):.0%} of the cores")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
