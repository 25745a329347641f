"""Models for the tests of the native engine, and the calls that these tests share."""

from pathlib import Path

import numpy as np
import pytest

from mobilemoe.checkpoint import write_random
from mobilemoe.config import FULL, SLIDING, GroupAxis
from mobilemoe.engine import Engine, instruction_sets
from mobilemoe.hub import ASSETS
from mobilemoe.presets import family_member

EACH_ISA = pytest.mark.parametrize("isa", instruction_sets())


def write_small(folder: Path, group_axis: GroupAxis) -> Path:
    """A random model with sliding windows and a context of 2,048."""
    layers = {"sliding_window": 70, "layer_types": (FULL, SLIDING, FULL)}
    config = family_member(
        96, expansion=2, granularity=4, layers=3, vocab_size=320, max_position_embeddings=2048, **layers
    )
    write_random(folder, config, seed=3, format="int4", group_axis=group_axis)
    return folder


@pytest.fixture(scope="session")
def in_folder(tmp_path_factory) -> Path:
    return write_small(tmp_path_factory.mktemp("models") / "in", "in")


@pytest.fixture(scope="session")
def out_folder(tmp_path_factory) -> Path:
    """A model in the released layout, with groups along the output."""
    return write_small(tmp_path_factory.mktemp("models") / "out", "out")


@pytest.fixture(params=["in", "out"])
def model_folder(request, out_folder) -> Path:
    """Each model in turn: nano, with groups along the input, and a random one with groups along the output."""
    return ASSETS / "nano" if request.param == "in" else out_folder


@pytest.fixture
def make_engine(monkeypatch, model_folder, in_folder):
    """Opens the model's engine with an instruction set of choice."""

    def make(isa: str | None = None, **options) -> Engine:
        folder = model_folder
        if isa is not None:
            monkeypatch.setenv("MOBILEMOE_ISA", isa)
        if isa == "scalar" and folder.name == "nano":  # a text takes the reference kernels minutes
            folder = in_folder
        engine = Engine(folder, **options)
        assert isa in (None, engine.isa)
        return engine

    return make


def ids_for(engine: Engine, count: int, seed: int = 0) -> list[int]:
    """Ids without a pattern, the same every time."""
    return np.random.default_rng([seed, engine.vocab_size]).integers(0, engine.vocab_size, count).tolist()


def fed_tokens(engine: Engine, monkeypatch) -> list[int]:
    """Notes how many tokens each forward pass of this engine computes from now on."""
    fed: list[int] = []
    native = engine.native

    class Spy:
        def __getattr__(self, name):
            return getattr(native, name)

        def forward(self, requests, **experts):
            fed.append(sum(len(ids) for _, ids, _ in requests))
            return native.forward(requests, **experts)

        def score(self, requests, targets):
            fed.append(sum(len(ids) for _, ids, _ in requests))
            return native.score(requests, targets)

    monkeypatch.setattr(engine, "native", Spy())
    return fed
