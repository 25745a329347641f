"""A corpus of three sources, a tokenizer whose tokens are bytes, and a loader over both, for the tests of data."""

import json
import re

import numpy as np

from mobilemoe.chat import ChatTemplate
from mobilemoe.data.config import DataConfig
from mobilemoe.data.loader import PackedLoader
from mobilemoe.data.mixture import build_mixture

BOS, END, HEADER, HEADER_END, EOT = range(256, 261)
NAMES = {"<|begin_of_text|>": BOS, "<|header_start|>": HEADER, "<|header_end|>": HEADER_END, "<|eot|>": EOT}
WEIGHTS = {"books": 0.5, "code": 0.3, "chat": 0.2}


class ByteTokenizer:
    """A token is a byte: enough to tell what the loader does with the ids."""

    bos_id: int | None = BOS
    end_of_text_id = END
    vocab_size = 261
    composes = False
    special_ids = frozenset(NAMES.values())
    special_pattern = re.compile(f"({'|'.join(map(re.escape, NAMES))})")

    def encode(self, text, *, bos=False, special=False):
        return [NAMES[text]] if special else list(text.encode())

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]

    def token_bytes(self, token_id, *, skip_special=True):
        names = {token_id: name for name, token_id in NAMES.items()}
        return names.get(token_id, "?").encode() if token_id >= BOS else bytes([token_id])


def write_corpus(folder):
    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    for shard in range(3):
        books = [f"Book {shard}.{n}. " + " ".join(map(str, range(n * 40))) for n in range(8)]
        write(f"books-{shard}.jsonl", [{"text": text, "source": text[:9]} for text in books])
    write("code-0.jsonl", [{"text": f"def f{n}():\n    return {n}\n" * 9, "source": f"{n}.py"} for n in range(60)])
    chats = [(f"What is {n} + {n}?", f"{n} + {n} is {n + n}.") for n in range(90)]
    roles = ("user", "assistant")
    write(
        "chat-0.jsonl",
        [{"messages": [{"role": r, "content": c} for r, c in zip(roles, chat, strict=True)]} for chat in chats],
    )


def make_config(**changes):
    mixture = [{"name": n, "files": f"{n}-*.jsonl", "weight": w} for n, w in WEIGHTS.items()]
    return DataConfig(**{"path": "data", "seed": 3, "holdout": 0.1, "piece_chars": 300, "mixture": mixture} | changes)


def open_loader(root, tokenizer=None, batch_size=2, sequence_length=64, split="train", **changes):
    mixture = build_mixture(make_config(**changes), root, split)
    tokenizer = tokenizer or ByteTokenizer()
    return PackedLoader(mixture, tokenizer, ChatTemplate(), batch_size=batch_size, sequence_length=sequence_length)


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)
