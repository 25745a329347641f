"""Writes short questions about the household and their answers with a small open model, for the training of nano.

    python recipes/household/write.py HuggingFaceTB/SmolLM2-135M-Instruct --out household-00.jsonl --minutes 7

docs/guide.md says how good they are. The model sees a few examples of questions.toml and the beginning of a goal or a
question, which it ends and answers. MODEL is a folder, a Hub id or a GGUF file of a Llama. Two processes on one H100
wrote some 800 documents a second; a CPU is enough to try it with --batch 8. Ctrl-C keeps what is written.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from teacher import Teacher, load
from torch import Tensor

from mobilemoe.data.near_duplicates import Run, runs_of

EXAMPLES = 4  # of the right kind, before each beginning
NEW_TOKENS = 80
PREFILL = 32  # tokens of the prompts at once, because attention's scores of all would take much memory
TEMPERATURE = 0.7
MIN_P = 0.05
OVERLAP = 8  # words in a row that no document may share with a benchmark
FORMS = {"questions": ("Question:", "\nAnswer:"), "goals": ("Goal:", "\nSolution:")}


def beginnings(seed: int) -> Iterator[tuple[str, str, str]]:
    """Prompts without end: the examples, the beginning of a question or a goal, and the word before its answer."""
    words = tomllib.loads(Path(__file__).with_name("questions.toml").read_text(encoding="utf-8"))
    rng = random.Random(seed)
    starts = [
        (kind["examples"], form, opening, thing)
        for kind in words["kinds"]
        for name, form in FORMS.items()
        for opening in kind.get(name, [])
        for thing in kind["things"]
    ]
    while True:
        rng.shuffle(starts)
        for examples, (before, between), opening, thing in starts:
            shown = "".join(f"{before} {q}{between} {a}\n\n" for q, a in rng.sample(examples, EXAMPLES))
            whole = f"{opening} {thing}{rng.choice(words['ends'])}".strip()
            begun = whole if rng.random() < 0.5 else opening
            yield shown + before, f" {begun[0].upper()}{begun[1:]}" if begun else "", between


def choose(logits_BV: Tensor) -> Tensor:
    """Samples [B] among the tokens that have at least MIN_P times the highest probability."""
    shares_BV = (logits_BV.float() / TEMPERATURE).softmax(-1)
    shares_BV.masked_fill_(shares_BV < MIN_P * shares_BV.amax(-1, keepdim=True), 0)
    return torch.multinomial(shares_BV, 1)[:, 0]


class Writer:
    """Continues a batch of prompts at once."""

    def __init__(self, model: str) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer, self.network = load(model, self.device)

    def continued(self, prompts: list[str]) -> list[str]:
        """NEW_TOKENS tokens after each prompt, as text."""
        ids = self.tokenizer(prompts).input_ids
        width = -(-max(map(len, ids)) // PREFILL) * PREFILL
        pad_B = torch.tensor([width - len(row) for row in ids], device=self.device)
        ids_BT = torch.tensor([[0] * (width - len(row)) + row for row in ids], device=self.device)
        teacher = Teacher(self.network, len(ids), width + NEW_TOKENS)
        for start in range(0, width, PREFILL):
            logits_BV = teacher.step(ids_BT[:, start : start + PREFILL], start, pad_B)
        written = [choose(logits_BV)]
        for place in range(width, width + NEW_TOKENS - 1):
            written.append(choose(teacher.step(written[-1][:, None], place, pad_B)))
        return list(self.tokenizer.batch_decode(torch.stack(written, 1)))


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def pairs_of(texts: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str]]:
    """The sensible pairs of (beginning, word before the answer, continuation), as question and answer.

    A continuation ends the question and answers it; an empty line has to follow.
    """
    for beginning, between, continuation in texts:
        pair, end, _ = continuation.partition("\n\n")
        question, found, answer = pair.partition(between)
        question, answer = (beginning + question).strip(), answer.strip()
        if end and found and sensible(question, answer):
            yield question, answer


def sensible(question: str, answer: str) -> bool:
    """One line each, and an answer of some words that ends, says no three words twice and mostly says new words."""
    words = answer.lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    asked, answered = set(words_of(question)), words_of(answer)
    return (
        "\n" not in question + answer
        and len(question) < 160
        and len(words) > 4
        and answer[-1] in ".!"
        and len(set(triples)) == len(triples)
        and 2 * sum(word not in asked for word in answered) > len(answered)
        and not re.search(r"<\||http|Question:|Goal:", question + answer)
    )


def runs_of_words(text: str) -> set[Run]:
    """All runs of OVERLAP words."""
    return runs_of(words_of(text), OVERLAP)


def benchmark_runs(paths: list[Path]) -> set[Run]:
    """The runs of words of multiple-choice items: of the question with each of its choices.

    Raises ValueError for a file without such items.
    """
    runs = set[Run]()
    for path in paths:
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if not rows:
                raise ValueError
            runs.update(*(runs_of_words(f"{row['query']} {choice}") for row in rows for choice in row["choices"]))
        except OSError as fault:
            raise ValueError(f"{path} cannot be read: {fault.strerror}") from fault
        except (ValueError, LookupError, TypeError) as fault:
            raise ValueError(f"{path} is no benchmark: its lines need a query and choices, in JSON") from fault
    return runs


def document(question: str, answer: str, number: int) -> dict[str, Any]:
    """A conversation, or in every third place a text."""
    origin = {"source": "household", "license": "Apache-2.0"}
    if number % 3 == 0:
        return {"text": f"Question: {question}\nAnswer: {answer}", **origin}
    turns = {"user": question, "assistant": answer}
    return {"messages": [{"role": role, "content": content} for role, content in turns.items()], **origin}


def documents(writer: Writer, seed: int, batch: int, forbidden: set[Run]) -> Iterator[list[dict[str, Any]]]:
    """What each batch of prompts gave, without copies and without documents that have a forbidden run. Does not end."""
    prompts, seen = beginnings(seed), set[tuple[str, str]]()
    while True:
        begun = list(islice(prompts, batch))
        written = writer.continued([before + text for before, text, _ in begun])
        texts = [(text, between, more) for (_, text, between), more in zip(begun, written, strict=True)]
        pairs = [pair for pair in dict.fromkeys(pairs_of(texts)) if pair not in seen]
        new = [pair for pair in pairs if forbidden.isdisjoint(runs_of_words(" ".join(pair)))]
        yield [document(*pair, number) for number, pair in enumerate(new, start=len(seen))]
        seen.update(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True, help="a JSONL file that does not exist yet")
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=3072, help="two processes of 3072 fit into 80 GB")
    parser.add_argument(
        "--apart-from",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="BENCHMARK.jsonl",
        help=f"leave out documents that share {OVERLAP} words in a row with an item of one",
    )
    options = parser.parse_args()
    if options.batch < 1:
        parser.error(f"--batch is {options.batch}, but must be at least 1")
    if options.out.exists():
        parser.error(f"{options.out} exists already: choose another name or remove it first")
    torch.manual_seed(options.seed)
    try:
        forbidden, writer = benchmark_runs(options.apart_from), Writer(options.model)
    except ValueError as fault:
        sys.exit(str(fault))
    begun, number, tried = time.monotonic(), 0, 0
    try:
        with options.out.open("x", encoding="utf-8") as out, suppress(KeyboardInterrupt):
            for made in documents(writer, options.seed, options.batch, forbidden):
                out.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in made)
                out.flush()
                number, tried = number + len(made), tried + options.batch
                seconds = time.monotonic() - begun
                print(f"{seconds:.0f} s: {number:,} of {tried:,}, {out.tell() / 1e6:.1f} MB", file=sys.stderr)
                if seconds >= options.minutes * 60:
                    break
    except torch.OutOfMemoryError:
        sys.exit(f"--batch {options.batch} needs more memory than there is: choose a smaller one")
    except OSError as fault:
        sys.exit(f"{options.out} cannot be written: {fault.strerror}")
    print(f"{number:,} documents in {options.out}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # before anything was written
        sys.exit(130)
