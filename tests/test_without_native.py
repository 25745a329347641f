"""Without the compiled engine, as on a machine that only trains, everything that PyTorch computes still works."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

from places import RECIPES
from train_runs import RECIPE

BLOCKED = """
import sys
sys.modules["mobilemoe.engine._native"] = None  # importing it fails, as where it was never built
from mobilemoe.cli.main import main
main()
"""


def blocked(*arguments):
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def test_training_and_scoring_with_pytorch_need_no_compiled_engine(tmp_path):
    recipe, out, text = tmp_path / "tiny.toml", tmp_path / "out", tmp_path / "text.jsonl"
    recipe.write_text(RECIPE, encoding="utf-8")
    trained = blocked("train", recipe, "--out", out, "--set", "train.steps=2", "--set", "train.warmup_steps=1")
    assert trained.returncode == 0, trained.stderr
    text.write_text(json.dumps({"text": "A short text about a river."}) + "\n", encoding="utf-8")
    scored = blocked("eval", out, "--text", text, "--window", 32, "--backend", "torch", "--json")
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout.splitlines()[-1])["bits_per_byte"] > 0


def test_the_native_backend_says_in_one_sentence_that_it_is_missing():
    asked = blocked("run", "nano", "hello")
    assert asked.returncode == 1
    assert "the native engine is not built" in asked.stderr
    assert "Traceback" not in asked.stderr


def test_a_sweep_lists_its_runs_without_the_compiled_engine():
    listed = blocked("sweep", RECIPES / "sweep" / "tiny.toml", "--list")
    assert listed.returncode == 0, listed.stderr
    assert "d64x2-dense" in listed.stdout
