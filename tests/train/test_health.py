"""Router health: counts that are exact, add up over processes and windows, and say what they claim."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from mobilemoe.model import MobileMoE
from mobilemoe.model.router import Routing
from mobilemoe.presets import family_member
from mobilemoe.train.health import SAMPLE, RouterHealth, step_row, write_report

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("one_thread")

EXPERTS, LAYERS = 4, 2
TINY = dataclasses.replace(
    family_member(32, expansion=2, granularity=4, layers=LAYERS, vocab_size=96),
    num_local_experts=EXPERTS,
    num_experts_per_tok=2,
)


def layers(config=TINY):
    model = MobileMoE(config)
    model.initialize(0)
    return model.moe_layers()


def routing(experts_NA, logits_NE=None):
    experts_NA = torch.tensor(experts_NA)
    logits_NE = torch.zeros(len(experts_NA), EXPERTS) if logits_NE is None else logits_NE
    return Routing(logits_NE, experts_NA, torch.ones(experts_NA.shape))


def random_pass(seed, tokens=300):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(tokens, EXPERTS, generator=generator) for _ in range(LAYERS)]
    routings = [Routing(x_NE, x_NE.topk(2).indices, torch.ones(tokens, 2)) for x_NE in logits]
    return routings, torch.randint(3, (tokens,), generator=generator)


def test_loads_are_counted_by_layer_domain_and_expert():
    health = RouterHealth(layers(), ["books", "chat", "code"])
    health.add([routing([[0, 1], [0, 1], [0, 2]]), routing([[3, 0], [3, 1], [3, 2]])], torch.tensor([0, 2, 2]))
    health.add([routing([[1, 0]]), routing([[3, 0]])], torch.tensor([0]))
    assert health.load_LE.tolist() == [[4, 3, 1, 0], [2, 1, 1, 4]]
    report = health.report()
    assert report["load"] == [[4, 3, 1, 0], [2, 1, 1, 4]]
    assert report["load_by_domain"] == {
        "books": [[2, 2, 0, 0], [2, 0, 0, 2]],
        "chat": [[0] * 4] * 2,
        "code": [[2, 1, 1, 0], [0, 1, 1, 2]],
    }
    assert report["dead"] == [1, 0]


def test_the_row_says_how_even_the_load_is():
    moe = layers()
    moe[1].expert_bias.copy_(torch.tensor([0.5, -0.25, 0.25, -0.5]))
    health = RouterHealth(moe, ["text"])
    even, uneven = [[0, 1], [2, 3]], [[0, 1], [0, 1]]
    health.add([routing(even), routing(uneven)], torch.tensor([0, 0]))
    row = step_row(health.end_step().tolist())
    assert row["load_variation"] == pytest.approx(0.5)
    assert row["dead_experts"] == 2
    router = row["router"]
    assert router["load_variation"] == [0.0, 1.0]
    assert router["largest_load"] == [1.0, 2.0]
    assert router["dead"] == [0, 2]
    assert router["load_entropy"] == [1.0, 0.5]  # two of four, evenly: ln 2 / ln 4
    assert router["bias_min"] == [0.0, -0.5]
    assert router["bias_max"] == [0.0, 0.5]
    assert router["bias_std"] == pytest.approx([0.0, np.std([0.5, -0.25, 0.25, -0.5])], rel=1e-3)
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_the_entropy_of_scores_is_that_of_their_shares(score):
    routings, domains_N = random_pass(1, SAMPLE)
    health = RouterHealth(layers(dataclasses.replace(TINY, router_score=score)), ["a", "b", "c"])
    health.add(routings, domains_N)
    for layer, found in zip(routings, step_row(health.end_step().tolist())["router"]["score_entropy"], strict=True):
        scores_NE = layer.logits_NE.sigmoid() if score == "sigmoid" else layer.logits_NE.softmax(-1)
        share_NE = scores_NE / scores_NE.sum(dim=1, keepdim=True)
        expected = -(share_NE * share_NE.log()).sum(dim=1).mean() / math.log(EXPERTS)
        assert found == pytest.approx(expected.item(), rel=1e-3)


def test_the_entropy_of_scores_is_zero_where_one_expert_is_all_and_never_no_number():
    health = RouterHealth(layers(), ["text"])
    sure_NE = torch.tensor([[0.0, -300.0, -300.0, -300.0]] * 3)
    health.add([routing([[0, 1]] * 3, sure_NE), routing([[0, 1]] * 3, sure_NE - 500)], torch.zeros(3, dtype=torch.long))
    assert step_row(health.end_step().tolist())["router"]["score_entropy"] == [0.0, 0.0]


def test_a_step_ends_with_its_row_and_a_window_with_its_report():
    health, alone = (RouterHealth(layers(), ["a", "b", "c"]) for _ in range(2))
    rows = []
    for seed in (1, 2):
        health.add(*random_pass(seed))
        rows.append(step_row(health.end_step().tolist()))
        alone.add(*random_pass(seed))
        assert step_row(alone.end_step().tolist()) == rows[-1]
        assert alone.report()["load"] != [[0] * EXPERTS] * LAYERS
    assert rows[0] != rows[1]
    whole = RouterHealth(layers(), ["a", "b", "c"])
    for seed in (1, 2):
        whole.add(*random_pass(seed))
    assert health.report() == whole.report()
    assert health.load_LE.sum() == 0
    health.add(*random_pass(3))
    health.end_step()
    alone.add(*random_pass(3))
    assert health.report() == alone.report()


def test_processes_that_sum_their_counters_say_what_one_would():
    one, *parts = (RouterHealth(layers(), ["a", "b", "c"]) for _ in range(3))
    for seed, part in enumerate(parts):
        part.add(*random_pass(seed))
        one.add(*random_pass(seed))
    for ours, theirs in zip(parts[0].counters, parts[1].counters, strict=True):
        ours += theirs
    assert torch.equal(parts[0].load_LE, one.load_LE)
    assert step_row(parts[0].end_step().tolist()) == step_row(one.end_step().tolist())


def test_models_without_a_bias_report_none():
    health = RouterHealth(layers(dataclasses.replace(TINY, router_score="softmax")), ["a", "b", "c"])
    health.add(*random_pass(1))
    assert step_row(health.end_step().tolist())["router"]["bias_max"] == [0.0] * LAYERS
    assert health.report()["bias"] is None


def test_the_report_is_a_json_file_of_the_run(tmp_path):
    moe = layers()
    health = RouterHealth(moe, ["a", "b", "c"])
    health.add(*random_pass(1))
    report = health.report()
    write_report(tmp_path, 7, report)
    assert json.loads((tmp_path / "router.json").read_text()) == {"step": 7, **report}
    assert report["bias"] == [[0.0] * EXPERTS] * LAYERS


def test_counting_keeps_no_graph():
    model = MobileMoE(TINY)
    model.initialize(0)
    health = RouterHealth(model.moe_layers(), ["text"])
    _, routings = model.hidden(torch.zeros(1, 5, dtype=torch.long))
    assert routings[0].logits_NE.requires_grad
    health.add(routings, torch.zeros(5, dtype=torch.long))
    assert not any(counter.requires_grad for counter in health.counters)
