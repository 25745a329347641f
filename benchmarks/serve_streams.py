"""How fast a server writes eight streams beside one, and how soon it begins a conversation that it knows.

    python benchmarks/serve_streams.py MODEL [--rounds 7] [--tokens 200] [--isa avx512,avx2] [--conversation 2000]

MODEL is nano, a folder, or the name of a preset, whose shape then gets random weights and a vocabulary of made-up words
(kept beside `bench --random`'s). There is one server for each instruction set; they are asked in turn, so that a busy
machine slows all of them. The client reads bytes and counts events; it runs on the same cores. The last line is JSON:
the median of each figure with its quartiles, and the machine's load before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from quartiles import quartiles

import mobilemoe
from mobilemoe.checkpoint import write_random
from mobilemoe.hub import ASSETS
from mobilemoe.presets import PRESETS
from mobilemoe.user_cache import usable_cache

STREAMS = 8
TURN = 20  # tokens that a further turn adds to a conversation


def random_folder(name: str) -> Path:
    """A model of the preset's shape; its tokenizer is nano's with a word for each further id."""
    folder = usable_cache("random") / f"served-{name.lower()}"
    if not folder.exists():
        config = PRESETS[name]
        write_random(folder, config, seed=0, format="int4")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ASSETS / "nano" / file, folder)
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        words, added = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
        more = config.vocab_size - len(words) - len(added)  # the added tokens come last
        words |= {f"word{token}": token for token in range(len(words), len(words) + more)}
        for token in added:
            token["id"] += more
        for token in tokenizer["post_processor"]["special_tokens"].values():
            token["ids"] = [each + more for each in token["ids"]]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


class Server:
    def __init__(self, model: str, isa: str, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mobilemoe", "serve", model, "--port", "0", "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"MOBILEMOE_ISA": isa},
        )
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline())
        self.name, self.port = ready["model"], int(ready["address"].split(":")[2].split("/")[0])

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    async def ask(self, prompt: list[int], tokens: int, stops: list[int]) -> tuple[float, int]:
        """Seconds to the first event of a greedy stream, and the tokens that it wrote."""
        body = {
            "model": self.name,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logit_bias": {str(token): -100 for token in stops},
        }
        data = json.dumps(body).encode()
        began, first, read = time.perf_counter(), None, b""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        while piece := await reader.read(2**16):
            read = (read + piece)[-4096:]
            if first is None and b"data: " in read:
                first = time.perf_counter() - began
        writer.close()
        assert first is not None, read
        usage, _ = json.JSONDecoder().raw_decode(read.decode().rpartition('"usage": ')[2])
        return first, usage["completion_tokens"]

    def tokens_per_second(self, streams: int, tokens: int, vocabulary: int, stops: list[int]) -> float:
        async def all_of_them() -> int:
            prompts = [[random.randrange(vocabulary) for _ in range(16)] for _ in range(streams)]
            return sum(made for _, made in await asyncio.gather(*(self.ask(ids, tokens, stops) for ids in prompts)))

        began = time.perf_counter()
        return asyncio.run(all_of_them()) / (time.perf_counter() - began)

    def seconds_to_first(self, prompt: list[int], stops: list[int]) -> float:
        return asyncio.run(self.ask(prompt, 1, stops))[0]


def first_tokens(model: str, isa: str, length: int, rounds: int, vocabulary: int, stops: list[int]) -> dict[str, Any]:
    """Seconds to the first token of conversations of `length` tokens: new, with one more turn, and after a restart."""
    texts = [[random.randrange(vocabulary) for _ in range(length)] for _ in range(rounds)]
    turns = [[*text, *(random.randrange(vocabulary) for _ in range(TURN))] for text in texts]
    with tempfile.TemporaryDirectory() as place:
        server = Server(model, isa, "--session-dir", place)
        server.seconds_to_first(texts[0][:100], stops)  # the first request of a process is slower
        fresh, reused = [], []
        for text, turn in zip(texts, turns, strict=True):
            fresh.append(server.seconds_to_first(text, stops))
            reused.append(server.seconds_to_first(turn, stops))
        server.end()
        size = sum(file.stat().st_size for file in Path(place).iterdir())
        server = Server(model, isa, "--session-dir", place)
        server.seconds_to_first([1] * 100, stops)
        restarted = [server.seconds_to_first([*turn, 1, 2, 3], stops) for turn in turns]
        server.end()
    found = {"fresh": spread(fresh), "reused": spread(reused), "restarted": spread(restarted)}
    return found | {"bytes_saved": size // rounds}


def spread(values: list[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile."""
    return [round(value, 4) for value in quartiles(values)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--isa", default="avx512,avx2")
    parser.add_argument("--conversation", type=int, default=2000)
    given = parser.parse_args()
    model = str(random_folder(given.model)) if given.model in PRESETS and given.model != "nano" else given.model
    stops = sorted(mobilemoe.load(model, threads=1).stop_ids)
    vocabulary = min(stops) - 6  # without the special ids
    isas, load = given.isa.split(","), os.getloadavg()[0]
    servers = {isa: Server(model, isa) for isa in isas}
    speeds: dict[str, dict[int, list[float]]] = {isa: {1: [], STREAMS: []} for isa in isas}
    for _ in range(given.rounds):
        for isa, server in servers.items():
            for streams in (1, STREAMS):
                speeds[isa][streams].append(server.tokens_per_second(streams, given.tokens, vocabulary, stops))
    for server in servers.values():
        server.end()
    result: dict[str, Any] = {"model": given.model, "cores": len(os.sched_getaffinity(0)), "load": [round(load, 1)]}
    for isa, found in speeds.items():
        ratios = [many / one for one, many in zip(found[1], found[STREAMS], strict=True)]
        result[isa] = {"one": spread(found[1]), "eight": spread(found[STREAMS]), "ratio": spread(ratios)}
    if given.conversation:
        result["first_token"] = first_tokens(model, isas[0], given.conversation, given.rounds, vocabulary, stops)
    result["load"].append(round(os.getloadavg()[0], 1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
