"""The optimum that a search finds is the one that docs/scaling.md derives, and its interval is what it says."""

from dataclasses import replace

import numpy as np
import pytest

from mobilemoe import accounting
from mobilemoe.errors import UsageError
from mobilemoe.presets import DENSE, family_knobs, family_member, preset
from mobilemoe.scaling.law.forms import FORMS, effective_experts
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.law.runs import Points
from mobilemoe.scaling.optimum.family import family
from mobilemoe.scaling.optimum.optimum import optimum

PAPER = published("paper-E")
FLOPS = 8e20
SIZES = {"counts_embedding": True, "vocab_size": 128_256, "context": 4096}


def closed_form(law: Law, experts: int, flops: float) -> float:
    """N* = (a A / (b B))^(1 / (a + b)) (C/6)^(b / (a + b)), with the factors and exponents that hold at E."""
    p = {"delta": 0.0, "gamma": 0.0, "omega": 0.0, "zeta": 0.0, **law.parameters}
    log_e = np.log(effective_experts(experts))
    a, b = -(p["alpha"] + p["gamma"] * log_e), -(p["beta"] + p["zeta"] * log_e)
    A, B = p["A"] * np.exp(p["delta"] * log_e), p["B"] * np.exp(p["omega"] * log_e)
    return (a * A / (b * B)) ** (1 / (a + b)) * (flops / 6e18) ** (b / (a + b))


def of(*experts: int) -> list[tuple[int, int, int]]:
    return list(family_knobs(experts, [8], [1]))


def drawn(law: Law, spread: float, samples: int = 300) -> Law:
    """The law with samples whose parameters scatter independently by `spread`, relatively."""
    noise = np.random.default_rng(0).normal(1, spread, (samples, len(law.theta)))
    return replace(law, samples=law.theta * noise)


def at_memory(law: Law, experts: int, flops: float = FLOPS, memory: float = 1e9):
    return optimum(law, train_flops=flops, memory_bytes=memory, choices=of(experts)).best


# Compute alone


@pytest.mark.parametrize("flops", [1e18, 8e20, 1e23])
def test_chinchillas_optimum_is_the_closed_form(flops):
    law = published("chinchilla")
    best = optimum(law, train_flops=flops).best
    assert best.n_active.value == pytest.approx(closed_form(law, 1, flops), rel=1e-6)
    assert 6e18 * best.n_active.value * best.tokens.value == pytest.approx(flops, rel=1e-12)
    assert best.binding == ("training FLOPs",)


def test_at_each_expansion_the_optimum_is_the_closed_form_and_the_best_comes_first():
    found = optimum(PAPER, train_flops=FLOPS)
    assert {choice.experts for choice in found.choices} == {1, 2, 4, 8, 16, 32}
    for choice in found.choices:
        assert choice.n_active.value == pytest.approx(closed_form(PAPER, choice.experts, FLOPS), rel=1e-6)
    losses = [choice.loss.value for choice in found.choices]
    assert losses == sorted(losses)
    assert (found.loss.value, found.experts.value) == (losses[0], found.best.experts)


def test_the_joint_law_chooses_granularity_and_the_shared_expert_as_well():
    found = optimum(
        published("paper-joint"), train_flops=FLOPS, choices=list(family_knobs([1, 8], [1, 2, 4, 8, 16], [0, 1]))
    )
    assert (found.best.granularity, found.best.shared) == (16, 1)  # both terms only ever help
    assert [(c.granularity, c.shared) for c in found.choices if c.experts == 1] == [(1, 0)]
    assert not [c for c in found.choices if c.granularity == 1 and c.shared == 1]  # no such model


def test_the_interval_is_the_one_of_the_closed_form_over_the_samples():
    law = drawn(published("chinchilla"), 0.02)
    names = FORMS[law.form].parameters
    each = [closed_form(replace(law, parameters=dict(zip(names, row, strict=True))), 1, FLOPS) for row in law.samples]
    best = optimum(law, train_flops=FLOPS, level=0.8).best
    assert best.n_active[1:] == pytest.approx(np.quantile(each, [0.1, 0.9]), rel=1e-6)
    assert best.n_active.low < best.n_active.value < best.n_active.high


def test_shares_tell_how_sure_the_choice_of_experts_is():
    sure, unsure = (optimum(drawn(PAPER, spread), train_flops=FLOPS) for spread in (1e-5, 0.05))
    assert sure.best.share == 1.0
    assert sure.experts[1:] == (sure.best.experts, sure.best.experts)
    assert unsure.best.share < 1.0
    assert unsure.experts.low < unsure.experts.high
    for found in (sure, unsure):
        assert sum(choice.share for choice in found.choices) == pytest.approx(1)
        assert "bootstrap" in found.interval


def test_without_samples_the_interval_is_what_the_rmse_cannot_tell_apart():
    found = optimum(PAPER, train_flops=FLOPS)
    best = found.best
    assert "RMSE" in found.interval
    assert best.share is None
    assert best.loss == pytest.approx((best.loss.value, best.loss.value - 0.0076, best.loss.value + 0.0076))
    for end in best.n_active[1:]:
        loss = PAPER.loss(Points(n_active=end, tokens=FLOPS / 6e18 / end, experts=best.experts))
        assert loss - best.loss.value == pytest.approx(PAPER.rmse, rel=0.02)
    equal = {choice.experts for choice in found.choices if choice.loss.value <= best.loss.value + PAPER.rmse}
    assert found.experts[1:] == (min(equal), max(equal))


def test_a_law_without_any_error_has_an_interval_of_no_width():
    best = optimum(replace(PAPER, rmse=0.0), train_flops=FLOPS).best
    assert best.n_active.low == best.n_active.value == best.n_active.high


def test_an_optimum_outside_the_laws_domain_says_so():
    best = optimum(PAPER, train_flops=FLOPS, choices=of(8)).best
    assert any("n_active" in warning for warning in best.warnings)
    inside = at_memory(PAPER, 4)
    assert inside.warnings == ()


def test_a_law_without_an_optimum_says_where_the_search_ended():
    law = replace(published("chinchilla"), parameters={**published("chinchilla").parameters, "B": 1e-12})
    assert any("end of the search" in warning for warning in optimum(law, train_flops=FLOPS).best.warnings)


# The family's sizes


def test_the_familys_sizes_are_those_of_its_members():
    sizes = family((8, 8, 1), **SIZES)
    for name in ("S", "M", "L"):
        config = preset(name)
        n = accounting.active_parameters(config) / 1e9
        memory = accounting.int4_file_bytes(config) + accounting.kv_bytes(config, 4096)
        assert sizes.memory(np.array(n)) == pytest.approx(memory, rel=1e-12)
        assert sizes.largest(memory) == pytest.approx(n, rel=1e-9)


@pytest.mark.parametrize("experts", [1, 4, 32])
def test_between_its_widths_the_family_is_close_to_its_members(experts):
    knobs = (experts, 8, 1) if experts > 1 else DENSE
    sizes = family(knobs, **SIZES | {"context": 0})  # members between have fewer KV heads
    for width in (320, 640, 896, 1472, 3200):
        config = family_member(width, expansion=experts, granularity=knobs[1], shared=bool(knobs[2]))
        n = np.array(accounting.active_parameters(config) / 1e9)
        assert sizes.memory(n) == pytest.approx(accounting.int4_file_bytes(config), rel=0.05), width


def test_a_law_without_the_embedding_gets_its_own_n():
    config, without = preset("S"), family((8, 8, 1), **SIZES | {"counts_embedding": False})
    n = (accounting.active_parameters(config) - config.vocab_size * config.hidden_size) / 1e9
    assert without.active(np.array(n)) == pytest.approx(accounting.active_parameters(config) / 1e9, rel=1e-12)


# With the device's memory


def test_with_memory_to_spare_the_optimum_is_the_one_of_compute_alone():
    free = optimum(PAPER, train_flops=FLOPS, choices=of(8)).best
    roomy = at_memory(PAPER, 8, memory=1e11)
    assert roomy.n_active.value == pytest.approx(free.n_active.value, rel=1e-6)
    assert roomy.loss.value == pytest.approx(free.loss.value, abs=1e-10)
    assert roomy.binding == ("training FLOPs",)
    assert roomy.memory_bytes < 1e11


def test_where_memory_binds_it_is_used_up_and_more_experts_mean_a_smaller_model():
    found = [at_memory(PAPER, experts) for experts in (1, 2, 4, 8, 16)]
    assert all(choice.binding == ("training FLOPs", "memory") for choice in found)
    assert all(choice.memory_bytes == pytest.approx(1e9, rel=1e-6) and choice.memory_bytes <= 1e9 for choice in found)
    sizes = [choice.n_active.value for choice in found]
    assert sizes == sorted(sizes, reverse=True)


def slopes(law: Law, choice) -> tuple[float, float, float]:
    """The law's derivatives by ln N, ln D and ln E at a choice, by central differences."""

    def loss(n: float, d: float, e: float) -> float:
        n, d = choice.n_active.value * np.exp(n), choice.tokens.value * np.exp(d)
        return float(law.loss(Points(n_active=n, tokens=d, experts=choice.experts * np.exp(e))))

    step = 1e-4
    return tuple((loss(*(step * axis)) - loss(*(-step * axis))) / (2 * step) for axis in np.eye(3))


def memory_slope(experts: int, n: float) -> float:
    """d ln M / d ln N of the family."""
    sizes, step = family((experts, 8, 1), **SIZES), 1e-5
    high, low = sizes.memory(n * np.exp([step, -step]))
    return float(np.log(high / low) / (2 * step))


def test_the_multipliers_of_both_constraints_are_positive_and_are_the_gains_of_relaxing_them():
    """Karush, Kuhn and Tucker: grad L + λ grad ln C + μ grad ln M = 0 with λ, μ > 0, and λ = -dL*/d ln C and so on."""
    at = at_memory(PAPER, 4)
    by_n, by_d, _ = slopes(PAPER, at)
    lam = -by_d
    mu = (-by_n - lam) / memory_slope(4, at.n_active.value)
    assert lam > 0
    assert mu > 0
    up, down = np.exp([0.01, -0.01])
    gain_flops = at_memory(PAPER, 4, flops=FLOPS * up).loss.value - at_memory(PAPER, 4, flops=FLOPS * down).loss.value
    gain_memory = at_memory(PAPER, 4, memory=1e9 * up).loss.value - at_memory(PAPER, 4, memory=1e9 * down).loss.value
    assert -gain_flops / 0.02 == pytest.approx(lam, rel=1e-3)
    assert -gain_memory / 0.02 == pytest.approx(mu, rel=1e-2)


def test_with_memory_to_spare_its_multiplier_is_zero():
    by_n, by_d, _ = slopes(PAPER, at_memory(PAPER, 8, memory=1e11))
    assert by_n == pytest.approx(by_d, rel=1e-5)  # grad L is parallel to grad ln C = (1, 1)


def test_along_the_memory_surface_the_loss_is_stationary_in_the_number_of_experts():
    """dL/d ln E = L_E - (L_N - L_D) M_E / M_N changes its sign at the best E, and is the difference quotient."""
    numbers = range(2, 11)
    at = {experts: at_memory(PAPER, experts) for experts in numbers}
    quotients = np.gradient([at[experts].loss.value for experts in numbers], np.log(numbers))
    total = {}
    for experts, quotient in list(zip(numbers, quotients, strict=True))[1:-1]:
        by_n, by_d, by_e = slopes(PAPER, at[experts])
        n = at[experts].n_active.value
        less, memory, more = (family((e, 8, 1), **SIZES).memory(np.array(n)) for e in range(experts - 1, experts + 2))
        memory_by_e = experts * (more - less) / 2 / memory
        total[experts] = by_e - (by_n - by_d) * memory_by_e / memory_slope(experts, n)
        assert total[experts] == pytest.approx(quotient, abs=2e-3)
    best = min(at, key=lambda experts: at[experts].loss.value)
    assert best in total
    assert total.get(best - 1, -1) < 0 < total.get(best + 1, 1)


def test_with_the_tokens_given_the_largest_model_that_fits_is_the_best():
    found = optimum(PAPER, tokens=400, memory_bytes=1e9)
    assert all(choice.binding == ("tokens", "memory") for choice in found.choices)
    assert all(choice.tokens == (400, 400, 400) for choice in found.choices)


def test_training_flops_count_an_embedding_that_the_law_does_not():
    law = replace(PAPER, counts_embedding=False)
    choice = at_memory(law, 8)
    sizes = family((8, 8, 1), **SIZES | {"counts_embedding": False})
    n = choice.n_active.value
    active = float(sizes.active(np.array(n)))
    assert active > 1.2 * n
    assert 6e18 * active * choice.tokens.value == pytest.approx(FLOPS, rel=1e-9)


def test_a_choice_that_does_not_fit_is_left_out_and_none_at_all_is_refused():
    found = optimum(PAPER, tokens=100, memory_bytes=6e6)
    assert {choice.experts for choice in found.choices} < {1, 2, 4, 8, 16, 32}
    with pytest.raises(UsageError, match=r"memory_bytes is 1e\+06, but the smallest member needs .* vocabulary"):
        optimum(PAPER, tokens=100, memory_bytes=1e6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimum(PAPER, train_flops=0), "train_flops is 0, but must be a positive number"),
        (lambda: optimum(PAPER, train_flops=1e20, level=1), "level is 1, but must lie between 0 and 1"),
        (lambda: optimum(PAPER, train_flops=1e20, choices=[]), "no choices"),
        (lambda: optimum(PAPER, tokens=100), "needs train_flops or memory_bytes"),
        (lambda: optimum(PAPER, memory_bytes=1e9), "either train_flops or tokens"),
        (lambda: optimum(PAPER, memory_bytes=1e9, tokens=-1), "tokens is -1, but must be"),
        (lambda: optimum(PAPER, memory_bytes=float("nan"), tokens=1), "memory_bytes is nan, but must be"),
    ],
)
def test_a_wrong_call_is_refused_in_one_sentence(call, message):
    with pytest.raises(UsageError, match=message):
        call()
