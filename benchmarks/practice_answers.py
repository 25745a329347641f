"""Measures how a model answers conversations for practice that are made with a new seed, by kind of question.

python benchmarks/practice_answers.py MODEL [--conversations 200] [--seed 1000] [--backend native]

Each answer is generated greedily after the correct earlier turns. It counts as right if it equals the expected answer
but for case and the final full stop; any of the several refusals counts. The last line is one JSON object with, for
each kind, the share of right answers, its standard error and the number of questions. Passages and conversations of a
new seed are new to the model; many of the small sums are not.
"""

import argparse
import json
import math
import tempfile
from collections import defaultdict
from pathlib import Path

import mobilemoe
from mobilemoe.data.practice.reading import UNKNOWN
from mobilemoe.data.practice.sums import REFUSALS
from mobilemoe.data.practice.write import write_practice

SHOWN = 2  # wrong answers of each kind


def same(answer: str, wanted: str) -> bool:
    for alike in (UNKNOWN, REFUSALS):
        if wanted in alike:
            return answer.strip() in alike
    return answer.strip().rstrip(".").lower() == wanted.rstrip(".").lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1000, help="not one that training text was made with")
    parser.add_argument("--backend", default="native")
    asked = parser.parse_args()
    model = mobilemoe.load(asked.model, backend=asked.backend)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "practice.jsonl"
        write_practice(path, asked.conversations, asked.seed)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    right = defaultdict(list)
    for row in rows:
        for place, message in enumerate(row["messages"]):
            if message["role"] != "assistant":
                continue
            answer = model.generate(messages=row["messages"][:place], max_new_tokens=60)
            right[row["category"]].append(same(answer, message["content"]))
            if not right[row["category"]][-1] and right[row["category"]].count(False) <= SHOWN:
                print(f"{row['messages'][place - 1]['content']!r}: {answer!r}, should be {message['content']!r}")
    shares = {}
    for kind, marks in sorted(right.items()):
        share = sum(marks) / len(marks)
        error = math.sqrt(share * (1 - share) / len(marks))
        shares[kind] = {"right": round(share, 4), "standard_error": round(error, 4), "answers": len(marks)}
    print(json.dumps({"model": asked.model, "seed": asked.seed, **shares}))


if __name__ == "__main__":
    main()
