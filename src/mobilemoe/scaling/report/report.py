"""A law, or a fit of one, as a self-contained HTML page with its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from mobilemoe.counted import counted
from mobilemoe.files import write_atomic
from mobilemoe.page import Section, bullets, page, table
from mobilemoe.paper import SWEPT
from mobilemoe.presets import FAMILY_KNOBS
from mobilemoe.scaling.law.compare import Row
from mobilemoe.scaling.law.domain import share_of_box
from mobilemoe.scaling.law.fit import Fit
from mobilemoe.scaling.law.forms import FORMS
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.optimum.optimum import known_values
from mobilemoe.scaling.report import curves, pictures
from mobilemoe.scaling.report.pictures import NAMES
from mobilemoe.scaling.report.scene import Scene
from mobilemoe.scaling.report.words import count, number

MEANINGS = {
    "A": "factor of the size term",
    "alpha": "exponent of N",
    "delta": "how the size term changes with the knob",
    "gamma": "how the exponent of N changes with the knob",
    "kappa": "share of the size term that finer experts take away",
    "phi": "how fast granularity does so",
    "sigma": "what a shared expert takes from the size term",
    "B": "factor of the data term",
    "beta": "exponent of D",
    "omega": "how the data term changes with the knob",
    "zeta": "how the exponent of D changes with the knob",
    "c": "loss that no model and no text removes",
    "E_max": "number of experts at which their effect saturates",
}


def write_report(
    subject: Fit | Law,
    path: Path | str,
    *,
    comparison: Sequence[Row] = (),
    vocab_size: int = 128_256,
    context: int = 4096,
    pngs: bool = False,
) -> list[Path]:
    """Writes the page of a fit or a law, and with `pngs` its pictures into a folder beside it. Returns all files.

    comparison: the rows of `compare.compare`, for the table of BIC. vocab_size and context: those of the family's
    members, over whose memory the curves are drawn. MissingExtraError without matplotlib.
    """
    pictures.drawing()
    path = Path(path)
    fit, law = (subject, subject.law) if isinstance(subject, Fit) else (None, subject)
    sections = [_the_law(law, fit)]
    if fit is not None:
        sections += _of_fit(fit, comparison)
    scene = _scene(law, fit, vocab_size, context)
    if scene is None:
        reason = (
            "There are no curves: the law must say in its domain which N and D it was measured at, and members of the "
            f"family with a vocabulary of {vocab_size:,} must lie there. Give the vocabulary of the law's own models."
        )
        sections.append(Section("Curves", f"<p class=loud>{reason}</p>"))
    else:
        sections += [curves.compute_optimum(scene), curves.equal_memory(scene), curves.equal_loss(scene)]
    write_atomic(path, page(f"Scaling law: {law.form}", sections))
    written = [path]
    if pngs:
        folder = path.with_name(f"{path.stem}-pictures")
        folder.mkdir(exist_ok=True)
        for section in sections:
            for name, _, png in section.pictures:
                written.append(folder / f"{name}.png")
                write_atomic(written[-1], png)
    return written


def _scene(law: Law, fit: Fit | None, vocab_size: int, context: int) -> Scene | None:
    """The scene of the curves; None where the law has no domain, or no member of the family is near it."""
    if not {"n_active", "tokens"} <= law.domain.keys():
        return None
    granularity = min(known_values(law, "granularity"), key=lambda g: abs(np.log(g / FAMILY_KNOBS["granularity"])))
    shared = 0 if granularity % 2 else max(known_values(law, "shared"))
    ends = np.array(law.hull or [*zip(law.domain["n_active"], law.domain["tokens"], strict=True)])
    flops = ends.prod(axis=1) * 6e18 if fit is None else fit.runs.flops
    scene = Scene(
        law=law,
        experts=_experts(law, fit),
        granularity=granularity,
        shared=shared,
        flops=(float(flops.min()), float(flops.max())),
        vocab_size=vocab_size,
        context=context,
    )
    return scene if any(len(scene.sizes(knobs)) for knobs in scene.lines) else None


def _experts(law: Law, fit: Fit | None) -> tuple[int, ...]:
    """The E of the runs, if they are few and whole numbers, else the paper's E in the domain."""
    if fit is not None:
        found = np.unique(fit.runs.points.experts)
        knows = "experts" in FORMS[law.form].columns or len(found) == 1
        if knows and len(found) <= len(SWEPT["experts"]) and np.all(found == found.round()):
            return tuple(int(e) for e in found)
    return known_values(law, "experts")


# Sections


def _the_law(law: Law, fit: Fit | None) -> Section:
    form = FORMS[law.form]
    embedding = {
        True: "counts the embedding",
        False: "leaves the embedding out",
        None: "may or may not count the embedding",
    }
    facts = [
        f"Form: {form.source}.",
        f"Constants: {law.source}.",
        "L is in nats per token; N is active parameters and D training tokens, both in billions.",
        f"N {embedding[law.counts_embedding]}.",
        f"RMSE of the fit: {law.rmse:.4f} nats. Intervals: {_interval(law)}.",
    ]
    if law.forecast_rmse is not None:
        facts.append(
            f"RMSE of its forecast: {law.forecast_rmse:.4f} nats{law.forecast_split and f', {law.forecast_split}'}."
        )
    facts += [f"Left out, far from a fit to all: {', '.join(law.left_out)}."] if law.left_out else []
    facts += [f"Priors: {law.weak_prior}."] if law.weak_prior else []
    doubts = [f"Assumed, not measured: {law.prior}."] if law.prior else []
    notes = [] if fit is None else [*fit.runs.notes, *fit.notes]
    constants = []
    for name, value in law.parameters.items():
        ends = law.parameter_interval(name)
        interval = "" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"
        if fit is not None and name not in fit.free:
            interval = "held"
        constants.append((name, f"{value:.4f}", interval, MEANINGS[name]))
    words = {"n_active": count, "tokens": count}
    domain = [(NAMES[name], *map(words.get(name, number), ends)) for name, ends in law.domain.items()]
    return Section(
        "The law",
        f"<p class=formula>{escape(form.formula)}</p>"
        + bullets(facts)
        + bullets(doubts, "loud")
        + table(("constant", "value", "90% interval", "what it does"), constants, text=(3,))
        + "<h3>Domain: where the runs were</h3>"
        + table(("", "from", "to"), domain)
        + f"<p class=faint>{_hull(law)}Outside the domain the law is an extrapolation and may rank models wrongly: "
        "curves are dashed.</p>" + bullets(notes, "faint"),
        [("domain", "the runs and their hull", pictures.draw(lambda axes: pictures.domain(axes, law, fit)))]
        if law.hull
        else [],
    )


def _hull(law: Law) -> str:
    if law.hull is None:
        return ""
    return (
        f"Within these ranges the domain is the convex hull of ln N and ln D of the runs, {share_of_box(law.hull):.0%} "
        "of the box. "
    )


def _of_fit(fit: Fit, comparison: Sequence[Row]) -> Iterator[Section]:
    points = fit.runs.points
    yield Section(
        "Fit against data",
        f"<p>Each point is one of {counted(len(fit.runs), 'run')}. The nearer to the line, the better the law tells "
        f"its loss: RMSE {fit.rmse:.4f}, mean absolute error {fit.mae:.4f} nats per token.</p>",
        [("fit", "predicted against measured loss", pictures.draw(lambda axes: pictures.measured(axes, fit)))],
    )
    varied = [name for name in NAMES if len(np.unique(getattr(points, name))) > 1]
    yield Section(
        "What the fit leaves over",
        "<p>Good residuals have no pattern. A slope or a bend means that the law misses something in that column, and "
        "that it should not be trusted far beyond the runs. The grey band is the RMSE.</p>",
        [(f"residuals-{name}", f"residuals over {NAMES[name]}", _residuals(fit, name)) for name in varied],
    )
    if (held := fit.holdout) is not None:
        yield Section(
            "Hold-out",
            f"<p>Forecast of {held.split}: RMSE {held.rmse:.4f}, mean absolute error {held.mae:.4f} nats. That is how "
            "well the law reaches beyond its runs, which is what it is for.</p>",
            [("holdout", "held-out runs", pictures.draw(lambda axes: pictures.predicted(axes, held)))],
        )
    if comparison:
        yield _comparison(comparison)
    if (apart := fit.apart) is not None:
        rows = [(name, f"{value:.4f}") for name, value in apart.law.parameters.items()]
        yield Section(
            "Runs that repeat data",
            f"<p>The same form, fitted to {counted(len(apart.runs), 'run')} that saw data more than once "
            f"(RMSE {apart.rmse:.4f} nats). They take no part in anything else on this page.</p>"
            + table(("constant", "value"), rows),
        )


def _residuals(fit: Fit, name: str) -> bytes:
    return pictures.draw(lambda axes: pictures.residuals(axes, fit, name))


def _comparison(compared: Sequence[Row]) -> Section:
    best = min(row.bic for row in compared)
    cells = []
    for row in sorted(compared, key=lambda row: row.bic):
        held = row.holdout_rmse
        predicted_rmse = "" if held is None or not np.isfinite(held) else f"{held:.4f}"
        name = f"{row.name} (plain rival)" if row.rival else row.name
        cells.append(
            (name, f"{row.parameters}", f"{row.rmse:.4f}", predicted_rmse, f"{row.bic:.1f}", f"{row.bic - best:.1f}")
        )
    return Section(
        "Which form the runs support",
        "<p>BIC weighs the fit against the number of constants: lower is better, a difference above 10 is clear.</p>"
        + table(("form", "constants", "RMSE", "held-out RMSE", "BIC", "above the best"), cells),
    )


def _interval(law: Law) -> str:
    if law.samples is None:
        return "none were drawn, so the RMSE stands in for them"
    return f"90% of {counted(len(law.samples), 'bootstrap sample')}"
