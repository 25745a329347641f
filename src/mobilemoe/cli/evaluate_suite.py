"""`mobilemoe eval --suite`: runs models on the same benchmarks, compares them, and prints tables."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from mobilemoe.cli.options import WIDE, plain_console
from mobilemoe.errors import UsageError
from mobilemoe.evaluate.compare.contamination import (
    Clean,
    Overlap,
    find_overlaps,
    scores_without,
    task_items,
    training_texts,
)
from mobilemoe.evaluate.compare.paired import Comparison, paired, read_examples, unlike
from mobilemoe.evaluate.models.harness import HarnessModel
from mobilemoe.evaluate.models.scorer import ModelScorer, Scorer
from mobilemoe.evaluate.results.results import Results, save_results
from mobilemoe.evaluate.run import Prepared, evaluate, prepare, prompts
from mobilemoe.files import write_atomic
from mobilemoe.load import Model
from mobilemoe.progress import Progress

_PROMPTS = 100  # prompts of each benchmark whose experts are counted


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `mobilemoe eval` that concern suites."""

    suite: str
    data: Path | None
    limit: int | None
    allow_code: bool
    chat: bool | None
    cache: Path | None
    out: Path
    training: tuple[Path, ...]
    experts: bool
    threads: int | None
    changed: Mapping[str, object]  # options of the engine and of routing by which scores differ, None where not given


@dataclass
class Found:
    """The results, by the models' names as the user gave them."""

    results: dict[str, Results] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    beside: dict[Path, Path] = field(default_factory=dict)  # paths with a longer name, and whose name they do not have
    differences: dict[str, Comparison] = field(default_factory=dict)
    against: str | None = None
    overlaps: dict[str, Overlap] = field(default_factory=dict)
    pages: list[Path] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "suites": {name: dataclasses.asdict(results) for name, results in self.results.items()},
            "against": {name: found.as_json() for name, found in self.differences.items()},
            "contamination": {name: overlap.as_json() for name, overlap in self.overlaps.items()},
            "written": [str(path) for path in (*self.paths.values(), *self.pages)],
        }

    def print(self) -> None:
        for name, results in self.results.items():
            self._print_scores(name, results)
        for name, found in self.differences.items():
            _print_differences(name, str(self.against), found)
        for path in (*self.paths.values(), *self.pages):
            beside = f", since {self.beside[path]} holds other results" if path in self.beside else ""
            print(f"written: {path}{beside}")

    def _print_scores(self, name: str, results: Results) -> None:
        clean: dict[str, Clean] = {}
        if self.overlaps:
            clean = scores_without(read_examples(self.paths[name].with_suffix(".jsonl")), self.overlaps)
        table = Table("benchmark", "metric", "score, %", "±", "acc / acc_norm", "examples", "shots", title=name)
        if clean:
            table.add_column("in training")
            table.add_column("score without")
        for benchmark, row in results.results.items():
            metric = row["main_metric"]
            both = " / ".join(_percent(row.get(each)) for each in ("acc", "acc_norm")) if "acc" in row else ""
            cells = [benchmark + ("*" if row["note"] else ""), metric, _percent(row[metric])]
            cells += [_percent(row[f"{metric}_stderr"]), both, f"{row['n']:,}", str(row["shots"])]
            if clean:
                overlap = self.overlaps[benchmark]
                without = _percent(clean[benchmark].clean_score) if benchmark in clean else "-"
                cells += [f"{len(overlap.found):,} of {overlap.checked:,}", without]
            table.add_row(*cells)
        plain_console(WIDE).print(table)
        for benchmark, row in results.results.items():
            if row["note"]:
                print(f"* {benchmark}: {row['note']}")
        for benchmark, reason in results.missing.items():
            print(f"missing: {benchmark}: {reason}")
        cut, capped = results.counts["left_truncations"], results.counts["token_cap_hits"]
        print(f"{cut:,} prompts lost their beginning, {capped:,} answers were cut short; {results.seconds:,.0f} s")


def run_suite(
    names: Sequence[str],
    against: str | None,
    backend: str,
    load: Callable[[str], Model],
    settings: Settings,
    progress: Progress,
) -> Found:
    """Scores each model, writes the results as soon as they exist, and compares with `against`."""
    prepared = prepare(settings.suite, data_dir=settings.data, allow_code=settings.allow_code)
    found = Found(against=against)
    if settings.training:
        found.overlaps = find_overlaps(
            task_items(prepared.tasks), training_texts(settings.training), progress.counter("characters of training")
        )
    everyone = [*names, *([against] if against is not None else [])]
    for name in everyone:
        model = HarnessModel(_scorer(name, backend, load, settings), cache_dir=settings.cache)
        found.results[name], examples = evaluate(
            model, prepared, limit=settings.limit, chat=settings.chat, on_progress=_teller(progress, name)
        )
        file, longer = _file_names(name, backend, settings)
        path = found.paths[name] = save_results(found.results[name], examples, settings.out, file, longer)
        if path.stem != file:
            found.beside[path] = path.with_stem(file)
        if settings.experts:
            found.pages.append(_write_experts(name, model, prepared, path, progress))
    if against is not None:
        theirs = read_examples(found.paths[against].with_suffix(".jsonl"))
        for name in names:
            ours = read_examples(found.paths[name].with_suffix(".jsonl"))
            left_out = unlike(found.results[name], found.results[against])
            found.differences[name] = paired(ours, theirs, left_out=left_out)
    return found


def _teller(progress: Progress, name: str) -> Callable[[int, int, str], None]:
    return lambda done, total, kind: progress.tell(done, total, f"{name}: {kind}")


def _scorer(name: str, backend: str, load: Callable[[str], Model], settings: Settings) -> Scorer:
    if backend == "gguf" or name.endswith(".gguf"):
        from mobilemoe.evaluate.models.gguf import GgufScorer

        return GgufScorer(name, threads=settings.threads)
    return ModelScorer(load(name), _called(name))


def _called(name: str) -> str:
    """A readable name of the model: "." and ".." become the folders that they mean."""
    return os.path.abspath(name) if Path(name).name in ("", "..") else str(Path(name))


def _file_names(name: str, backend: str, settings: Settings) -> tuple[str, str]:
    """The names for a model's results, without their ending, valid on every file system: the model's last name and the
    suite, and the same with every option that was given and makes other scores."""
    plain = [Path(_called(name).removesuffix(".gguf")).name, settings.suite]
    parts = list(plain)
    if name.endswith(".gguf") or backend != "native":
        parts.append("gguf" if name.endswith(".gguf") else backend)
    if settings.chat is not None:
        parts.append("chat" if settings.chat else "no-chat")
    for option, value in {"limit": settings.limit, **settings.changed}.items():
        if value is not None:
            parts.append(f"{option.replace('_', '-')}-{value}")
    plain_name, longer = (re.sub(r"[^\w.-]+", "-", "-".join(each)) for each in (plain, parts))
    return plain_name, longer


def _write_experts(name: str, model: HarnessModel, prepared: Prepared, path: Path, progress: Progress) -> Path:
    from mobilemoe.evaluate.experts.expert_use import count_experts, section
    from mobilemoe.page import page

    if not isinstance(model.scorer, ModelScorer):
        raise UsageError(f"{name} does not tell which experts it chooses: --experts is for models of ours")
    counter = progress.counter(f"{name}: prompts whose experts are counted")
    use = count_experts(model.scorer.loaded, prompts(model, prepared, _PROMPTS), on_prompt=counter)
    shown = section(use)
    html = path.with_name(f"{path.stem}-experts.html")
    write_atomic(html, page(f"Experts of {name}", [shown]))
    return html


def _print_differences(name: str, against: str, found: Comparison) -> None:
    table = Table("benchmark", name, against, "difference, points", "95% interval", "wins : losses", "examples")
    for benchmark, each in found.differences.items():
        table.add_row(
            benchmark,
            _percent(each.a),
            _percent(each.b),
            f"{100 * each.difference:+.2f}",
            f"{100 * each.low:+.2f} to {100 * each.high:+.2f}",
            f"{each.wins:,} : {each.losses:,}",
            f"{each.examples:,}",
        )
    plain_console(WIDE).print(table)
    for benchmark, reason in found.left_out.items():
        print(f"left out: {benchmark}: {reason}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
