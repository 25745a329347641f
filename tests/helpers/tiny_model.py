"""A tiny model that every test may read: random INT4 weights behind the bundled tokenizer (a pytest plugin)."""

import shutil
from pathlib import Path

import pytest

from mobilemoe.checkpoint import write_random
from mobilemoe.config import ModelConfig
from mobilemoe.hub import ASSETS
from mobilemoe.presets import family_member
from mobilemoe.tokenizer import Tokenizer


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
