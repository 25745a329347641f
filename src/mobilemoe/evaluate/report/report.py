"""Results side by side as one self-contained HTML page and its pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from textwrap import fill

from mobilemoe.evaluate.report import card, pictures
from mobilemoe.evaluate.report.pareto import COSTS, Average, average, fronts, main_score, without_marks
from mobilemoe.evaluate.results.results import Results
from mobilemoe.files import write_atomic
from mobilemoe.page import Section, bullets, page, table
from mobilemoe.paper import CAVEAT, Mark, average_marks

_LINE = 40  # characters of a cell's line


def write_report(every: Mapping[str, Results], path: Path | str, *, mixed: bool = False) -> list[Path]:
    """Writes the page of results by label, and its pictures as PNG in a folder beside it; returns all files.

    `mixed` averages over benchmarks with different metrics. MissingExtraError without matplotlib.
    """
    pictures.drawing()
    path = Path(path)
    mean, left_out = average(every, mixed=mixed)
    sections = [
        _models(every),
        *_averages(every, mean, left_out),
        *_single(every),
        _scores(every),
        *_missing(every),
        _counts(every),
    ]
    write_atomic(path, page(f"Evaluation: {', '.join(every)}", sections))
    written = [path]
    for section in sections:
        for name, _, png in section.pictures:
            written.append(path.with_name(f"{path.stem}-pictures") / f"{name}.png")
            write_atomic(written[-1], png)
    return written


def _models(every: Mapping[str, Results]) -> Section:
    facts = [
        {
            **card.model_facts(results),
            "scored by": card.engine(results).replace(", ", "\n"),
            "suite": f"{fill(results.suite.replace(',', ', '), _LINE)}\n{card.extent(results)}",
        }
        for results in every.values()
    ]
    rows = [(name, *(of[name] for of in facts)) for name in facts[0]]
    return Section("Models", table(("", *every), rows))


def _averages(every: Mapping[str, Results], mean: Average | None, left_out: Mapping[str, str]) -> Iterator[Section]:
    if left_out:
        yield Section("What is not averaged", table(("benchmark", "why"), [*left_out.items()], text=(1,)))
    if mean is None:
        yield Section("Average against cost", "<p class=loud>The results have no benchmark in common.</p>")
        return
    found = fronts(every, mean)
    known = [cost for cost in COSTS if cost.name in found]
    rows = [
        (label, card.per_cent(score), *("on it" if label in found[cost.name] else "" for cost in known))
        for label, score in mean.scores.items()
    ]
    reason = without_marks(mean)
    marks = [] if reason else average_marks()
    body = (
        f"<p>The mean {escape(mean.metric)} over the {len(mean.benchmarks)} benchmarks that all results have alike, in "
        f"per cent ± one standard error (of the items; the choice of benchmarks has its own): "
        f"{escape(', '.join(mean.benchmarks))}.</p>"
        + table(("", "average", *(f"front by\n{cost.label}" for cost in known)), rows)
        + "<p>The dashed line is the Pareto front of these results: no other is both cheaper and better. Filled marks "
        "were scored in INT4, hollow ones before it.</p>"
        + f"<p class=faint>{escape(reason or CAVEAT)}</p>"
        + _unknown(every)
    )
    panels = [
        (f"average-{cost.name}", f"average over {cost.label}", pictures.draw_average(every, mean, cost, marks))
        for cost in known
    ]
    yield Section("Average against cost", body, panels)
    if marks:
        yield _published(marks)


def _unknown(every: Mapping[str, Results]) -> str:
    lines = [
        f"No {cost.label} is known of {', '.join(lacking)}."
        for cost in COSTS
        if (lacking := [label for label, results in every.items() if cost.of(results) is None])
    ]
    return bullets(lines, "faint")


def _published(marks: Sequence[Mark]) -> Section:
    rows = [
        (
            mark.name,
            f"{100 * mark.score:.1f}",
            f"{mark.flops_per_token / 1e9:.3g} G",
            f"{mark.int4_bytes / 1e6:,.0f} MB",
            "INT4" if mark.int4 else "BF16",
        )
        for mark in marks
    ]
    heads = ("", "average of 14", "FLOPs per decoded token", "INT4 file", "scored in")
    return Section(
        "The paper's points",
        f"<p>{escape(CAVEAT)} FLOPs and bytes are counted as for our own models; those of SmolLM2, Qwen3.5 and Gemma "
        "from their numbers of parameters at 2 FLOPs and 4.5 bits each.</p>" + table(heads, rows, text=(4,)),
    )


def _single(every: Mapping[str, Results]) -> Iterator[Section]:
    panels = []
    for cost in COSTS:
        known = [results for results in every.values() if cost.of(results) is not None]
        if names := _benchmarks(known):
            png = pictures.draw_single(every, names, cost)
            panels.append((f"benchmarks-{cost.name}", f"each benchmark over {cost.label}", png))
    if panels:
        yield Section(
            "Each benchmark against cost",
            "<p>The main metric with one standard error. The grey ring is MobileMoE-S base as the paper measured it, "
            "0-shot and not with this harness: it stands where these results are 0-shot too and no note "
            "says that their data differ.</p>",
            panels,
            wide=True,
        )


def _benchmarks(some: Iterable[Results]) -> list[str]:
    """All benchmarks that any of the results has, each once."""
    return list(dict.fromkeys(name for results in some for name in results.results))


def _scores(every: Mapping[str, Results]) -> Section:
    rows = [(name, *(_score(results, name) for results in every.values())) for name in _benchmarks(every.values())]
    marked = any(not row["published"] for results in every.values() for row in results.results.values())
    return Section(
        "Scores",
        "<p>Per cent ± one standard error; below it metric, shots, examples, and the other metrics.</p>"
        + table(("", *every), rows)
        + (f"<p class=faint>{card.OUR_CHOICE}</p>" if marked else "")
        + bullets(list(dict.fromkeys(note for results in every.values() for note in card.notes(results)))),
    )


def _score(results: Results, name: str) -> str:
    if name not in results.results:
        return "-"
    detail = f"{card.metric_name(results, name)}, {card.shots(results, name)}-shot, n {card.examples(results, name)}"
    others = card.other_metrics(results, name)
    return "\n".join(filter(None, (card.per_cent(main_score(results, name)), detail, others)))


def _missing(every: Mapping[str, Results]) -> Iterator[Section]:
    rows = [(name, label, why) for label, results in every.items() for name, why in results.missing.items()]
    if rows:
        yield Section("Not measured", table(("benchmark", "result", "why"), rows, text=(1, 2)))


def _counts(every: Mapping[str, Results]) -> Section:
    body = "".join(
        f"<h3>{escape(label)}</h3>{bullets(card.counts(results))}<p class=formula>{escape(card.command(results))}</p>"
        for label, results in every.items()
    )
    return Section("What did not fit, and how to repeat it", body)
