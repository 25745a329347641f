"""When numbers go wrong: a spike is skipped, too many stop the run, and what is not finite is named with its text."""

import json
import math

import numpy as np
import pytest
import torch

from mobilemoe.data.loader import Batch
from mobilemoe.errors import TrainError
from mobilemoe.model import MobileMoE
from mobilemoe.presets import family_member
from mobilemoe.train.guard import SpikeGuard, explain_nonfinite

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("one_thread")

TINY = family_member(32, expansion=2, granularity=4, layers=2, vocab_size=96)
POISON = 7  # a token that nothing but the planted faults uses


# ---- spikes


def calm(factor=3.0, limit=4, steps=20):
    guard = SpikeGuard(factor, limit)
    assert not any(guard.skips(1.0 + 0.01 * step, step) for step in range(1, steps + 1))
    return guard


@pytest.mark.parametrize("norm", [3.4, 1e30, math.inf, math.nan])
def test_a_norm_far_above_the_median_is_skipped_and_is_not_remembered(norm):
    guard = calm()
    before = guard.state_dict()["norms"]
    assert guard.skips(norm, 21)
    assert guard.state_dict() == {"norms": before, "skipped": 1}
    assert not guard.skips(3.3, 22)  # 3 times the median of 1.105 is 3.315
    assert guard.state_dict()["skipped"] == 0


def test_the_median_is_of_the_last_fifty_steps_taken():
    guard = calm()
    for step in range(21, 71):
        assert not guard.skips(2.5, step)
    assert guard.state_dict()["norms"] == [2.5] * 50
    assert not guard.skips(7.4, 71)


def test_the_first_steps_are_not_judged_unless_they_are_no_numbers():
    guard = SpikeGuard(2.0, 4)
    assert not any(guard.skips(norm, 1) for norm in (100.0, 1.0, 50.0))
    assert guard.skips(math.nan, 4)


def test_too_many_in_a_row_stop_the_run_with_what_to_do():
    guard = calm(limit=4)
    for _ in range(2):  # three, and one that is taken, begin the count anew
        assert [guard.skips(9.0, 30), guard.skips(9.0, 31), guard.skips(9.0, 32)] == [True] * 3
        assert not guard.skips(1.0, 33)
    for step in (41, 42, 43):
        guard.skips(9.0, step)
    with pytest.raises(TrainError, match=r"4 steps in a row .* up to step 44.* norm is 9.*lower train.learning_rate"):
        guard.skips(9.0, 44)


def test_without_a_factor_nothing_is_skipped():
    guard = SpikeGuard(None, 1)
    assert not any(guard.skips(norm, 1) for norm in (1.0, 1e9, math.inf))


def test_a_saved_guard_goes_on_as_if_nothing_had_happened():
    norms = [abs(math.sin(step)) ** 4 + 0.1 for step in range(200)]
    whole, first, second = SpikeGuard(2.0, 50), SpikeGuard(2.0, 50), SpikeGuard(2.0, 50)
    expected = [whole.skips(norm, 1) for norm in norms]
    assert 10 < sum(expected) < 190
    found = [first.skips(norm, 1) for norm in norms[:77]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert found + [second.skips(norm, 1) for norm in norms[77:]] == expected


# ---- what is not finite


@pytest.fixture
def model():
    model = MobileMoE(TINY)
    model.initialize(0)
    return model.train()


def batch(rows=4, tokens=6, poison_at=None):
    ids_BT = np.random.default_rng(0).integers(10, 96, (rows, tokens))
    if poison_at is not None:
        ids_BT[poison_at] = POISON
    domains_BT = np.repeat(np.array([[0], [1]] * (rows // 2)), tokens, axis=1)
    positions_BT = np.broadcast_to(np.arange(tokens), ids_BT.shape).copy()
    return Batch(ids_BT, np.roll(ids_BT, -1, 1), positions_BT, np.zeros_like(ids_BT), domains_BT)


def count_hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def explain(model, whole):
    parts = [Batch(*(field[start : start + 2] for field in whole)) for start in range(0, len(whole.tokens_BT), 2)]

    def backward(part):
        logits_BTV = model(torch.from_numpy(part.tokens_BT))
        loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), torch.from_numpy(part.targets_BT).flatten())
        loss.backward()

    hooks = count_hooks(model)
    sentence = explain_nonfinite(
        model,
        parts,
        backward,
        step=12,
        loss=math.nan,
        norm=1.0,
        domains=("books", "code"),
        begins={"books": [0, 1, 2, 3], "code": (0, 0, 0, 9)},
    )
    assert len(sentence.splitlines()) == 1
    assert sentence.startswith("step 12 gave loss nan and gradient norm 1.0: ")
    assert "books [0, 1, 2, 3], code [0, 0, 0, 9]" in sentence
    assert all(parameter.grad is None for parameter in model.parameters())
    assert count_hooks(model) == hooks
    return sentence


def test_a_weight_that_is_not_finite_is_named(model):
    with torch.no_grad():
        model.model.layers[1].feed_forward.experts.down_proj[3, 2, 1] = math.inf
    assert "the weight model.layers.1.feed_forward.experts.down_proj was not finite" in explain(model, batch())


def test_a_selection_bias_that_is_not_finite_is_named(model):
    model.model.layers[0].feed_forward.expert_bias[2] = math.nan
    assert "the weight model.layers.0.feed_forward.expert_bias was not finite" in explain(model, batch())


@pytest.fixture
def plant(model):
    """`plant(name, change)`: the output of that module is changed, a mask saying where the poison is."""

    def arrange(name, change):
        seen = {}
        model.model.embed_tokens.register_forward_hook(lambda _m, inputs, _o: seen.update(mask=inputs[0] == POISON))

        def hook(_module, _inputs, output):
            return change(output, seen["mask"].view(*output.shape[:-1], 1))

        model.get_submodule(name).register_forward_hook(hook)

    return arrange


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.1.feed_forward.shared_expert.up_proj"],
)
@pytest.mark.parametrize("row", [2, 3])
def test_the_first_output_that_is_not_finite_is_named_with_row_token_and_source(model, plant, name, row):
    plant(name, lambda output, mask: output.masked_fill(mask, math.nan))
    sentence = explain(model, batch(poison_at=(row, 4)))
    source = ("books", "code")[row % 2]
    assert (
        f"output that is not finite is that of {name}, in row {row} of the batch at token 4, of {source};" in sentence
    )


def test_weights_that_make_an_overflow_are_found_by_the_output(model):
    with torch.no_grad():
        model.model.layers[1].feed_forward.shared_expert.up_proj.weight.fill_(3e38)
    sentence = explain(model, batch())
    assert "is that of model.layers.1.feed_forward.shared_expert.up_proj, in row 0 of the batch at token 0" in sentence


def test_the_first_gradient_is_named_where_every_output_is_finite(model, plant):
    def poison_gradient(output, mask):
        output.register_hook(lambda grad: grad.masked_fill(mask, math.inf))
        return output

    plant("model.layers.1.self_attn.q_proj", poison_gradient)
    sentence = explain(model, batch(poison_at=(2, 1)))
    assert "gradient that is not finite is that of model.layers.1.self_attn.q_proj.weight, from row 2 on" in sentence


def test_a_fault_that_does_not_show_again_is_said_to_be_one_of_sums(model):
    assert "computed again, every tensor here is finite" in explain(model, batch())


def test_inside_of_what_is_compiled_outputs_are_seen_too(model, plant):
    name = "model.layers.1.feed_forward.shared_expert"
    plant(f"{name}.up_proj", lambda output, mask: output.masked_fill(mask, math.nan))
    model.get_submodule(name).compile(backend="eager")
    model(torch.zeros(2, 6, dtype=torch.long))
    sentence = explain(model, batch(poison_at=(3, 0)))
    assert f"is that of {name}.up_proj, in row 3 of the batch at token 0, of code" in sentence
