"""The pictures of a report: scores over costs, the Pareto front, and the paper's points in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from mobilemoe.drawing import figure_kind, png
from mobilemoe.evaluate.report.pareto import Average, Cost, Score, front, main_score
from mobilemoe.evaluate.results.results import Results
from mobilemoe.paper import Mark, s_base_mark

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours for all kinds of colour vision, without the yellow; each model also has its own marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
SHAPES = "oD^sPX*v"
REFERENCE = {
    "MobileMoE base": "o",
    "MobileMoE SFT": "^",
    "MobileMoE QAT": "o",
    "OLMoE-1B-7B base": "d",
    "OLMoE-1B-7B SFT": "D",
    "MobileLLM-Pro": "s",
    "MobileLLM-Pro INT4": "s",
    "SmolLM2-1.7B": "v",
    "Qwen3.5-2B": "P",
    "Gemma-3-270M": "*",
}
PANELS_A_ROW = 3
Place = Literal["outside lower center", "outside upper center"]


def drawing() -> type[Figure]:
    """matplotlib's figure; MissingExtraError without it."""
    return figure_kind("drawing", "eval")


def draw_average(every: Mapping[str, Results], mean: Average, cost: Cost, marks: Sequence[Mark]) -> bytes:
    """A PNG of the mean scores over one cost, with published marks."""
    figure = drawing()(figsize=(5.6, 5.8 if marks else 4.4), layout="constrained")
    axes = figure.subplots()
    _results(axes, every, mean.scores, cost)
    for series in dict.fromkeys(mark.series for mark in marks):
        _reference(axes, [mark for mark in marks if mark.series == series], cost)
    _scale(axes, f"mean {mean.metric} (%)")
    axes.set_xlabel(cost.label)
    _legend(figure, every, "outside lower center", 2)
    return png(figure, dpi=140)


def draw_single(every: Mapping[str, Results], names: Sequence[str], cost: Cost) -> bytes:
    """A PNG with a panel for each benchmark: its main metric over one cost."""
    rows = -(-len(names) // PANELS_A_ROW)
    figure = drawing()(figsize=(11, 2.6 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, PANELS_A_ROW, squeeze=False, sharex=True).ravel()
    for panel in panels[len(names) :]:
        panel.remove()
    for axes, name in zip(panels, names, strict=False):
        having = {label: results for label, results in every.items() if name in results.results}
        _results(axes, every, {label: main_score(results, name) for label, results in having.items()}, cost)
        asked = [results.results[name] for results in having.values()]
        mark = s_base_mark(name)
        if mark is not None and any(row["shots"] == 0 and not row.get("note") for row in asked):
            _reference(axes, [mark], cost)
        _scale(axes, f"{', '.join(dict.fromkeys(row['main_metric'] for row in asked))} (%)")
        axes.xaxis.set_tick_params(labelbottom=True, which="both")
        axes.set_title(name, fontsize=10, parse_math=False)
    figure.supxlabel(cost.label, fontsize=10)
    _legend(figure, every, "outside upper center", 3)
    return png(figure, dpi=140)


def _results(axes: Axes, every: Mapping[str, Results], scores: Mapping[str, Score], cost: Cost) -> None:
    """Each result that has a score and a known cost, with its standard error, and their front."""
    points = {}
    for number, (label, results) in enumerate(every.items()):
        x = cost.of(results)
        if x is None or label not in scores:
            continue
        value, stderr = scores[label].value, scores[label].stderr
        points[label] = (x, value)
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(
            x,
            100 * value,
            None if stderr is None else 100 * stderr,
            fmt=SHAPES[number % len(SHAPES)],
            color=colour,
            markerfacecolor=colour if "int4" in str(results.model["quantization"]).lower() else "white",
            ms=8,
            capsize=3,
            label=label,
            zorder=3,
        )
    best = front(points)
    if len(best) > 1:
        costs, values = zip(*(points[label] for label in best), strict=True)
        heights = [100 * value for value in values]
        axes.step(costs, heights, "k--", where="post", lw=1, label="front of these results", zorder=1)


def _reference(axes: Axes, marks: Sequence[Mark], cost: Cost) -> None:
    """Marks of one series, grey, joined by a line."""
    if cost.of_mark is None:
        return
    names = [mark.name.removeprefix(mark.series).strip() for mark in marks]
    axes.plot(
        [cost.of_mark(mark) for mark in marks],
        [100 * mark.score for mark in marks],
        marker=REFERENCE[marks[0].series],
        color="0.45",
        markerfacecolor="0.45" if marks[0].int4 else "white",
        lw=0.7 if len(marks) > 1 else 0,
        label=f"{marks[0].series} ({', '.join(names)})" if names[0] else marks[0].series,
        zorder=2,
    )


def _scale(axes: Axes, score: str) -> None:
    """Logarithmic in cost where the models differ much, and named in per cent of `score`."""
    axes.margins(0.1)
    low, high = axes.dataLim.intervalx
    if high > 3 * low > 0:
        axes.set_xscale("log")
        few = high < 300 * low
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if few and f"{value:e}"[0] in "25" else "")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(labelsize=8, which="both")
    axes.set_ylabel(score, parse_math=False)
    axes.grid(alpha=0.3)


def _legend(figure: Figure, every: Mapping[str, Results], place: Place, columns: int) -> None:
    """One for all panels, the results first."""
    shown: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, texts = axes.get_legend_handles_labels()
        shown |= zip(texts, handles, strict=True)
    order = sorted(shown, key=lambda text: text not in every)
    handles = [shown[text] for text in order]
    legend = figure.legend(handles, order, loc=place, ncols=columns, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name is no formula
