"""A plan's recipe: TOML that says what was planned, changes only what differs from the preset, and fits the tokens."""

import dataclasses
import tomllib

import pytest

from mobilemoe.presets import preset
from mobilemoe.profile.device import Device
from mobilemoe.scaling.plan.limits import Constraints
from mobilemoe.scaling.plan.plan import Plan, plan
from mobilemoe.scaling.plan.recipe import LEAST_STEPS, LINE, MOST_ROWS, SEQUENCE, batch, recipe_text
from mobilemoe.scaling.plan.space import Space
from scaling_runs import PHONE

ONLY_S = Space(experts=(8,), granularities=(8,), shared=(1,), widths=(768,), ratios=(40,), head_dims=(64,))


def planned(space: Space = ONLY_S, device: Device | None = None, **limits) -> Plan:
    return plan(Constraints(**limits), space=space, device=device)


def read(text: str) -> dict:
    return tomllib.loads(text)


def comments(text: str) -> str:
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    assert max(map(len, lines)) <= LINE
    return " ".join(lines)


def test_a_model_that_is_the_preset_changes_nothing_of_it():
    found = planned(tokens=1e11, context=preset("S").max_position_embeddings)
    recipe = read(recipe_text(found, "mine"))
    assert recipe["name"] == "mine"
    model = recipe["model"]
    assert model["preset"] == "S"
    same = {"num_key_value_heads": found.candidates[0].config.num_key_value_heads}  # the nearest that the limits allow
    changed = model.get("changes", {})
    assert all(value == same.get(name, getattr(found.candidates[0].config, name)) for name, value in changed.items())
    assert {"hidden_size", "num_hidden_layers", "num_local_experts", "vocab_size"}.isdisjoint(changed)


def test_changes_are_exactly_the_fields_that_differ():
    space = dataclasses.replace(ONLY_S, widths=(512,), experts=(4,), tied=(False,))
    config = planned(space, tokens=1e10).candidates[0].config
    changes = read(recipe_text(planned(space, tokens=1e10), "x"))["model"]["changes"]
    base = preset("S")
    assert changes["hidden_size"] == 512
    assert changes["tie_word_embeddings"] is False
    for name, value in changes.items():
        assert value == getattr(config, name) != getattr(base, name), name
    rebuilt = dataclasses.replace(base, **changes)
    assert (rebuilt.num_local_experts, rebuilt.intermediate_size) == (config.num_local_experts, 256)


def test_another_vocabulary_asks_for_a_tokenizer_of_its_size_and_keeps_no_control_ids():
    space = dataclasses.replace(ONLY_S, vocabularies=(32_000,))
    text = recipe_text(planned(space, tokens=1e10), "x")
    recipe = read(text)
    assert recipe["model"]["changes"]["vocab_size"] == 32_000
    assert not any(name.endswith("_token_id") for name in recipe["model"]["changes"])
    assert recipe["tokenizer"]["path"] == "tokenizer"
    assert "32,000 ids" in text
    assert read(recipe_text(planned(tokens=1e10), "x"))["tokenizer"]["path"] == "facebook/MobileMoE-S-Base"


def test_names_are_quoted():
    assert read(recipe_text(planned(tokens=1e10), 'a "name" \\ with \u00e9'))["name"] == 'a "name" \\ with \u00e9'


@pytest.mark.parametrize("tokens", [1e6, 1e8, 1e10, 5e11])
def test_steps_batches_and_schedule_fit_the_tokens(tokens):
    train = read(recipe_text(planned(tokens=tokens), "x"))["train"]
    assert train["steps"] * train["batch_size"] * train["sequence_length"] == pytest.approx(tokens, rel=0.05)
    assert train["micro_batch_size"] <= train["batch_size"]
    assert train["warmup_steps"] <= train["steps"] / 10
    assert 1 <= train["checkpoint_every"] <= train["steps"]
    assert train["final_learning_rate"] == train["learning_rate"] / 10
    assert train["capacity_factor"] == 1.5


def test_a_dense_model_has_no_capacity():
    dense = dataclasses.replace(ONLY_S, experts=(1,), granularities=(1,), shared=(0,))
    assert "capacity_factor" not in read(recipe_text(planned(dense, tokens=1e10), "x"))["train"]


def test_the_largest_batch_that_leaves_steps_enough_is_taken():
    rows, steps = batch(LEAST_STEPS * MOST_ROWS * SEQUENCE)
    assert (rows, steps) == (MOST_ROWS, LEAST_STEPS)
    assert batch(LEAST_STEPS * MOST_ROWS * SEQUENCE - SEQUENCE)[0] == MOST_ROWS // 2
    assert batch(1)[1] == 1  # never none


def test_shares_of_the_text_are_the_papers():
    mixture = read(recipe_text(planned(tokens=1e10), "x"))["data"]["mixture"]
    assert sum(source["weight"] for source in mixture) == pytest.approx(100)
    assert len({source["name"] for source in mixture}) == len(mixture)


def test_the_comments_say_limits_budget_and_what_is_expected():
    found = planned(device=PHONE, memory=2e9, decode=5, train_flops=1e20, prompt=512, context=2048)
    first = found.candidates[0]
    text = comments(recipe_text(found, "x"))
    assert "Limits: memory 2.00 GB, decode 5 tok/s, on phone; prompt 512, context 2,048." in text
    assert f"Training: {first.tokens / 1e9:.4g} B tokens, of 1e+20 FLOPs." in text
    assert f"{first.decode:.0f} tok/s, first token {first.ttft:.2f} s" in text
    assert f"loss {first.loss:.3f} ({first.low:.3f} to {first.high:.3f})" in text
    plain = comments(recipe_text(planned(tokens=1e11), "x"))
    assert "Limits: none; prompt" in plain
    assert "tok/s" not in plain


def test_what_lies_outside_the_law_is_loud_in_the_recipe_too():
    text = comments(recipe_text(planned(tokens=6e12), "x"))
    assert "OUTSIDE THE LAW'S DOMAIN: tokens is 6000B" in text
    wider = dataclasses.replace(ONLY_S, widths=(1024,))
    assert "OUTSIDE" not in comments(recipe_text(planned(wider, tokens=3e11), "x"))
