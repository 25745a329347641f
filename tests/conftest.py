"""A tiny model that every test may read: random INT4 weights behind the bundled tokenizer."""

import os
import shutil
from pathlib import Path

import pytest

from mobilemoe.checkpoint import write_random
from mobilemoe.config import ModelConfig
from mobilemoe.hub import ASSETS
from mobilemoe.presets import family_member
from mobilemoe.tokenizer import Tokenizer

# Read when torch is first imported, later than this. On busy cores its threads spin: 12 times the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton decides when it is first imported whether its kernels are interpreted, as they must be without a GPU.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest.register_assert_rewrite(
    "cli_calls",
    "config_cases",
    "engine_models",
    "random_models",
    "refusals",
    "scaling_runs",
    "sweep_runs",
    "train_runs",
)
pytest_plugins = ["cli_calls", "engine_models"]


@pytest.fixture(scope="session", autouse=True)
def engine_cache(tmp_path_factory) -> Path:
    """Engine files are kept here, also by the processes that tests start, and not in the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


def pytest_terminal_summary(terminalreporter) -> None:
    """Says how many calls the tests of damage have made."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    calls = [count for report in reports for name, count in report.user_properties if name == "damaged"]
    if calls:
        terminalreporter.write_line(f"{sum(calls):,} calls of verbs with damaged files")


def write_model(folder: Path, *, seed: int = 1, tokenizer: bool = True, **changes) -> Path:
    """Writes a model of 0.6 M parameters into `folder`, which must not exist; `changes` are config fields."""
    ids = Tokenizer.load(ASSETS / "nano")
    fields = {
        "max_position_embeddings": 256,
        "bos_token_id": ids.bos_id,
        "eos_token_id": ids.stop_ids,
        "eot_token_id": ids.eot_id,
        "header_start_token_id": ids.header_start_id,
        "header_end_token_id": ids.header_end_id,
        **changes,
    }
    config: ModelConfig = family_member(32, expansion=2, granularity=4, layers=2, vocab_size=16_384, **fields)
    write_random(folder, config, seed=seed, format="int4")
    if tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ASSETS / "nano" / name, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """The tiny model's folder; not to be changed."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")
