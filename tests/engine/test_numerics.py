"""With fp32 activations the engine computes what spec section 2 says, for every kind of model and both group axes."""

import dataclasses

import numpy as np
import pytest

from mobilemoe.checkpoint import write_random
from mobilemoe.engine import Engine, instruction_sets
from model_configs import CONFIGS, TOKENS, VOCABULARY, error_per_position
from reference import reference_logits


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("name", CONFIGS)
def test_fp32_logits_are_those_of_the_reference(name, axis, tmp_path, monkeypatch):
    seed = list(CONFIGS).index(name)
    write_random(tmp_path / "model", CONFIGS[name], seed=seed, format="int4", group_axis=axis)
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, TOKENS).tolist()
    want_TV = reference_logits(tmp_path / "model", ids)
    for isa in instruction_sets():
        monkeypatch.setenv("MOBILEMOE_ISA", isa)
        engine = Engine(tmp_path / "model", activations="fp32")
        assert engine.isa == isa
        got_TV = engine.logits(ids)
        assert got_TV.dtype == np.float32
        assert error_per_position(got_TV, want_TV).max() < 1e-3, isa
        session = engine.session()
        one_by_one_TV = np.stack([session.append([token]) for token in ids])
        assert error_per_position(one_by_one_TV, want_TV).max() < 1e-3, isa


def test_narrower_caches_change_logits_a_little(tmp_path):
    write_random(tmp_path / "model", CONFIGS["dense"], seed=1, format="int4")
    ids = np.random.default_rng(1).integers(0, VOCABULARY, 100).tolist()
    wide_TV, half_TV, narrow_TV = (Engine(tmp_path / "model", kv=kv).logits(ids) for kv in ("fp32", "fp16", "int8"))
    assert 0 < error_per_position(half_TV, wide_TV).max() < 0.02
    assert 0 < error_per_position(narrow_TV, wide_TV).max() < 0.1


@pytest.mark.parametrize("name", ["family", "dense", "olmoe-like"])
def test_wide_and_narrow_vocabularies_and_texts_of_one_token_are_fine(name, tmp_path):
    for vocabulary in (1, 15, 17, 4_099):
        folder = tmp_path / f"model-{vocabulary}"
        config = dataclasses.replace(CONFIGS[name], vocab_size=vocabulary)
        write_random(folder, config, seed=5, format="int4")
        got_TV = Engine(folder, activations="fp32").logits([vocabulary - 1])
        assert got_TV.shape == (1, vocabulary)
        assert error_per_position(got_TV, reference_logits(folder, [vocabulary - 1])).max() < 1e-3
