"""How many bytes of text one token holds, for vocabularies of several sizes: the table of plan/vocabulary.py.

    python benchmarks/bytes_per_token.py FOLDER_OF_TEXT [MEGABYTES]

Trains a tokenizer of each size (`mobilemoe.data.train_tokenizer`) on the first megabytes of every file of the folder
(*.jsonl.zst), equally much of each, and counts its tokens in tests/data/heldout.jsonl.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import zstandard

from mobilemoe.data.train_tokenizer import train_tokenizer

SIZES = (4096, 8192, 16384, 32768, 65536, 128_256)
HELDOUT = Path(__file__).parents[1] / "tests" / "data" / "heldout.jsonl"


def texts(folder: Path, megabytes: float) -> Iterator[str]:
    files = sorted(folder.glob("*.jsonl.zst"))
    for file in files:
        left = megabytes * 1e6 / len(files)
        with zstandard.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                text = _text(json.loads(line))
                left -= len(text.encode())
                yield text
                if left < 0:
                    break


def _text(row: dict[str, object]) -> str:
    messages = row.get("messages")
    if isinstance(messages, list):
        return "\n".join(str(message["content"]) for message in messages)
    return str(row.get("text", ""))


def main() -> None:
    folder, megabytes = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 100.0
    held_out = [_text(json.loads(line)) for line in HELDOUT.open(encoding="utf-8")]
    size = sum(len(text.encode()) for text in held_out)
    print(f"trained on {megabytes:g} MB of {folder}; {size:,} bytes of {HELDOUT.name}")
    for vocabulary in SIZES:
        tokenizer = train_tokenizer(texts(folder, megabytes), vocabulary)
        tokens = sum(len(tokenizer.encode(text)) for text in held_out)
        print(f"{vocabulary:>7,}: {size / tokens:.4f} bytes per token", flush=True)


if __name__ == "__main__":
    main()
