"""Paths of the files that tests read."""

from pathlib import Path

HELPERS = Path(__file__).parent
TESTS = HELPERS.parent
ROOT = TESTS.parent
RECIPES = ROOT / "recipes"
TRAINING_TEXT = RECIPES / "data"
HELDOUT = TESTS / "data" / "heldout.jsonl"
GOLDEN = TESTS / "golden"
