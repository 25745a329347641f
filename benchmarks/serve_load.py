"""Puts load on a server with OpenAI's interface, ours or another, and measures it: one line of JSON at the end.

    mobilemoe serve nano --port 8080
    python benchmarks/serve_load.py --url http://127.0.0.1:8080/v1 --model nano --expect nano --pid PID
    python benchmarks/serve_load.py --url http://127.0.0.1:8081/v1 --model other --requests 64 --at-once 8 \\
        --cancelled 0 --bad 0 --whole 0 --chats 0

Requests are greedy and drawn from one list of prompts with a seed, so that servers can be compared. A share of the
clients goes away in the middle, and a share asks for what is to be refused. A 429 is asked again after `Retry-After`.
`lost` counts requests without a complete answer, `wrong` those with another text than `mobilemoe run` has for the model
of `--expect`. `rss` are the MiB of process `--pid`, with the slope of a line through all measurements but the first
fifth. Times of tokens are those of streams, as the client sees them. Exits with 1 where something is lost or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import psutil

PROMPTS = (
    *("Once upon a time", "The old man looked at the sea and", "An economy is", "def add(a, b):", "In the beginning"),
    *("A list of animals:", "My favourite colour is", "The capital of France is", "Water boils when", "Dear Sir,"),
    *("What is 58 minus 23?", "Who wrote Moby-Dick?", "Explain rain to a child.", "1, 2, 3,", "import numpy as np\n"),
    *("It was the best of times", "To be or not to be", "She opened the door and saw", "Grüße aus", "Q: Why? A:"),
)
LENGTHS = (8, 16, 32)  # tokens asked for
BAD: tuple[dict[str, Any] | bytes, ...] = (
    b"{",
    b"\xff",
    b"[" * 10_000,
    {"temperature": -1},
    {"max_tokens": "many"},
    {"no_such_field": 1},
    {"model": "no such model"},
    {"logit_bias": {"x": 1}},
)
TIMEOUT = 300  # seconds without a byte
ATTEMPTS = 300  # of one request, where the server is full


@dataclass
class Seen:
    """What the clients saw."""

    ended: Counter[str] = field(default_factory=Counter)  # how requests ended
    faults: Counter[str] = field(default_factory=Counter)  # of what was lost or wrong
    tokens: int = 0
    firsts: list[float] = field(default_factory=list)  # seconds
    gaps: list[float] = field(default_factory=list)
    rss: list[tuple[int, float]] = field(default_factory=list)  # (requests ended, MiB)


@dataclass(frozen=True)
class Asked:
    """One request: greedy, so that its text is known. `leaves`: the seconds after which its client goes away."""

    prompt: str
    tokens: int
    chat: bool
    stream: bool
    leaves: float | None
    bad: dict[str, Any] | bytes | None

    def body(self, model: str) -> bytes:
        if isinstance(self.bad, bytes):
            return self.bad
        given: dict[str, Any] = {"model": model, "max_tokens": self.tokens, "temperature": 0, "stream": self.stream}
        given |= {"messages": [{"role": "user", "content": self.prompt}]} if self.chat else {"prompt": self.prompt}
        return json.dumps(given | (self.bad or {})).encode()


def draw(options: argparse.Namespace) -> list[Asked]:
    rng = random.Random(options.seed)
    return [
        Asked(
            rng.choice(PROMPTS),
            rng.choice(LENGTHS),
            chat=rng.random() < options.chats,
            stream=rng.random() >= options.whole,
            leaves=rng.uniform(0, 0.5) if rng.random() < options.cancelled else None,
            bad=rng.choice(BAD) if rng.random() < options.bad else None,
        )
        for _ in range(options.requests)
    ]


class Load:
    def __init__(self, options: argparse.Namespace, expected: Callable[[Asked], str] | None) -> None:
        self.seen, self._options, self._expected = Seen(), options, expected
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {options.key}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.at_once, keepalive_expiry=4)
        self._client = httpx.AsyncClient(base_url=options.url, headers=headers, limits=limits, timeout=TIMEOUT)

    async def run(self, requests: list[Asked]) -> float:
        """The seconds that all of `requests` took."""
        waiting = iter(requests)
        watch = asyncio.create_task(self._watch())
        began = time.perf_counter()
        await asyncio.gather(*(self._client_of(waiting) for _ in range(self._options.at_once)))
        seconds = time.perf_counter() - began
        watch.cancel()
        await self._client.aclose()
        return seconds

    async def _client_of(self, waiting: Any) -> None:
        for asked in waiting:
            self.seen.ended[await self._one(asked)] += 1

    async def _one(self, asked: Asked) -> str:
        try:
            async with asyncio.timeout(asked.leaves):
                return await self._answered(asked)
        except TimeoutError:
            return "cancelled"
        except (httpx.HTTPError, ValueError, KeyError, IndexError) as fault:
            return self._fault("lost", f"{type(fault).__name__}: {fault}")

    async def _answered(self, asked: Asked) -> str:
        path, body = "chat/completions" if asked.chat else "completions", asked.body(self._options.model)
        for _ in range(ATTEMPTS):
            began = time.perf_counter()
            async with self._client.stream("POST", path, content=body) as response:
                if response.status_code == 429:
                    self.seen.ended["asked again after 429"] += 1
                    wait = float(response.headers.get("Retry-After", 1))
                elif response.status_code != 200:
                    await response.aread()
                    return self._refused(asked, response)
                else:
                    return self._judged(asked, await self._text(asked, response, began))
            await asyncio.sleep(wait)
        return self._fault("lost", f"{ATTEMPTS} times 429")

    def _refused(self, asked: Asked, response: httpx.Response) -> str:
        if asked.bad is not None and 400 <= response.status_code < 500 and response.json()["error"]["message"]:
            return "refused as it should be"
        return self._fault("lost", f"status {response.status_code}: {response.text[:80]}")

    async def _text(self, asked: Asked, response: httpx.Response, began: float) -> str:
        if not asked.stream:
            answer = json.loads(await response.aread())
            self.seen.tokens += answer["usage"]["completion_tokens"]
            choice = answer["choices"][0]
            return str(choice["message"]["content"] if asked.chat else choice["text"])
        pieces: list[str] = []
        times: list[float] = []
        ended = None
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                break
            if line.startswith("data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise ValueError(event["error"]["message"])
                for choice in event["choices"]:
                    ended = choice["finish_reason"] or ended
                    piece = choice["delta"].get("content") if asked.chat else choice["text"]
                    if piece:
                        pieces.append(piece)
                        times.append(time.perf_counter())
        if ended is None:
            raise ValueError("the stream was cut")
        self.seen.tokens += len(times)
        self.seen.firsts += [at - began for at in times[:1]]
        self.seen.gaps += [after - before for before, after in pairwise(times)]
        return "".join(pieces)

    def _judged(self, asked: Asked, text: str) -> str:
        if asked.bad is not None:
            return self._fault("wrong", f"{asked.bad!r:.60} was answered")
        if self._expected is not None and text != self._expected(asked):
            return self._fault("wrong", f"{asked.prompt!r} got {text!r:.80}")
        return "answered"

    def _fault(self, kind: str, what: str) -> str:
        self.seen.faults[f"{kind}: {what}"] += 1
        return kind

    async def _watch(self) -> None:
        """Notes the memory of the server every half second."""
        process = psutil.Process(self._options.pid) if self._options.pid else None
        while process is not None:
            self.seen.rss.append((self.seen.ended.total(), process.memory_info().rss / 2**20))
            await asyncio.sleep(0.5)


def expected_texts(model: str) -> Callable[[Asked], str]:
    import mobilemoe

    loaded, known = mobilemoe.load(model), dict[tuple[str, int, bool], str]()
    for prompt in PROMPTS:
        for tokens in LENGTHS:
            known[prompt, tokens, False] = loaded.generate(prompt, max_new_tokens=tokens)
            messages = [{"role": "user", "content": prompt}]
            known[prompt, tokens, True] = loaded.generate(messages=messages, max_new_tokens=tokens)
    return lambda asked: known[asked.prompt, asked.tokens, asked.chat]


def summary(seen: Seen, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    answered = seen.ended["answered"]
    found: dict[str, Any] = {
        "url": options.url,
        "model": options.model,
        "requests": options.requests,
        "at_once": options.at_once,
        "seconds": round(seconds, 2),
        "answered_per_s": round(answered / seconds, 2),
        "tokens_per_s": round(seen.tokens / seconds, 1),
        "first_token_ms": _milliseconds(seen.firsts, (50, 90, 99)),
        "next_token_ms": _milliseconds(seen.gaps, (50, 99)),
        "ended": dict(seen.ended),
        "faults": dict(seen.faults.most_common(10)),
    }
    late = seen.rss[len(seen.rss) // 5 :]
    if len(late) > 1:
        slope = np.polyfit(*np.transpose(late), 1)[0] * 1000
        found["rss"] = {
            "before": round(seen.rss[0][1], 1),
            "after": round(seen.rss[-1][1], 1),
            "most": round(max(mib for _, mib in seen.rss), 1),
            "slope_per_1000": round(float(slope), 2),
        }
    return found


def _milliseconds(times: list[float], percentiles: tuple[int, ...]) -> dict[str, float]:
    return {f"p{each}": round(1000 * float(np.percentile(times, each)), 1) for each in percentiles} if times else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--model", default="nano", help="the name that the server knows it by")
    parser.add_argument("--key", default="none")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--cancelled", type=float, default=0.2, help="the share of clients that go away")
    parser.add_argument("--bad", type=float, default=0.05, help="the share that is to be refused")
    parser.add_argument("--whole", type=float, default=0.5, help="the share that is no stream")
    parser.add_argument("--chats", type=float, default=0.3, help="the share of chats; the others continue a text")
    parser.add_argument("--expect", help="the model whose greedy texts are the right ones")
    parser.add_argument("--pid", type=int, help="the server's process, on this machine")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    load = Load(options, expected_texts(options.expect) if options.expect else None)
    seconds = asyncio.run(load.run(draw(options)))
    print(json.dumps(summary(load.seen, seconds, options), ensure_ascii=False))
    return int(bool(load.seen.ended["lost"] or load.seen.ended["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
