"""Results in words: facts and scores for tables, and a model card in Markdown made of them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from mobilemoe.errors import UsageError
from mobilemoe.evaluate.report.pareto import Score, main_score
from mobilemoe.evaluate.results.results import ROW_FACTS, Results

OUR_CHOICE = "* The paper does not say with how many shots it measured this benchmark: the number is our choice."


def model_card(every: Sequence[Results]) -> str:
    """The card of one model, from the results of one or more suites. UsageError for several models."""
    first = every[0]
    for results in every:
        if results.model["hash"] != first.model["hash"]:
            names = f"{first.model['name']} and {results.model['name']}"
            raise UsageError(f"a model card is of one model, but the results are of {names}: give one model's results")
    blocks = [
        f"# {_plain(first.model['name'])}",
        "*What it was trained on, by whom, for what, and under which licence: to be written by who publishes it.*",
        "## Model",
        _table(("", ""), [*model_facts(first).items()]),
    ]
    for results in every:
        blocks += _suite(results)
    return "\n\n".join(blocks) + "\n"


def _suite(results: Results) -> Iterator[str]:
    yield f"## Scores: {_plain(results.suite)}"
    yield f"{extent(results)} Scores are per cent ± one standard error. {engine(results)}."
    rows = [
        (
            name,
            metric_name(results, name),
            per_cent(main_score(results, name)),
            examples(results, name),
            shots(results, name),
            other_metrics(results, name),
        )
        for name in results.results
    ]
    yield _table(("benchmark", "metric", "score", "examples", "shots", "also"), rows)
    if any(not row["published"] for row in results.results.values()):
        yield OUR_CHOICE.replace("*", "\\*")
    if said := notes(results):
        yield "\n".join(f"- {_plain(note)}" for note in said)
    if results.missing:
        yield "Not measured:"
        yield _table(("benchmark", "why"), [*results.missing.items()])
    yield "\n".join(f"- {note}" for note in counts(results))
    yield "To repeat it:"
    yield f"```\n{command(results)}\n```"


def model_facts(results: Results) -> dict[str, str]:
    """The facts by name, each with its unit; a dash for what is not known."""
    model = results.model
    return {
        "parameters": _known(model["parameters"], lambda count: f"{count:,}"),
        "active for a token": _known(model["active_parameters"], lambda count: f"{count:,}"),
        "INT4 file": _known(model["int4_bytes"], lambda size: f"{size / 1e6:,.1f} MB"),
        "FLOPs per decoded token": _known(model["flops_per_token"], lambda flops: f"{flops / 1e9:.4g} G"),
        "context": _known(model["context"], lambda tokens: f"{tokens:,} tokens"),
        "weights as measured": _known(model["quantization"], str),
        "measured speed": _known(results.speed.get("ms_per_token"), lambda ms: f"{ms:.3g} ms per token"),
    }


def engine(results: Results) -> str:
    """What computed the scores, in a few words."""
    of = results.engine
    threads = f"{of['threads']} threads" if of.get("threads") else ""
    parts = [f"{of['backend']} engine", f"{of['activations']} activations" if of.get("activations") else "", threads]
    return ", ".join([*filter(None, parts), str(of["version"])])


def extent(results: Results) -> str:
    """Whether all examples were used."""
    if results.limit is None:
        return "All examples."
    return f"Only the first {results.limit} examples of each benchmark."


def per_cent(score: Score) -> str:
    """A fraction as per cent with its standard error."""
    return f"{100 * score.value:.1f}" + ("" if score.stderr is None else f" ± {100 * score.stderr:.1f}")


def metric_name(results: Results, benchmark: str) -> str:
    return str(results.results[benchmark]["main_metric"])


def examples(results: Results, benchmark: str) -> str:
    return f"{results.results[benchmark]['n']:,}"


def shots(results: Results, benchmark: str) -> str:
    """The number of shots, with a star where it is our choice."""
    row = results.results[benchmark]
    return f"{row['shots']}{'' if row['published'] else '*'}"


def other_metrics(results: Results, benchmark: str) -> str:
    """The scores that are not the main one, as "acc 31.2 ± 0.5"."""
    row = results.results[benchmark]
    names = [
        name
        for name, value in row.items()
        if name not in ROW_FACTS
        and name != row["main_metric"]
        and not name.endswith("_stderr")
        and isinstance(value, int | float)
    ]
    return ", ".join(f"{name} {per_cent(Score(row[name], row.get(f'{name}_stderr')))}" for name in names)


def notes(results: Results) -> list[str]:
    """What a reader of these scores must know, such as that the data differ from those of published numbers."""
    return [f"{name}: {row['note']}" for name, row in results.results.items() if row.get("note")]


def counts(results: Results) -> list[str]:
    """What happened to examples that did not fit."""
    cut, capped = results.counts["left_truncations"], results.counts["token_cap_hits"]
    return [
        f"{cut:,} requests were too long for the context and lost their beginning.",
        f"{capped:,} answers were still going on when they met the limit of new tokens.",
    ]


def command(results: Results) -> str:
    """The command that reproduces these results; --data names a folder of test sets where there is no network."""
    parts = ["mobilemoe", "eval", str(results.model["name"]), "--suite", results.suite]
    if results.limit is not None:
        parts += ["--limit", str(results.limit)]
    for option in ("backend", "activations"):
        if value := results.engine.get(option):
            parts += [f"--{option}", str(value)]
    return shlex.join(parts)


def _known(value: Any, text: Any) -> str:
    return "-" if value is None else str(text(value))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: Any) -> str:
    """The name on one line, with Markdown escaped."""
    line = " ".join(str(text).split())
    return "".join(f"\\{letter}" if letter in r"\`*[]<>|" else letter for letter in line)
