"""What the pictures of a law show: the runs as they are, lines that are solid where the law was measured, the axes."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from drawn import colours, curve, labels
from mobilemoe.presets import DENSE
from mobilemoe.scaling.law.fit import Fit, fit
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.law.runs import Points
from mobilemoe.scaling.report import pictures
from mobilemoe.scaling.report.scene import DRAWN_SAMPLES, PLACES, STRETCH, Scene
from scaling_runs import joint_law, runs_of

LAW = published("paper-joint")
EIGHT = (8, 8, 1)


def scene(law=LAW, experts=(1, 8), **changes) -> Scene:
    values = {"granularity": 8, "shared": 1, "flops": (1.8e20, 2.7e21), "vocab_size": 128_256, "context": 4096}
    return Scene(law=law, experts=experts, **values | changes)


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit(runs_of(joint_law(), noise=0.003), holdout=0.2)


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


def dashed_and_solid(axes: Axes, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The points of the whole line of the `number`th E, and whether each is solid."""
    whole, solid = (line for line in axes.get_lines()[2 * number : 2 * number + 2])
    assert (whole.get_linestyle(), solid.get_linestyle()) == ("--", "-")
    assert whole.get_color() == solid.get_color()
    return whole.get_xydata(), np.isfinite(solid.get_xydata()[:, 1])


# The fit


def test_every_run_is_a_point_of_its_e_at_its_measured_and_predicted_loss(fitted, axes):
    pictures.measured(axes, fitted)
    assert labels(axes) == ["dense", "E = 2", "E = 4", "E = 8", "E = 16", "E = 32"]
    experts = fitted.runs.points.experts
    for name, value in zip(labels(axes), (1, 2, 4, 8, 16, 32), strict=True):
        chosen = experts == value
        shown = list(zip(fitted.runs.loss[chosen], fitted.predicted[chosen], strict=True))
        assert curve(axes, name) == shown
    assert axes.get_xlim() == axes.get_ylim()
    diagonal = axes.get_lines()[-1].get_xydata()
    np.testing.assert_array_equal(diagonal[:, 0], diagonal[:, 1])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("measured loss (nats per token)", "predicted loss")


def test_held_out_runs_are_drawn_as_they_were_predicted(fitted, axes):
    held = fitted.holdout
    pictures.predicted(axes, held)
    assert curve(axes, "held-out runs") == list(zip(held.loss, held.predicted, strict=True))


@pytest.mark.parametrize(
    ("column", "label", "scale"),
    [
        ("n_active", "active parameters (billions)", "log"),
        ("tokens", "training tokens (billions)", "log"),
        ("experts", "experts E", "log"),
        ("granularity", "granularity g", "log"),
        ("shared", "shared expert s", "linear"),
    ],
)
def test_residuals_are_predicted_minus_measured_over_the_column_within_the_band_of_the_rmse(
    fitted, axes, column, label, scale
):
    pictures.residuals(axes, fitted, column)
    shown = np.array(sorted(point for name in labels(axes) for point in curve(axes, name)))
    points = zip(getattr(fitted.runs.points, column), fitted.predicted - fitted.runs.loss, strict=True)
    np.testing.assert_array_equal(shown, sorted(points))
    (band,) = axes.patches
    assert [band.get_y(), band.get_y() + band.get_height()] == pytest.approx([-fitted.rmse, fitted.rmse])
    assert (axes.get_xlabel(), axes.get_xscale()) == (label, scale)
    assert axes.get_ylabel() == "predicted - measured (nats)"


def test_an_e_that_the_paper_has_not_is_drawn_with_the_nearest_and_said_to_be_about_it(axes):
    points = Points(n_active=[0.3] * 4, tokens=[100] * 4, experts=[1, 3.9, 4, 7])
    table = runs_of(LAW, points)
    law = replace(LAW, rmse=0.0)
    shown = Fit(law=law, runs=table, predicted=table.loss, free=(), misfit=0, converged=True, notes=())
    pictures.measured(axes, shown)
    assert labels(axes) == ["dense", "E = about 4", "E = about 8"]
    assert len(curve(axes, "E = about 4")) == 2


def test_dense_models_are_black_and_each_e_has_a_colour_of_its_own(fitted, axes):
    pictures.measured(axes, fitted)
    shades = [to_hex(line.get_color()) for line in axes.get_lines()[:-1]]
    assert shades[0] == "#000000"
    assert len({*shades}) == 6


def test_a_panel_is_a_picture_with_the_legend_above_it(fitted, figures):
    assert colours(pictures.draw(lambda panel: pictures.measured(panel, fitted))) > 50
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["dense", "E = 2"]
    pictures.draw(lambda panel: panel.plot([1, 2], [3, 4]))
    assert figures[1].legends == []  # nothing to name


# The law


def test_optima_are_those_of_the_search_over_the_runs_compute_and_a_stretch_beyond(axes):
    drawn = scene()
    flops, found = pictures.compute_optima(drawn)
    assert flops[0] == pytest.approx(1.8e20 / STRETCH)
    assert flops[-1] == pytest.approx(2.7e21 * STRETCH)
    pictures.optimal(axes, drawn, flops, found, "n_active")
    assert labels(axes) == ["dense", "E = 8", "best E: interval"]
    for number, knobs in enumerate((DENSE, EIGHT)):
        line, _ = dashed_and_solid(axes, number)
        np.testing.assert_array_equal(line[:, 0], flops)
        for budget, value in line[::6]:
            alone = scene(experts=(knobs[0],)).optimum(LAW, float(budget)).best
            assert value == pytest.approx(alone.n_active.value, rel=1e-4)
    assert axes.get_ylabel() == "best active parameters (billions)"
    assert (axes.get_xlabel(), axes.get_xscale(), axes.get_yscale()) == ("training compute (FLOPs)", "log", "log")


def test_an_optimum_is_solid_only_where_its_model_lies_in_the_domain(axes):
    drawn = scene()
    flops, found = pictures.compute_optima(drawn)
    pictures.optimal(axes, drawn, flops, found, "tokens")
    for number, knobs in enumerate((DENSE, EIGHT)):
        _, solid = dashed_and_solid(axes, number)
        choices = [next(c for c in each.choices if c.experts == knobs[0]) for each in found]
        for choice, is_solid in zip(choices, solid, strict=True):
            n, d = choice.n_active.value, choice.tokens.value
            assert is_solid == (not LAW.outside(Points(n_active=n, tokens=d, experts=choice.experts)))
        assert not solid.all()


def test_what_mixtures_gain_is_their_loss_less_the_dense_models(axes):
    drawn = scene()
    flops, found = pictures.compute_optima(drawn)
    pictures.gained(axes, drawn, flops, found)
    dense, _ = dashed_and_solid(axes, 0)
    mixture, _ = dashed_and_solid(axes, 1)
    assert {*dense[:, 1]} == {0.0}
    for place, each in enumerate(found):
        loss = {choice.experts: choice.loss.value for choice in each.choices}
        assert mixture[place, 1] == pytest.approx(loss[8] - loss[1], abs=1e-12)
    assert axes.get_ylabel() == "least loss, less the dense model's (nats)"


def test_without_a_dense_model_the_losses_stand_by_themselves_with_one_interval_in_the_legend(axes):
    drawn = scene(experts=(4, 8))
    flops, found = pictures.compute_optima(drawn)
    pictures.gained(axes, drawn, flops, found)
    assert labels(axes) == ["E = 4", "interval", "E = 8"]
    line, _ = dashed_and_solid(axes, 0)
    assert line[:, 1].min() > 2
    assert axes.get_ylabel() == "least loss (nats per token)"


def test_all_models_of_a_line_of_equal_loss_reach_that_loss(axes):
    drawn = scene()
    (level,) = drawn.levels((0.5,))
    pictures.equal_loss(axes, drawn, level)
    for number, (knobs, sizes) in enumerate(drawn.lines.items()):
        line, solid = dashed_and_solid(axes, number)
        n = np.exp(np.interp(np.log(line[:, 0] * 1e9), sizes.log_memory, sizes.log_n))
        tokens = line[:, 1] / 6e18 / sizes.active(n)
        points = drawn.points(knobs, n, tokens)
        np.testing.assert_allclose(LAW.loss(points), level, atol=2e-4)
        np.testing.assert_array_equal(solid, LAW.covers(points))
        assert len(line) > 50
    assert axes.get_title() == f"all reach a loss of {level:.3f}"
    assert axes.get_xlabel() == "memory: INT4 weights and KV cache (GB)"


def test_all_models_of_equal_compute_spend_it(axes):
    drawn = scene()
    pictures.equal_compute(axes, drawn, 7e20)
    for number, (knobs, sizes) in enumerate(drawn.lines.items()):
        line, solid = dashed_and_solid(axes, number)
        n = drawn.sizes(knobs)
        np.testing.assert_allclose(line[:, 0], sizes.memory(n) / 1e9)
        points = drawn.points(knobs, n, 7e20 / 6e18 / sizes.active(n))
        np.testing.assert_allclose(line[:, 1], LAW.loss(points))
        np.testing.assert_array_equal(solid, LAW.covers(points))
        assert solid.any()
        assert not solid.all()
    assert axes.get_title() == "all trained with 7.0e+20 FLOPs"
    low, high = axes.get_ylim()
    assert high - low <= 1.1 * pictures.LOSS_RANGE


# The scene


def test_lines_are_the_dense_model_and_each_e_with_one_g_and_s():
    assert list(scene(experts=(1, 2, 8)).lines) == [DENSE, (2, 8, 1), EIGHT]
    assert list(scene(experts=(4,), granularity=2, shared=0).lines) == [(4, 2, 0)]


def test_sizes_go_a_stretch_beyond_the_domain_as_far_as_the_family_goes():
    n = scene().sizes(EIGHT)
    assert len(n) == PLACES
    assert n[0] == pytest.approx(max(0.3 / STRETCH, scene().lines[EIGHT].range[0]))
    assert n[-1] == pytest.approx(0.9 * STRETCH)
    tiny = scene(law=replace(LAW, domain=LAW.domain | {"n_active": (1e-6, 1e-5)}))
    assert len(tiny.sizes(EIGHT)) == 0


def test_budgets_are_shares_of_the_way_in_logarithms():
    drawn = scene(flops=(1e20, 1e22))
    assert drawn.budgets((0, 0.5, 1)) == pytest.approx([1e20, 1e21, 1e22])


def test_levels_are_losses_that_such_shares_of_the_domains_models_stay_below():
    drawn = scene()
    low, middle, high = drawn.levels((0.25, 0.5, 0.75))
    assert low < middle < high
    ends = [LAW.loss(drawn.points(EIGHT, np.array(n), np.array(d))) for n, d in ((0.9, 500), (0.3, 100))]
    assert min(ends) < low
    assert high < max(ends) + 0.2


def test_a_picture_takes_no_more_samples_than_it_needs():
    drawn = np.random.default_rng(0).normal(1, 0.01, (3 * DRAWN_SAMPLES, len(LAW.parameters))) * LAW.theta
    many = scene(law=replace(LAW, samples=drawn))
    assert many.law_for_bands.samples.shape == (DRAWN_SAMPLES, len(LAW.parameters))
    assert scene().law_for_bands is LAW


def test_a_law_covers_its_ranges_of_n_and_d_with_their_ends():
    points = Points(n_active=[0.3, 0.9, 0.29, 0.5, 0.5], tokens=[100, 500, 300, 99, 300], experts=64)
    assert LAW.covers(points).tolist() == [True, True, False, False, True]


def test_the_picture_of_the_domain_has_every_run_inside_the_hull(fitted):
    axes = Figure().subplots()
    pictures.domain(axes, fitted.law, fitted)
    drawn = np.concatenate([line.get_xydata() for line in axes.get_lines()])
    assert len(drawn) == len(fitted.runs)
    assert fitted.law.covers(Points(n_active=drawn[:, 0], tokens=drawn[:, 1])).all()
    np.testing.assert_allclose(axes.patches[0].get_xy()[:-1], fitted.law.hull)
