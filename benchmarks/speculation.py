"""What guessed tokens are worth, by the kind of text: the speed against plain decoding, and how many were right.

    python benchmarks/speculation.py [MODEL] [--tokens 200] [--rounds 5] [--temperature 0] [--gguf FILE]
                                     [--cpu] [--json]

Every text is written plainly and with each way to guess, by turns in one process; a ratio is the median over rounds of
plain seconds by those with guesses. Whatever the way, the tokens have to be the same. With --gguf llama.cpp runs that
file through its C API (of llama-cpp-python), plainly and with that package's prompt lookup, in the same rounds. --cpu
counts the processor's seconds in place of the clock's, with one thread: other programs disturb them less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import mobilemoe
from mobilemoe.engine import Drafts

ROOT = Path(__file__).parents[1]
HELDOUT = ROOT / "tests" / "data" / "heldout.jsonl"
DOMAINS = {
    "code": ("python stdlib", "pandas", "scipy", "sympy"),
    "documentation": ("MicrosoftDocs", "rust-lang", "python/peps"),
    "textbooks": ("openstax",),
    "novels": ("classic-books",),
}
TEXTS = 3  # of each domain
PROMPT = 300  # tokens
TASKS = {
    "quote a passage": "{passage}\n\nRepeat the passage above word for word.",
    "answer from a passage": "{passage}\n\nWhat does the passage say? Answer in its own words.",
}


def prompts(model: mobilemoe.Model) -> dict[str, list[list[int]]]:
    """The ids of texts to continue, and of questions about a passage, by kind."""
    rows = [json.loads(line) for line in HELDOUT.open(encoding="utf-8")]
    found: dict[str, list[list[int]]] = {}
    for domain, sources in DOMAINS.items():
        texts = [row["text"] for row in rows if "text" in row and row["source"].startswith(sources)]
        encoded = [model.encode(text)[:PROMPT] for text in texts]
        found[domain] = [ids for ids in encoded if len(ids) == PROMPT][:TEXTS]
    found["chat"] = [
        model.encode(messages=[row["messages"][0]]) for row in rows if row["source"] == "GPTeacher/Roleplay"
    ][:TEXTS]
    for task, form in TASKS.items():
        passages = [row["text"][:900] for row in rows if row["source"].startswith("openstax")][:TEXTS]
        found[task] = [
            model.encode(messages=[{"role": "user", "content": form.format(passage=each)}]) for each in passages
        ]
    return found


Writer = Callable[[list[int], int, float], tuple[list[int], float, Drafts]]  # ids, seconds for all but the first


def ours(name: str, how: Any, threads: int, clock: Callable[[], float]) -> Writer:
    engine = mobilemoe.load(name, speculate=how, threads=threads).engine
    assert engine is not None

    def write(ids: list[int], tokens: int, temperature: float) -> tuple[list[int], float, Drafts]:
        before, made, began = engine.drafts, list[int](), 0.0
        batch = engine.start([ids], tokens, mobilemoe.sampling.Sampling(temperature=temperature, seed=1))
        while len(batch):
            for number, choice in batch.step():
                began = began or clock()
                made.append(choice.token)
                if len(made) == tokens:
                    batch.leave(number)
        seconds = clock() - began
        return made, seconds, Drafts(*(now - then for now, then in zip(engine.drafts, before, strict=True)))

    return write


def llamas(gguf: Path, threads: int, clock: Callable[[], float], *, lookup: bool) -> Writer:
    """llama.cpp through its C API, with its own sampler and, for `lookup`, llama-cpp-python's rule for guesses."""
    import llama_cpp
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    guess = LlamaPromptLookupDecoding(max_ngram_size=3, num_pred_tokens=4)
    of_threads = {"n_threads": threads, "n_threads_batch": threads}
    model = llama_cpp.Llama(str(gguf), n_ctx=1024, logits_all=lookup, verbose=False, **of_threads)
    memory = llama_cpp.llama_get_memory(model.ctx)

    def write(ids: list[int], tokens: int, temperature: float) -> tuple[list[int], float, Drafts]:
        sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        if temperature:
            llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_temp(temperature))
            llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_dist(1))
        else:
            llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_greedy())
        llama_cpp.llama_memory_clear(memory, True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        known, guesses = list(ids), list[int]()
        first, proposed, accepted, began = 0, 0, 0, 0.0
        while len(known) - len(ids) < tokens:
            rows = [*known[first:], *guesses]
            batch.n_tokens = len(rows)
            for row, token in enumerate(rows):
                batch.token[row], batch.pos[row], batch.n_seq_id[row], batch.seq_id[row][0] = token, first + row, 1, 0
                batch.logits[row] = row >= len(rows) - 1 - len(guesses)
            if llama_cpp.llama_decode(model.ctx, batch):
                raise RuntimeError("llama_decode failed")
            for row in range(len(rows) - 1 - len(guesses), len(rows)):
                known.append(llama_cpp.llama_sampler_sample(sampler, model.ctx, row))
                right = row + 1 < len(rows) and known[-1] == rows[row + 1]
                accepted += right
                if not right:
                    break
            began = began or clock()
            proposed += len(guesses)
            first = len(known) - 1
            llama_cpp.llama_memory_seq_rm(memory, 0, first, -1)
            guesses = guess(np.array(known, np.intc)).tolist() if lookup else []
        seconds = clock() - began
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_sampler_free(sampler)
        return known[len(ids) : len(ids) + tokens], seconds, Drafts(0, proposed, accepted)

    return write


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="nano")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", default="auto,lookup")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    given = parser.parse_args()
    threads, clock = (1, time.process_time) if given.cpu else (given.threads, time.perf_counter)
    ways: dict[str, Writer] = {how: ours(given.model, how, threads, clock) for how in ("off", *given.ways.split(","))}
    if given.gguf is not None:
        ways["llama.cpp"] = llamas(given.gguf, threads, clock, lookup=False)
        ways["llama.cpp lookup"] = llamas(given.gguf, threads, clock, lookup=True)
    table = []
    for kind, texts in prompts(mobilemoe.load(given.model)).items():
        ratios: dict[str, list[float]] = {way: [] for way in ways}
        drafts = dict.fromkeys(ways, Drafts(0, 0, 0))
        plain = []
        for at in range(given.rounds * len(texts)):
            ids, found = texts[at % len(texts)], {}
            for way, write in ways.items():
                found[way] = write(ids, given.tokens, given.temperature)
                drafts[way] = Drafts(*map(sum, zip(drafts[way], found[way][2], strict=True)))
            assert all(found[way][0] == found["off"][0] for way in ways if "llama" not in way)
            plain.append((given.tokens - 1) / found["off"][1])
            for way in ways:
                ratios[way].append(found["off"][1] / found[way][1])
        row: dict[str, Any] = {"kind": kind, "plain_tok_s": statistics.median(plain)}
        for way in [*ways][1:]:
            _, proposed, accepted = drafts[way]
            texts_written = given.rounds * len(texts)
            row[way] = {
                "ratio": statistics.median(ratios[way]),
                "right": accepted / proposed if proposed else None,
                "tokens_by_guess": accepted / (texts_written * given.tokens),
            }
        table.append(row)
        shown = [
            f"{way} {row[way]['ratio']:.2f}"
            + (f" ({row[way]['right']:.0%} right)" if row[way]["right"] is not None else "")
            for way in [*ways][1:]
        ]
        print(f"{kind:22} plain {row['plain_tok_s']:6.0f} tok/s   " + "   ".join(shown), flush=True)
    if given.json:
        print(json.dumps({"model": given.model, "threads": threads, "temperature": given.temperature, "kinds": table}))


if __name__ == "__main__":
    main()
