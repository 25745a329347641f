"""Draws a plan (loss against bytes, FLOPs and milliseconds), and writes it as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mobilemoe.counted import counted
from mobilemoe.drawing import png
from mobilemoe.files import write_atomic
from mobilemoe.page import Section, bullets, page, table
from mobilemoe.scaling.plan.candidates import Array, Candidate
from mobilemoe.scaling.plan.explain import Relief, amount, memory_of, title
from mobilemoe.scaling.plan.limits import Constraints, given
from mobilemoe.scaling.plan.plan import Plan
from mobilemoe.scaling.plan.vocabulary import VocabularyBest
from mobilemoe.scaling.report.pictures import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN_EXPERTS = (1, 2, 4, 8, 16, 32)  # one line for each of these in the plan
ROOM = 0.12  # nats that are shown above the best loss


class Axis(NamedTuple):
    """A cost that loss is drawn against; `values` and `limit` are in the units of the axis."""

    column: str
    label: str
    values: Array
    limit: float | None


def axes_of(plan: Plan) -> list[Axis]:
    """Memory and FLOPs; with a device also the milliseconds of a decoded token and of the first one."""
    table, limits = plan.table, plan.constraints
    axes = [
        Axis(
            "memory",
            f"memory, {memory_of(plan.device)} (GB)",
            table.memory / 1e9,
            _scaled(limits.memory or limits.max_memory, 1e-9),
        ),
        Axis("flops", "GFLOPs per decoded token", table.flops / 1e9, _scaled(limits.flops, 1e-9)),
    ]
    if plan.device is not None:
        slowest = None if limits.decode is None else 1e3 / limits.decode
        axes += [
            Axis("decode", f"ms per decoded token after {limits.context:,}", 1e3 / table.decode_least, slowest),
            Axis(
                "ttft",
                f"ms to the first token, prompt {limits.prompt:,}",
                1e3 * table.ttft_most,
                _scaled(limits.ttft, 1e3),
            ),
        ]
    return axes


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def front(costs: Array, losses: Array) -> tuple[Array, Array]:
    """The Pareto front of points, small in both coordinates: cost ascending, loss falling."""
    order = np.lexsort((losses, costs))
    least = np.minimum.accumulate(losses[order])
    first = np.flatnonzero(np.diff(least, prepend=np.inf) < 0)
    return costs[order][first], least[first]


def draw(plan: Plan) -> bytes:
    """A PNG with a panel for each cost: the best loss within all limits except the limit on that cost."""
    axes = axes_of(plan)
    figure = drawing()(figsize=(12, 4.9 * len(axes) / 2), layout="constrained")
    for panel, axis in zip(np.ravel(figure.subplots(len(axes) // 2, 2)), axes, strict=True):
        _draw_panel(panel, plan, axis)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(f"Predicted loss within the limits ({_limits(plan.constraints)})", fontsize=11)
    return png(figure, dpi=120)


def _draw_panel(panel: Axes, plan: Plan, axis: Axis) -> None:
    table = plan.table
    mask = table.allowed(plan.constraints, without=axis.column)
    if plan.candidates:
        mask &= table.comparable(plan.candidates[0].config)
    if mask.any():
        best = float(plan.losses[mask].min())
        panel.set_ylim(best - 0.1 * ROOM, best + ROOM)
    for index, experts in enumerate(DRAWN_EXPERTS):
        chosen = mask & (table.experts == experts)
        if chosen.any():
            name = "dense" if experts == 1 else f"E = {experts}"
            colour = "black" if experts == 1 else f"C{index - 1}"
            panel.step(*front(axis.values[chosen], plan.losses[chosen]), where="post", color=colour, label=name, lw=1.3)
    if axis.limit is not None:
        panel.axvline(axis.limit, color="0.4", linestyle="--", linewidth=1, label="limit")
    if plan.candidates:
        first = plan.candidates[0]
        panel.plot(_place(first, axis.column), first.loss, "*", color="tab:red", markersize=13, label="first choice")
    panel.set_xscale("log")
    if mask.any():
        shown = mask & (plan.losses <= panel.get_ylim()[1])
        low, high = axis.values[shown].min(), axis.values[shown].max()
        panel.set_xlim(low / 1.1, min(high, 30 * low) * 1.1)
    panel.set_xlabel(axis.label)
    panel.set_ylabel("loss (nats per token)")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(_sparse)
    panel.grid(alpha=0.3, which="both")


def _sparse(value: float, _: float) -> str:
    """Labels of minor ticks: those that begin with 2, 3 or 5."""
    return f"{value:g}" if f"{value:e}"[0] in "235" else ""


def _place(c: Candidate, column: str) -> float:
    places = {
        "memory": c.memory / 1e9,
        "flops": c.flops / 1e9,
        "decode": 1e3 / (c.decode_least or np.inf),
        "ttft": 1e3 * (c.ttft_most or 0),
    }
    return places[column]


def _limits(constraints: Constraints) -> str:
    limits = [f"{name.replace('_', ' ')} {amount(name, getattr(constraints, name))}" for name in given(constraints)]
    return ", ".join(limits) or "no limits"


def relief_text(relief: Relief, digits: int) -> str:
    """One line of the sensitivity section; `digits` are the decimals that the law's error warrants."""
    to = amount(relief.limit, relief.relaxed_to)
    relaxed = f"10% on {relief.limit.replace('_', ' ')} ({to})"
    if relief.buys == 0:
        return f"{relaxed} buys nothing: it does not bind"
    verb = "buys" if relief.buys > 0 else "costs, by a law that is outside its domain,"
    least = 10.0**-digits
    if abs(relief.buys) < least:
        return f"{relaxed} {verb} less than {least:.{digits}f} nats"
    return f"{relaxed} {verb} {abs(relief.buys):.{digits}f} nats"


def equivalent_text(plan: Plan) -> str:
    """How many models the law cannot tell apart, and what they are like; empty if nothing fits."""
    same = plan.equivalent
    if same is None:
        return ""
    verb = "is" if same.count == 1 else "are"
    return (
        f"best predicted loss {same.least:.{plan.digits}f} nats, priors included; {counted(same.count, 'model')} "
        f"{verb} equivalent to it, within the law's error of {same.error:.2g} ({same.error_of}): "
        f"E {_span(*same.experts)}, "
        f"g {_span(*same.granularity)}, width {_span(*same.width)}, "
        f"N active {same.n_active[0] / 1e9:.3f} to {same.n_active[1] / 1e9:.3f} B"
    )


def _span(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def vocabulary_text(best: VocabularyBest, digits: int) -> str:
    """One line for the best model of one vocabulary."""
    held, bits = best.bytes_per_token or 0.0, best.bits_per_byte or 0.0
    return (
        f"vocabulary {best.vocabulary:,}: {held:.2f} bytes a token, best score {best.score:.{digits}f}, loss "
        f"{best.loss:.{digits}f} ({bits:.{digits}f} bits per byte), width {best.width:.0f}"
    )


def headings(plan: Plan) -> tuple[str, ...]:
    """The headings of `row`; memory says what it is of."""
    margin = "" if plan.device is None or plan.device.error is None else f"\n+-{plan.device.error:.0%}"
    memory = "process\nweights + KV" if memory_of(plan.device).startswith("process") else "memory\nweights + KV"
    return (
        "",
        "architecture",
        "score\nlaw's loss",
        memory,
        "GFLOPs",
        f"decode\n1st token{margin}",
        "N active\nN total",
        "D",
    )


def row(rank: int, c: Candidate, digits: int) -> Iterator[str]:
    """The cells of one candidate under `headings`; the second line of a cell follows a newline."""
    config = c.config
    yield f"{rank}{'=' if c.equivalent else ''}{'!' if c.outside else ''}"
    ffn = f"{config.num_local_experts} x {config.intermediate_size}, top {config.num_experts_per_tok}"
    bits = "" if c.weight_bits == 4 else f", {c.weight_bits}-bit"
    bits += "" if c.kv_bits == 8 else f", KV {c.kv_bits}-bit"
    vocabulary = "" if config.vocab_size == 128_256 else f", vocabulary {config.vocab_size:,}"
    untied = "" if config.tie_word_embeddings else ", untied"
    yield (
        f"{title(c)}{f': {ffn}' if config.is_moe else ''}{bits}{vocabulary}{untied}\n"
        f"{config.hidden_size} x {config.num_hidden_layers} layers, "
        f"{config.num_attention_heads}/{config.num_key_value_heads} heads of {config.head_dim}"
    )
    yield f"{c.score:.{digits}f}\n{c.low:.{digits}f}-{c.high:.{digits}f}"
    held = "" if c.held == 1 else f", {c.held:.0%} held"
    yield f"{c.memory / 1e9:.3f} GB{held}\n{c.weights / 1e9:.3f} + {c.kv / 1e9:.3f}"
    yield f"{c.flops / 1e9:.3f}"
    yield "-" if c.decode is None or c.ttft is None else f"{c.decode:.1f} tok/s\n{c.ttft:.2f} s"
    yield f"{c.n_active / 1e9:.3f} B\n{c.n_total / 1e9:.3f} B"
    yield _tokens(c.tokens)


def _tokens(count: float) -> str:
    """Whole billions, but three digits of a smaller count."""
    if count >= 1e10:
        return f"{count / 1e9:,.0f} B"
    return f"{count / 1e9:.3g} B" if count >= 1e9 else f"{count / 1e6:.3g} M"


def write_report(plan: Plan, path: Path | str) -> None:
    """Writes the page with its picture inside."""
    found = bullets(plan.infeasible, "loud")
    if plan.candidates:
        rows = [[*row(rank, candidate, plan.digits)] for rank, candidate in enumerate(plan.candidates, 1)]
        found = table(headings(plan), rows, text=(1,))
    intro = (
        f"Limits: {_limits(plan.constraints)}. {counted(len(plan.table), 'model')} considered. Scores and losses in "
        f"nats per token, losses as their interval ({plan.law.interval_kind}); = is equivalent to the best, ! is "
        "outside the law's domain."
    )
    loud = [note for note in plan.notes if note.startswith(("OUTSIDE", "NOTHING LIMITS"))]
    notes = [note for note in plan.notes if note not in loud]
    sections = [
        Section("Candidates" if plan.candidates else "No candidate fits", f"<p>{escape(intro)}</p>{found}"),
        Section("Equivalent", bullets([text] if (text := equivalent_text(plan)) else [])),
        Section("Larger than memory", bullets([plan.larger.verdict] if plan.larger else [])),
        Section("Runner-up", bullets([plan.runner_up] if plan.runner_up else [])),
        Section("Vocabularies", bullets([vocabulary_text(best, plan.digits) for best in plan.vocabularies])),
        Section("What 10% more would buy", bullets([relief_text(relief, plan.digits) for relief in plan.reliefs])),
        Section(
            "Loss against costs",
            "<p>Each panel shows the least loss within all limits but its own.</p>",
            [("costs", "Pareto fronts of loss against costs", draw(plan))],
            wide=True,
        ),
        Section("What this rests on", bullets(loud, "loud") + bullets(notes)),
    ]
    write_atomic(path, page("Plan", [section for section in sections if section.body]))
