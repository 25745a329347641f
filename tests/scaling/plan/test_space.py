"""Promises of the space of architectures: the family's rule, valid members, and nothing that a law cannot judge."""

import dataclasses
import random

import numpy as np
import pytest

from mobilemoe.errors import UsageError
from mobilemoe.presets import family_kv_heads, family_member, preset
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.plan.space import Space, config_of, departure, kv_choices


def find(space: Space, config) -> list[tuple]:
    """Where the space has this model: (shapes, index)."""
    found = []
    for shapes in space.shapes():
        fields = (f.name for f in dataclasses.fields(shapes) if isinstance(getattr(shapes, f.name), np.ndarray))
        same = np.ones(len(shapes), bool)
        for name in fields:
            if hasattr(config, name):
                same &= getattr(shapes, name) == getattr(config, name)
        found += [(shapes, int(index)) for index in np.flatnonzero(same) if shapes.ffn_type == config.ffn_type]
    return found


@pytest.mark.parametrize("name", ["S", "M", "L"])
def test_the_published_models_are_in_the_space_and_are_its_habit(name):
    [(shapes, index)] = find(Space(), preset(name))
    assert config_of(shapes, index, 8192) == preset(name)
    assert departure(shapes)[index] == 0


def test_the_default_space_has_more_than_100_000_models_and_none_twice():
    columns = []
    for shapes in Space().shapes():
        names = (
            "experts",
            "granularity",
            "shared",
            "hidden_size",
            "num_hidden_layers",
            "head_dim",
            "num_key_value_heads",
        )
        columns.append(np.stack([getattr(shapes, name) for name in names]))
    every = np.concatenate(columns, axis=1)
    assert every.shape[1] >= 1e5
    assert np.unique(every, axis=1).shape == every.shape


def test_every_member_is_a_valid_model_with_the_family_s_experts():
    drawn = random.Random(0)
    for shapes in Space(tied=(True, False)).shapes():
        for index in drawn.sample(range(len(shapes)), 40):
            config = config_of(shapes, index, 4096)  # which checks its rules
            e, g, s = (int(getattr(shapes, name)[index]) for name in ("experts", "granularity", "shared"))
            member = family_member(config.hidden_size, expansion=e, granularity=g, shared=bool(s))
            for name in ("num_local_experts", "num_experts_per_tok", "intermediate_size", "intermediate_size_mlp"):
                assert getattr(config, name) == getattr(member, name) == getattr(shapes, name)[index]
            assert config.num_attention_heads * config.head_dim == config.hidden_size
            assert config.hidden_size / (config.num_hidden_layers - 1) >= 20  # layers are rounded up
            assert config.hidden_size / config.num_hidden_layers <= 80
            if s:
                assert config.num_experts_per_tok == g - g // 2


def test_kv_heads_divide_the_heads_and_are_shared_by_two_to_eight():
    assert kv_choices(12) == [2, 3, 4, 6]
    assert kv_choices(16) == [2, 4, 8]
    assert kv_choices(13) == [1]  # a prime number: the family has one
    for heads in range(2, 65):
        assert family_kv_heads(heads) == family_member(64 * max(heads, 4)).num_key_value_heads or heads < 4
        assert family_kv_heads(heads) in kv_choices(heads)


def test_a_long_context_is_one_that_the_model_may_have():
    [(shapes, index)] = find(Space(), preset("S"))
    assert config_of(shapes, index, 4096).max_position_embeddings == 8192
    assert config_of(shapes, index, 32768).max_position_embeddings == 32768


def test_dials_of_which_a_law_knows_nothing_do_not_vary():
    joint = Space().known_to(published("paper-joint"))
    assert (joint.experts, joint.granularities, joint.shared) == (Space().experts, Space().granularities, (0, 1))
    by_experts = Space().known_to(published("paper-E"))
    assert (by_experts.experts, by_experts.granularities, by_experts.shared) == (Space().experts, (8,), (1,))
    assert Space().known_to(published("chinchilla")).experts == (1,)
    narrow = dataclasses.replace(published("paper-joint"), domain={"experts": (2.0, 8.0)})
    assert Space().known_to(narrow).experts == (2, 3, 4, 6, 8)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"vocabularies": (0,)}, "vocabulary holds 0, but must be above 0"),
        ({"experts": ()}, "experts is empty"),
        ({"weight_bits": (4, 5)}, "weight_bits holds 5, but must be of 4, 8, 16"),
        ({"kv_bits": (4,)}, "kv_bits holds 4"),
        ({"widths": (300,)}, "widths holds 300, but must be multiples of 64"),
        ({"vocabularies": (96, 96)}, "vocabulary holds 96 more than once"),
    ],
)
def test_a_space_that_cannot_be_is_refused(wrong, words):
    with pytest.raises(UsageError, match=words):
        Space(**wrong)
