"""What the tests of the engine's cache share: an empty cache, and a model's logits (a pytest plugin)."""

import pytest

IDS = [1, 2, 3, 500, 16_000]
LOAD = (
    "import sys, hashlib\n"
    "from mobilemoe.engine import Engine\n"
    "logits = Engine(sys.argv[1], threads=1).logits([1, 2, 3, 500, 16_000])\n"
    "print(hashlib.sha256(logits.tobytes()).hexdigest())"
)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mobilemoe" / "engine"


def files_in(kept):
    """The engine files of a cache."""
    return sorted(kept.glob("*.mobilemoe"))
