"""`mobilemoe info`: what a model is, what it costs, and whether its files are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mobilemoe import accounting
from mobilemoe.checkpoint import Checkpoint
from mobilemoe.checkpoint.container import shorten
from mobilemoe.checkpoint.draft import DRAFT, open_draft
from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.cli.options import JsonOption, plain_console, print_json, refuse_idle
from mobilemoe.config import ModelConfig
from mobilemoe.errors import CheckpointError, MissingExtraError, UsageError
from mobilemoe.files import check_replaceable
from mobilemoe.hub import find_model
from mobilemoe.presets import PRESETS
from mobilemoe.progress import Progress


def info(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help=f"A preset ({', '.join(PRESETS)}), a model's folder or a Hub id."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Context in tokens, for the figures of KV cache, prefill and training (default: 1024)."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every file with the SHA-256 hashes stored in it.")
    ] = False,
    engine: Annotated[
        bool,
        typer.Option("--engine", help="Show this machine's instruction sets, threads and cache folder; without MODEL."),
    ] = False,
    routing: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Draw which experts are used for TEXT or @FILE (a text, or JSONL with domains)."
        ),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The picture that --routing draws (default: routing.png).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show a model's parameters, bytes, KV cache and FLOPs, check its files, or draw which experts a text uses.

    Example: mobilemoe info S --context 4096
    """
    if (model is None) != engine:
        raise UsageError("give either a MODEL or --engine")
    if model is None:
        refuse_idle("is for a MODEL: leave --engine out", context=context, verify=verify, routing=routing, png=png)
        _describe_engine(json)
        return
    if routing is not None:
        refuse_idle("and --routing are two questions: ask them one by one", context=context, verify=verify)
        _describe_routing(newest_model(find_model(model)), routing, png or Path("routing.png"), json)
        return
    refuse_idle("is for --routing", png=png)
    context = 1024 if context is None else context
    if context < 1:
        raise UsageError(f"--context is {context}, but must be at least 1")
    folder = None if model in PRESETS and not verify else newest_model(find_model(model))
    config = PRESETS[model] if folder is None else ModelConfig.load(folder)
    values: dict[str, Any] = {"model": model, **accounting.summary(config, context)}
    if folder is not None:
        values |= {"unknown_config_keys": config.unknown_keys, **_read_files(folder, config, verify)}
    if json:
        print_json(values)
    else:
        _print(config, values)
    if verify and not values["verified"]:
        raise CheckpointError(f"{folder} is damaged: {', '.join(values['damaged'])} differ from what was written")


def _describe_engine(json: bool) -> None:
    from mobilemoe.engine import Engine, instruction_sets
    from mobilemoe.user_cache import usable_cache

    engine = Engine(find_model("nano"))  # opening a model chooses the instruction set
    known = instruction_sets()
    try:
        cache = str(usable_cache("engine"))
    except OSError as fault:
        cache = f"nowhere ({fault})"
    values = {
        "instruction_sets": known,
        "isa": engine.isa,
        "threads": engine.threads,
        "cache": cache,
    }
    if json:
        print_json(values)
        return
    print(f"instruction sets  {', '.join(known)}")
    print(f"computes with     {values['isa']} (MOBILEMOE_ISA=NAME takes another)")
    print(f"threads           {values['threads']}")
    print(f"engine files in   {cache}")


def _describe_routing(folder: Path, text: str, png: Path, json: bool) -> None:
    try:
        from mobilemoe.evaluate.experts.text_routing import text_routing
        from mobilemoe.train.metrics import draw_routing, drawing
    except ModuleNotFoundError as missing:
        raise MissingExtraError(f"the routing of a text ({missing.name})", "train") from None
    drawing()
    check_replaceable(png, "PNG")
    with Progress():
        report = text_routing(folder, text).report()
    draw_routing(report, png)
    experts = len(report["load"][0])
    touched = [experts - dead for dead in report["dead"]]
    tokens = {name: sum(load[0]) for name, load in report["load_by_domain"].items()}
    if json:
        print_json({"png": str(png), "experts": experts, "touched": touched, **report})
        return
    table = Table("layer", "touched", "std/mean", "max/mean", "load entropy", "score entropy")
    for layer, count in enumerate(touched):
        names = ("load_variation", "largest_load", "load_entropy", "score_entropy")
        table.add_row(str(layer), f"{count} of {experts}", *(f"{report[name][layer]:.3f}" for name in names))
    plain_console().print(table)
    print(f"{sum(touched):,} of {experts * len(touched):,} experts touched, {sum(report['dead']):,} not")
    choices = ", ".join(f"{name} {count:,}" for name, count in tokens.items())
    print(f"choices in a layer: {choices}")
    print(f"drawn in {png}")


def _read_files(folder: Path, config: ModelConfig, verify: bool) -> dict[str, Any]:
    """Opens the checkpoint, which checks its header against the config, and checks its hashes where asked to."""
    from mobilemoe.engine import ENGINE_FILE, engine_files, has_engine_file, is_whole

    if has_engine_file(folder):
        values: dict[str, Any] = {"files": [ENGINE_FILE], "file_bytes": (folder / ENGINE_FILE).stat().st_size}
        results: dict[str, bool | None] = {}
    else:
        with Checkpoint.open(folder) as checkpoint:
            values = {
                "files": [path.name for path in checkpoint.files],
                "file_bytes": sum(path.stat().st_size for path in checkpoint.files),
                "tensors": len(checkpoint.tensors),
            }
            results = checkpoint.verify() if verify else {}
    if (draft := open_draft(folder, config)) is not None:
        shape = draft.shape
        values["draft"] = {"file_bytes": draft.bytes, "width": shape.width, "shortlist": shape.shortlist}
        values["draft"]["layers"] = shape.layers
        results |= {DRAFT: draft.verify()} if verify else {}
        draft.close()
    if verify:
        for path in engine_files(folder):  # cached ones included
            results[path.name if path.parent == folder else str(path)] = is_whole(path)
        values["damaged"] = sorted(name for name, whole in results.items() if whole is False)
        values["without_hash"] = sorted(name for name, whole in results.items() if whole is None)
        values["verified"] = not values["damaged"]
    return values


def _print(config: ModelConfig, values: dict[str, Any]) -> None:
    table = Table("part", "parameters", "active per token", "INT4 bytes", title=values["model"], title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for part in accounting.parts(config):
        table.add_row(part.name, f"{part.parameters:,}", f"{part.active_parameters:,}", f"{part.int4_bytes:,}")
    table.add_section()
    totals = (values["total_parameters"], values["active_parameters"], values["int4_file_bytes"])
    table.add_row("total", *(f"{total:,}" for total in totals))
    plain_console().print(table)
    context = values["context"]
    rows = {
        "INT4 in the paper's count": f"{values['int4_paper_bytes'] / 1e9:.3f} GB",
        "BF16": f"{values['bf16_file_bytes'] / 1e9:.3f} GB",
        "KV cache per token, int8": f"{values['kv_bytes_per_token']:,} B",
        f"KV cache of {context:,} tokens": f"{values['kv_bytes'] / 1e6:,.1f} MB",
        "FLOPs per decoded token": f"{values['decode_flops_per_token'] / 1e9:.3f} G",
        f"    after {context:,} tokens": f"{values['decode_flops_at_context'] / 1e9:.3f} G",
        f"FLOPs of a prefill of {context:,}": f"{values['prefill_flops'] / 1e9:,.1f} G",
        f"FLOPs per trained token at {context:,}": f"{values['training_flops_per_token'] / 1e9:.3f} G",
    }
    if "files" in values:
        tensors = f", {values['tensors']} tensors" if "tensors" in values else ""
        rows["files"] = f"{', '.join(values['files'])}: {values['file_bytes']:,} bytes{tensors}"
    if "draft" in values:
        draft = values["draft"]
        rows["draft head"] = (
            f"{DRAFT}: {draft['file_bytes']:,} bytes, width {draft['width']:,}, guesses {draft['shortlist']:,} tokens"
        )
    if values.get("without_hash"):
        rows["without a hash"] = ", ".join(values["without_hash"])
    if values.get("verified"):
        rows["verified"] = "every hash fits" if not values["without_hash"] else "the hashes that there are fit"
    if values.get("unknown_config_keys"):
        rows["unknown in config.json"] = ", ".join(map(shorten, values["unknown_config_keys"]))
    for name, value in rows.items():
        print(f"{name:36} {value}")
