"""Rows and files for the tests of sources."""

import gzip
import json

import zstandard

ROWS = [{"text": f"Document {i}: naïve 🙂\n" * 20, "source": f"book {i}", "license": "MIT"} for i in range(300)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


def write(path, data):
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)(data)
    path.write_bytes(packed)
    return packed


def read_all(source):
    return [document for shard in range(len(source.shards)) for document in source.documents(shard)]
