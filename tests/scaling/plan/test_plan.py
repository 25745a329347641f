"""Promises of `scaling.plan`: limits are kept, the law decides nothing that it does not know."""

import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from mobilemoe import accounting
from mobilemoe.errors import UsageError
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.law.runs import Points
from mobilemoe.scaling.plan.candidates import WEIGHT_BITS_PRIOR
from mobilemoe.scaling.plan.limits import LIMITS, Constraints
from mobilemoe.scaling.plan.plan import plan
from mobilemoe.scaling.plan.recipe import LEAST_STEPS, SEQUENCE, batch
from mobilemoe.scaling.plan.report import front, write_report
from mobilemoe.scaling.plan.space import Space
from scaling_runs import HABIT, PHONE

SMALL = Space(experts=(1, 2, 4, 8, 16), granularities=(1, 8, 16), widths=(512, 768, 1024, 1280))
ASKED = Constraints(memory=1e9, decode=40, ttft=3, train_flops=8e20)
JOINT = published("paper-joint")


# ---- what a plan is


def test_every_candidate_keeps_to_every_limit_and_its_figures_are_those_of_its_config():
    found = plan(ASKED, device=PHONE)
    assert len(found.candidates) == 10
    for c in found.candidates:
        assert c.memory <= 1e9
        assert c.decode >= 40
        assert c.ttft <= 3
        assert c.weights == accounting.int4_file_bytes(c.config)
        assert c.kv == accounting.kv_bytes(c.config, 4096)
        assert c.n_total == accounting.total_parameters(c.config)
        assert c.n_active == accounting.active_parameters(c.config)
        assert c.flops == 2 * c.n_active
        assert c.decode == pytest.approx(1 / PHONE.decode_seconds(c.config, 4096))
        assert c.ttft == pytest.approx(PHONE.prefill_seconds(c.config, 1024))
        assert 6 * c.n_active * c.tokens == pytest.approx(8e20)
        point = Points(
            n_active=c.n_active / 1e9,
            tokens=c.tokens / 1e9,
            experts=c.experts,
            granularity=c.granularity,
            shared=c.shared,
        )
        assert c.loss == pytest.approx(float(JOINT.loss(point)), abs=1e-12)
        assert (c.low, c.high) == pytest.approx((c.loss - JOINT.rmse, c.loss + JOINT.rmse))
        assert bool(c.outside) == bool(JOINT.outside(point))


def test_candidates_are_ranked_and_no_two_share_their_dials():
    found = plan(ASKED, device=PHONE)
    scores = [c.score for c in found.candidates]
    assert scores == sorted(scores)
    assert len({(c.experts, c.granularity, c.shared) for c in found.candidates}) == len(found.candidates)
    assert len(plan(ASKED, device=PHONE, top=3).candidates) == 3


def test_the_first_has_the_least_score_of_a_search_one_by_one_and_is_equivalent_to_the_best():
    found = plan(ASKED, device=PHONE, space=SMALL)
    t, scores, predicted = found.table, [], []
    for place in range(len(t)):
        if t.memory[place] <= 1e9 and t.decode[place] >= 40 and t.ttft[place] <= 3:
            prior = WEIGHT_BITS_PRIOR[4] + (0.01 if t.granularity[place] == 16 else 0)
            predicted.append(found.losses[place] + prior)
            scores.append(predicted[-1] + JOINT.rmse * min(1, t.departure[place]))
    first = found.candidates[0]
    assert first.score == pytest.approx(round(min(scores), 3))
    assert first.loss + first.prior + first.preference == pytest.approx(first.score, abs=0.0006)
    assert first.equivalent
    assert first.loss + first.prior <= min(predicted) + JOINT.rmse
    assert found.equivalent.least == pytest.approx(min(predicted))
    assert found.equivalent.count == sum(value <= min(predicted) + JOINT.rmse for value in predicted)


@pytest.mark.parametrize(
    ("changes", "decimals", "error"),
    [({}, 3, 0.0076), ({"forecast_rmse": 0.0863}, 2, 0.0863), ({"rmse": 0.3}, 1, 0.3), ({"rmse": 0.0}, 4, 0.0)],
)
def test_the_law_s_error_says_who_is_equivalent_and_how_many_digits_a_loss_has(changes, decimals, error):
    found = plan(ASKED, device=PHONE, space=SMALL, law=dataclasses.replace(JOINT, **changes))
    assert (found.digits, found.equivalent.error) == (decimals, error)
    assert found.equivalent.error_of == ("RMSE of its forecast" if "forecast_rmse" in changes else "RMSE of its fit")
    assert all(c.score == round(c.score, decimals) for c in found.candidates)
    allowed = found.table.allowed(ASKED)
    predicted = (found.losses + found.table.prior)[allowed]
    assert found.equivalent.count == (predicted <= predicted.min() + error).sum()


def test_among_equal_scores_the_cheapest_in_the_tightest_limit_comes_first():
    law = dataclasses.replace(JOINT, rmse=0.3)  # one decimal, so that many scores are equal
    asked = Constraints(flops=1e9, tokens=3e11)
    found = plan(asked, space=SMALL, law=law, top=100)
    best = [c for c in found.candidates if c.score == found.candidates[0].score and c.equivalent]
    assert len(best) > 3
    assert [c.flops for c in best] == sorted(c.flops for c in best)


def test_the_whole_space_takes_less_than_five_seconds():
    started = time.process_time()
    found = plan(ASKED, device=PHONE)
    assert time.process_time() - started < 5
    assert len(found.table) >= 1e5


def test_planning_needs_neither_torch_nor_scipy_nor_matplotlib():
    script = (
        "import sys\nfrom mobilemoe.scaling import Constraints, plan\n"
        "from mobilemoe.scaling.plan.recipe import recipe_text\n"
        "recipe_text(plan(Constraints(memory=1e9, flops=6e8)), 'x')\n"
        "print([name for name in ('torch', 'scipy', 'matplotlib', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_is_json():
    found = plan(ASKED, device=PHONE, space=SMALL)
    values = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert values["candidates"][0]["memory"] == found.candidates[0].memory
    assert values["considered"] == len(found.table)
    assert values["device"] == "phone"
    without = plan(Constraints(memory=1e9, flops=6e8), space=SMALL).as_json()
    assert without["candidates"][0]["decode"] is None
    json.dumps(without, allow_nan=False)


# ---- what the law does not know


def test_each_candidate_has_the_least_score_of_its_e_g_and_s_and_the_family_s_habits_where_limits_leave_room():
    found = plan(Constraints(flops=0.6e9, tokens=300e9))
    table, allowed = found.table, found.table.allowed(found.constraints)
    scores = found.losses + table.prior + table.preference(JOINT.rmse)
    for c in found.candidates:
        same = (
            allowed & (table.experts == c.experts) & (table.granularity == c.granularity) & (table.shared == c.shared)
        )
        assert c.score == pytest.approx(round(scores[same].min(), 3))
        assert c.departure < 0.3


def test_shapes_are_those_that_hardware_likes():
    table = plan(ASKED, device=PHONE).table
    assert not (table.width % 128).any()
    assert min(shapes.num_key_value_heads.min() for shapes in table.shapes) == 2


def test_a_departure_from_the_family_s_depth_is_said():
    shallow = plan(ASKED, device=PHONE, space=dataclasses.replace(HABIT, ratios=(60,)))
    assert shallow.candidates[0].departure > 0.3
    assert any("depth or heads are not the family's" in note for note in shallow.notes)


def test_tying_and_vocabularies_of_unknown_text_are_ranked_apart():
    space = dataclasses.replace(SMALL, vocabularies=(300_000, 128_256), tied=(True, False))
    found = plan(Constraints(memory=1e9, flops=6e8), space=space, top=2)
    kinds = [(c.config.vocab_size, c.config.tie_word_embeddings) for c in found.candidates]
    assert kinds == [(v, t) for t in (True, False) for v in (300_000, 128_256) for _ in range(2)]
    assert any("cannot be compared" in note for note in found.notes)
    assert found.vocabularies == ()
    untied = found.candidates[-1]
    assert untied.flops == accounting.decode_flops(untied.config) == 2 * untied.n_active


def test_bits_carry_a_prior_that_is_said():
    space = dataclasses.replace(SMALL, weight_bits=(4, 8, 16), kv_bits=(8, 16))
    found = plan(Constraints(memory=3e9, flops=0.6e9), space=space, device=PHONE, top=100)
    first = found.candidates[0]
    assert (first.weight_bits, first.prior) == (8, 0)  # memory is no question here
    four = next(c for c in found.candidates if c.weight_bits == 4 and c.granularity == 8)
    assert four.prior == WEIGHT_BITS_PRIOR[4] > 0
    assert any(note.startswith("prior: INT4") for note in found.notes)
    for c in found.candidates:
        assert c.weights == accounting.file_bytes(c.config, c.weight_bits)
        assert c.kv == accounting.kv_bytes(c.config, 4096, c.kv_bits)
    same = {
        c.weight_bits: c for c in found.candidates if (c.experts, c.granularity, c.shared, c.kv_bits) == (8, 8, 1, 8)
    }
    assert same[4].decode > same[8].decode > same[16].decode


def test_a_law_without_the_embedding_is_asked_without_it():
    bare = dataclasses.replace(JOINT, counts_embedding=False)
    found = plan(Constraints(memory=1e9, train_flops=8e20), law=bare, space=SMALL)
    c = found.candidates[0]
    n = (c.n_active - c.config.vocab_size * c.config.hidden_size) / 1e9
    point = Points(n_active=n, tokens=c.tokens / 1e9, experts=c.experts, granularity=c.granularity, shared=c.shared)
    assert c.loss == pytest.approx(float(JOINT.loss(point)))
    assert 6 * c.n_active * c.tokens == pytest.approx(8e20)  # the training pays for it all the same


def test_what_lies_outside_the_law_is_loud():
    far = plan(Constraints(memory=1e9, flops=6e8, tokens=6e12), space=SMALL)
    assert all(c.outside for c in far.candidates)
    assert far.notes[0].startswith("OUTSIDE THE LAW'S DOMAIN")
    assert "6000B" in far.notes[0]
    inside = plan(Constraints(flops=1.2e9, tokens=300e9), space=SMALL)
    assert not inside.candidates[0].outside
    assert not inside.notes[0].startswith("OUTSIDE")


def test_what_is_assumed_is_said():
    text = " ".join(plan(Constraints(memory=1e9, flops=6e8), space=SMALL).notes)
    for words in (
        "500 B tokens are assumed",
        "prior in the law",
        "1.23 GB",
        "RMSE of the fit",
        "width / layers",
        "g = 16",
    ):
        assert words in text
    assert "best dense model" in text
    assert "as wide as the space goes" in " ".join(plan(Constraints(flops=9e9, tokens=3e11), space=SMALL).notes)


# ---- what limits cost


def test_more_of_a_limit_buys_what_a_plan_with_more_of_it_has():
    found = plan(ASKED, device=PHONE, space=SMALL)
    only_second = plan(
        Constraints(memory=30e6, flops=9e9),
        space=dataclasses.replace(SMALL, vocabularies=(256_000, 32_000), widths=(256, 512)),
    )
    assert {c.config.vocab_size for c in only_second.candidates} == {32_000}
    assert all(np.isfinite(relief.buys) for relief in only_second.reliefs)
    assert [relief.limit for relief in found.reliefs] == ["memory", "decode", "ttft", "train_flops"]
    scores = found.losses + found.table.prior + found.table.preference(JOINT.rmse)
    now = scores[found.table.allowed(ASKED)].min()
    for relief in found.reliefs[:3]:
        more = dataclasses.replace(ASKED, **{relief.limit: relief.relaxed_to})
        assert relief.buys == pytest.approx(now - scores[found.table.allowed(more)].min())
        assert relief.buys >= 0
    budget = found.reliefs[3]
    assert budget.relaxed_to == pytest.approx(8.8e20)
    assert 0 < budget.buys < 0.01


def test_the_runner_up_is_told_why_it_lost():
    found = plan(Constraints(memory=1e9, flops=0.6e9, tokens=300e9), space=SMALL)
    first, second = found.candidates[:2]
    assert f"by {second.score - first.score:.3f} nats" in found.runner_up
    worse = found.runner_up.partition("worse: ")[2]
    assert ("memory" in worse) == (second.memory > 1.01 * first.memory)


def test_the_front_is_all_that_nothing_else_beats():
    rng = np.random.default_rng(0)
    costs, losses = rng.random(200), rng.random(200)
    xs, ys = front(costs, losses)
    points = list(zip(costs, losses, strict=True))
    unbeaten = {(x, y) for x, y in points if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)}
    assert {*zip(xs, ys, strict=True)} == unbeaten
    assert np.all(np.diff(xs) > 0)
    assert np.all(np.diff(ys) < 0)


def test_an_infeasible_plan_says_for_each_limit_how_much_is_missing():
    one = Space(experts=(8,), granularities=(8,), shared=(1,), widths=(1024,), ratios=(40,), head_dims=(64,))
    table = plan(Constraints(), space=one, device=PHONE).table
    smallest, fastest = table.memory.min(), table.decode.max()
    found = plan(Constraints(memory=1.0e9, decode=5), space=one, device=PHONE)
    assert found.candidates == ()
    assert found.reliefs == ()
    assert found.infeasible[0] == (
        f"the smallest that decodes at 5 tok/s needs {smallest / 1e9:.2f} GB, "
        f"{(smallest - 1e9) / 1e9:.2f} GB more than --memory"
    )
    assert found.infeasible[1] == "relaxing --decode alone does not help"
    slow = plan(Constraints(memory=3e9, decode=1000), space=one, device=PHONE).infeasible
    assert slow[0] == "relaxing --memory alone does not help" or slow[-1] == "relaxing --memory alone does not help"
    missing = next(line for line in slow if "tok/s" in line)
    assert missing == (
        f"the fastest that fits in 3.00 GB decodes at {fastest:.3g} tok/s, "
        f"{1000 - fastest:.3g} tok/s less than --decode"
    )


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_is_no_positive_number_is_refused(name, value):
    with pytest.raises(UsageError, match=f"{name} is .*must be a number above 0"):
        Constraints(**{name: value})


def test_calls_that_cannot_mean_anything_are_refused():
    with pytest.raises(UsageError, match="either `train_flops` or `tokens`"):
        Constraints(train_flops=1e20, tokens=1e9)
    with pytest.raises(UsageError, match="needs a `device`"):
        plan(Constraints(decode=40))
    with pytest.raises(UsageError, match="top is 0"):
        plan(Constraints(), top=0)


@pytest.mark.parametrize(
    "limits", [{"train_flops": 1e-300}, {"train_flops": 1.0}, {"train_flops": 1e12}, {"tokens": 1}]
)
def test_a_budget_of_next_to_no_tokens_is_refused(limits):
    with pytest.raises(
        UsageError, match=r"tokens to train on at most, but a plan needs 1,000,000: raise --train-flops"
    ):
        plan(Constraints(**limits))


# ---- the recipe and the report


@pytest.mark.parametrize("tokens", [1e6, 1e9, 3e10, 5e11, 6e12])
def test_batches_shrink_until_there_are_steps_enough(tokens):
    rows, steps = batch(tokens)
    assert rows == 2048 or steps < 2 * LEAST_STEPS + 1
    assert rows == 1 or steps >= LEAST_STEPS
    assert steps * rows * SEQUENCE == pytest.approx(tokens, rel=0.01)


def test_the_report_is_one_file_with_its_picture_inside(tmp_path):
    found = plan(ASKED, device=PHONE, space=SMALL)
    write_report(found, tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page
    assert f"{found.candidates[0].score:.3f}" in page
    impossible = plan(Constraints(memory=1e6), space=SMALL)
    write_report(impossible, tmp_path / "none.html")
    assert "No candidate fits" in (tmp_path / "none.html").read_text()
