"""A Hub on this machine with nano, a small model of its kind, and calls of the command that ask it."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hub_server import serving
from mobilemoe.hub import ASSETS

MODEL = "org/nano"


@pytest.fixture(scope="session")
def nano_files():
    return {path.name: path.read_bytes() for path in (ASSETS / "nano").iterdir()}


@pytest.fixture
def hub(nano_files):
    """nano twice: alone, and among files that no model here needs."""
    unneeded = {
        "pytorch_model.bin": b"x" * 2_000_000,
        "original/consolidated.safetensors": b"y" * 2_000_000,
        "onnx/model.safetensors": b"z" * 2_000_000,
        "tokenizer.model": b"a second tokenizer",
        "code.py": b"raise SystemExit",
    }
    with serving({MODEL: {"main": nano_files | unneeded, "v1": nano_files}}) as running:
        yield running


@pytest.fixture
def call(hub, tmp_path):
    """Calls the command in a process of its own, whose cache of the Hub is empty at first."""

    def environment(**variables):
        own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        return own | variables

    def run(*arguments, **variables):
        command = [sys.executable, "-m", "mobilemoe", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(**variables), stdin=subprocess.DEVNULL, timeout=120
        )
        assert "Traceback" not in done.stderr, done.stderr
        return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr)

    run.environment, run.home = environment, tmp_path / "hf"
    return run


@pytest.fixture
def refused(call):
    """Calls the command, which must fail with one sentence; gives that."""

    def run(*arguments, **variables):
        done = call(*arguments, **variables)
        assert done.status == 1, done.out + done.err
        said = [line for line in done.err.splitlines() if not line.startswith(f"{MODEL} (MB): ")]  # what takes longer
        assert len(said) == 1, done.err
        return said[0]

    return run
