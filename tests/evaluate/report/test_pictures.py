"""What the pictures of a report show: each result at its cost and score with its error, the front, the paper's grey."""

import pytest

from drawn import colours, labels
from mobilemoe.evaluate.report.pareto import COSTS, average, main_score
from mobilemoe.evaluate.report.pictures import COLOURS, SHAPES, draw_average, draw_single
from mobilemoe.paper import average_marks
from report_results import results

FLOPS, BYTES, MS = COSTS
EVERY = {
    "small": results("small", score=0.3, flops=2e7, size=10e6),
    "large": results("large", score=0.5, flops=4e7, size=20e6),
    "worse": results("worse", score=0.2, flops=3e7, size=30e6, ms=None),
}


def points(axes) -> dict[str, tuple[float, float]]:
    """The place of each result, by its label."""
    return {bars.get_label(): tuple(map(float, bars.lines[0].get_xydata()[0])) for bars in axes.containers}


def errors(axes) -> dict[str, float]:
    """Half the length of each error bar; results without one are left out."""
    found = {}
    for bars in axes.containers:
        for lines in bars.lines[2]:
            (low, high) = lines.get_segments()[0][:, 1]
            found[bars.get_label()] = float(high - low) / 2
    return found


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.name)
def test_each_result_stands_at_its_cost_and_its_mean_with_its_error(cost, figures):
    mean, _ = average(EVERY)
    assert colours(draw_average(EVERY, mean, cost, ())) > 50
    (axes,) = figures[0].axes
    known = {label: each for label, each in EVERY.items() if cost.of(each) is not None}
    assert points(axes) == {
        label: (pytest.approx(cost.of(each)), pytest.approx(100 * mean.scores[label].value))
        for label, each in known.items()
    }
    assert errors(axes) == {label: pytest.approx(100 * mean.scores[label].stderr) for label in known}
    assert axes.get_xlabel() == cost.label
    assert axes.get_ylabel() == f"mean {mean.metric} (%)"
    assert ("worse" in points(axes)) == (cost is not MS)  # nobody has measured it


def test_the_front_goes_through_the_results_that_no_other_beats(figures):
    mean, _ = average(EVERY)
    draw_average(EVERY, mean, FLOPS, ())
    (axes,) = figures[0].axes
    (front,) = (line for line in axes.get_lines() if line.get_label() == "front of these results")
    places = points(axes)
    assert [tuple(point) for point in front.get_xydata()] == [places["small"], places["large"]]


def test_one_result_is_no_front(figures):
    only = {"small": EVERY["small"]}
    draw_average(only, average(only)[0], FLOPS, ())
    assert labels(figures[0].axes[0]) == ["small"]


def test_models_differ_by_colour_and_by_shape_and_int4_is_filled(figures):
    every = EVERY | {"bf16": results("bf16")}
    every["bf16"].model["quantization"] = "none"
    draw_average(every, average(every)[0], FLOPS, ())
    marks = [bars.lines[0] for bars in figures[0].axes[0].containers]
    assert [mark.get_color() for mark in marks] == [*COLOURS[:4]]
    assert [mark.get_marker() for mark in marks] == [*SHAPES[:4]]
    assert [mark.get_markerfacecolor() for mark in marks] == [*COLOURS[:3], "white"]


def test_the_papers_marks_are_grey_at_their_own_cost_behind_the_results(figures):
    marks = average_marks()
    draw_average(EVERY, average(EVERY)[0], FLOPS, marks)
    (axes,) = figures[0].axes
    series = dict.fromkeys(mark.series for mark in marks)
    grey = [line for line in axes.get_lines() if line.get_color() == "0.45"]
    assert len(grey) == len(series)
    for line, name in zip(grey, series, strict=True):
        own = [mark for mark in marks if mark.series == name]
        expected = [[FLOPS.of_mark(mark), 100 * mark.score] for mark in own]
        assert line.get_xydata().tolist() == [pytest.approx(point) for point in expected]
        assert line.get_label().startswith(name)
    assert {line.get_zorder() for line in grey} == {2}
    assert all(bars.lines[0].get_zorder() > 2 for bars in axes.containers)


def test_a_cost_that_the_paper_has_not_measured_so_has_no_marks(figures):
    draw_average(EVERY, average(EVERY)[0], MS, average_marks())
    assert not [line for line in figures[0].axes[0].get_lines() if line.get_color() == "0.45"]


def test_each_benchmark_has_a_panel_with_the_results_that_have_it(figures):
    every = EVERY | {"part": results("part", without=("piqa",))}
    names = ["piqa", "gsm8k", "drop", "boolq"]
    assert colours(draw_single(every, names, BYTES)) > 50
    panels = figures[0].axes
    assert [axes.get_title() for axes in panels] == names  # and no empty ones behind them
    for axes, name in zip(panels, names, strict=True):
        having = [label for label, each in every.items() if name in each.results]
        scores = {label: 100 * main_score(every[label], name).value for label in having}
        assert {label: y for label, (_, y) in points(axes).items()} == pytest.approx(scores)
    assert panels[0].get_ylabel() == "acc_norm (%)"
    assert panels[1].get_ylabel() == "exact_match (%)"
    assert "part" not in points(panels[0])
    assert figures[0].get_supxlabel() == BYTES.label


def test_the_legend_names_every_result_once_and_first(figures):
    draw_single(EVERY, ["piqa", "gsm8k"], FLOPS)
    (legend,) = figures[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[:3] == [*EVERY]
    assert len({*names}) == len(names)


def test_costs_far_apart_are_drawn_in_logarithms(figures):
    near = {"a": results("a", flops=2e7), "b": results("b", flops=4e7)}
    far = {"a": results("a", flops=2e7), "b": results("b", flops=4e8)}
    for every in (near, far):
        draw_average(every, average(every)[0], FLOPS, ())
    assert [figure.axes[0].get_xscale() for figure in figures] == ["linear", "log"]
