"""Measures what a grammar costs: decoding with and without one, in turns, for one text and for several together.

The grammar asks for an endless list of records. For random weights the tokens are those of Llama 3's tokenizer, which
is in the package llama-models. One JSON line for each case: `cost` is the share by which a step takes longer, as the
quartiles of the rounds, and `cost_of_fastest` compares the fastest round of each kind, which other work on the machine
disturbs least.

usage: python benchmarks/structure.py nano, or S --random
           [--parallel 1,8] [--temperature 0,0.8] [--threads N] [--rounds 15]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import mobilemoe
from mobilemoe.profile.random_model import random_model
from mobilemoe.sampling import Sampling
from mobilemoe.serve.structure import Grammars, Structure, grammar, json_rule
from mobilemoe.tokenizer import Tokenizer

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2100},
        "kind": {"enum": ["book", "film", "song"]},
        "parts": {"type": "array", "items": {"type": "string", "pattern": "^[A-Z][a-z ]{2,30}$"}, "maxItems": 4},
    },
    "required": ["name", "year", "kind", "parts"],
    "additionalProperties": False,
}
STEPS = 64
ENDLESS = {"type": "array", "items": RECORD, "minItems": 100_000}


def read(options: argparse.Namespace) -> tuple[mobilemoe.Model, Tokenizer]:
    if not options.random:
        model = mobilemoe.load(options.model, threads=options.threads)
        return model, model.tokenizer
    package = find_spec("llama_models")
    if package is None or package.origin is None:
        raise SystemExit("the package llama-models is missing")
    folder = random_model(options.model, "out", lambda line: print(line, file=sys.stderr))
    return mobilemoe.load(folder, threads=options.threads), Tokenizer.load(Path(package.origin).parent / "llama3")


Tokens = list[list[int]]  # by step, then by text


def decode(
    model: mobilemoe.Model, prompts: Tokens, guide: Structure | Tokens, temperature: float
) -> tuple[float, Tokens]:
    """Seconds of a step, and the tokens. Without a grammar those of a run with one are put in place of the chosen
    ones: other tokens would ask for other experts, and other times."""
    assert model.engine is not None
    batch, tokens = model.engine.batch(), []
    for number, prompt in enumerate(prompts):
        session = model.engine.session(len(prompt) + STEPS + 2)
        sampling = Sampling(temperature=temperature, seed=number)
        batch.join(prompt, sampling, session=session, guide=guide.guide() if isinstance(guide, Structure) else None)
    members = [batch._members[number] for number in range(len(prompts))]
    while len(batch.step()) < len(prompts):  # until all have read their prompts
        pass
    began = time.perf_counter()
    for step in range(STEPS):
        for text, member in enumerate(members):
            if not isinstance(guide, Structure):
                member.ids[-1] = guide[step][text]
        tokens.append([member.ids[-1] for member in members])
        batch.step()
    return (time.perf_counter() - began) / STEPS, tokens


def mask_microseconds(structure: Structure, text: list[int]) -> float:
    """The mean time of a mask, over a text that the grammar takes."""
    guide, began = structure.guide(), time.perf_counter()
    for token in text:
        guide.allowed()
        guide.take(token)
    return (time.perf_counter() - began) / len(text) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--parallel", default="1,8")
    parser.add_argument("--temperature", default="0,0.8")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    model, tokenizer = read(options)
    grammars = Grammars(tokenizer, model.config.vocab_size, tokenizer.stop_ids)
    began = time.perf_counter()
    grammars.compile('start: "a"', "grammar")
    table, began = time.perf_counter() - began, time.perf_counter()
    structure = grammars.compile(grammar(f"start: {json_rule(ENDLESS)}"), "grammar")
    compiling = time.perf_counter() - began
    record = {"name": "The Long Road", "year": 1999, "kind": "film", "parts": ["A start", "An end"]}
    microseconds = mask_microseconds(structure, tokenizer.encode(json.dumps([record] * 20)))
    for parallel in map(int, options.parallel.split(",")):
        for temperature in map(float, options.temperature.split(",")):
            prompts = [tokenizer.encode(f"List {number} of works, as JSON: ") for number in range(parallel)]
            pairs = []
            for _ in range(options.rounds + 1):  # the first warms up
                guided, tokens = decode(model, prompts, structure, temperature)
                plain, _ = decode(model, prompts, tokens, temperature)
                pairs.append((plain, guided))
            costs = [guided / plain - 1 for plain, guided in pairs[1:]]
            plain, guided = zip(*pairs[1:], strict=True)
            result = {
                "model": options.model + (" --random" if options.random else ""),
                "vocabulary": model.config.vocab_size,
                "parallel": parallel,
                "temperature": temperature,
                "plain_tokens_per_second": round(parallel / statistics.median(plain), 1),
                "guided_tokens_per_second": round(parallel / statistics.median(guided), 1),
                "cost": [round(each, 3) for each in statistics.quantiles(costs, n=4)],
                "cost_of_fastest": round(min(guided) / min(plain) - 1, 3),
                "mask_microseconds": round(microseconds, 1),
                "table_seconds": round(table, 2),
                "compile_milliseconds": round(1000 * compiling, 1),
                "load": round(os.getloadavg()[0], 1),
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
