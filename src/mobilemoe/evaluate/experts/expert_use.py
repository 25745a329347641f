"""Which experts a benchmark's prompts use, how many experts a prompt touches, and how much memory these take.

L MoE layers, T tokens, A active experts per token, E experts, P prompts, W windows of a prompt's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe import accounting
from mobilemoe.config import ModelConfig
from mobilemoe.drawing import figure_kind, png
from mobilemoe.errors import DataError, UsageError
from mobilemoe.load import Model, load
from mobilemoe.page import Section, bullets, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mobilemoe.model import MobileMoE

Ints = NDArray[np.int64]

WINDOW = 32  # tokens of decoding whose experts are counted together
_QUANTILES = (0.1, 0.5, 0.9)
_COLUMNS = 3  # of layers in a picture


@dataclass(frozen=True)
class BenchmarkUse:
    """The expert use of one benchmark: the tokens of each prompt, `tokens_P`, how often each expert of a layer was
    chosen, and how many different experts each prompt, and each full window of WINDOW consecutive tokens, touched in
    each layer.
    """

    tokens_P: Ints
    load_LE: Ints
    distinct_PL: Ints
    distinct_WL: Ints


@dataclass(frozen=True)
class ExpertUse:
    """The result of `count_experts`, by benchmark."""

    config: ModelConfig
    benchmarks: dict[str, BenchmarkUse]

    def chance(self, tokens: Ints) -> NDArray[np.float64]:
        """The different experts, summed over layers, that a router which draws A of E uniformly for each token would
        touch.

        This is E (1 - (1 - A/E)^T) in a layer: a token misses an expert with probability 1 - A/E, T times in a row.
        """
        c = self.config
        missed = (1 - c.num_experts_per_tok / c.num_local_experts) ** tokens
        touched: NDArray[np.float64] = np.asarray(c.num_hidden_layers * c.num_local_experts * (1 - missed))
        return touched

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert in the INT4 file."""
        parts = accounting.parts(self.config)
        return sum(part.int4_bytes // part.count for part in parts if part.name.startswith("routed experts"))

    @property
    def always_bytes(self) -> int:
        """Bytes of the weights that every token reads, whatever its experts are."""
        c = self.config
        return accounting.decode_bytes(c) - c.num_hidden_layers * c.num_experts_per_tok * self.expert_bytes

    def share_of_file(self, distinct: float) -> float:
        """The share of the INT4 file's payload that is read with so many different experts, summed over layers."""
        return (self.always_bytes + distinct * self.expert_bytes) / accounting.int4_file_bytes(self.config)

    def as_json(self) -> dict[str, Any]:
        c = self.config
        return {
            "layers": c.num_hidden_layers,
            "experts": c.num_local_experts,
            "experts_per_token": c.num_experts_per_tok,
            "expert_bytes": self.expert_bytes,
            "always_bytes": self.always_bytes,
            "int4_bytes": accounting.int4_file_bytes(c),
            "window": WINDOW,
            "benchmarks": {name: self._benchmark(use) for name, use in self.benchmarks.items()},
        }

    def _benchmark(self, use: BenchmarkUse) -> dict[str, Any]:
        window = np.full(len(use.distinct_WL), WINDOW)
        return {
            "prompts": len(use.tokens_P),
            "tokens": int(use.tokens_P.sum()),
            "load": use.load_LE.tolist(),
            "never_used": int((use.load_LE == 0).sum()),
            "prompt": self._touched(use.distinct_PL, use.tokens_P),
            "decode_window": self._touched(use.distinct_WL, window) if len(window) else None,
        }

    def _touched(self, distinct_NL: Ints, tokens_N: Ints) -> dict[str, Any]:
        """Distinct experts of prompts or windows over all layers, the number by chance, and their share of the file."""
        distinct_N = distinct_NL.sum(axis=1)
        mean = float(distinct_N.mean())
        return {
            "distinct": mean,
            **{f"distinct_p{q:.0%}".rstrip("%"): float(np.quantile(distinct_N, q)) for q in _QUANTILES},
            "distinct_by_layer": distinct_NL.mean(axis=0).tolist(),
            "chance": float(self.chance(tokens_N).mean()),
            "bytes": self.always_bytes + mean * self.expert_bytes,
            "share_of_file": self.share_of_file(mean),
        }


def count_experts(
    model: Model,
    prompts: Mapping[str, Sequence[Sequence[int]]],
    *,
    on_prompt: Callable[[int], None] | None = None,
) -> ExpertUse:
    """Counts the experts of each benchmark's prompts (ids), each computed as a whole; of a longer one, the end that
    fits.

    The experts of a token do not depend on later tokens, so the windows of a prompt show what decoding that text would
    touch. The choices are those of the PyTorch model with the same weights (see `torch_model`), which needs the extra.
    `on_prompt` is told how many are done. DataError for a benchmark without prompts or with an empty one, UsageError
    for a dense model.
    """
    config = model.config
    if not config.is_moe:
        raise UsageError(f"{model.folder} has no experts to count")
    for name, each in prompts.items():
        if not each or not all(map(len, each)):
            raise DataError(f"{name} has no prompts, or an empty one, to count experts of")
    torch_form = torch_model(model)
    counted, done = {}, 0
    for name, each in prompts.items():
        load_LE = np.zeros((config.num_hidden_layers, config.num_local_experts), np.int64)
        distinct, windows = [], []
        for ids in each:
            used_LTE = _used(choose_experts(torch_form, ids[-config.max_position_embeddings :])[1], config)
            load_LE += used_LTE.sum(axis=1)
            distinct.append(used_LTE.any(axis=1).sum(axis=1))
            windows += [
                used_LTE[:, start : start + WINDOW].any(axis=1).sum(axis=1)
                for start in range(0, used_LTE.shape[1] - WINDOW + 1, WINDOW)
            ]
            done += 1
            if on_prompt is not None:
                on_prompt(done)
        tokens = [min(len(ids), config.max_position_embeddings) for ids in each]
        no_windows = np.empty((0, config.num_hidden_layers), np.int64)
        counted[name] = BenchmarkUse(
            np.array(tokens), load_LE, np.array(distinct), np.array(windows) if windows else no_windows
        )
    return ExpertUse(config, counted)


def torch_model(model: Model) -> MobileMoE:
    """The PyTorch form of a model. A model that runs natively is read again from its INT4 folder, and computes in fp32.

    The native engine reports the experts that it chose, but not their weights. Its choices are the same except for near
    ties, which int8 activations may decide differently. UsageError for BF16 weights that were rounded while loading,
    MissingExtraError without torch.
    """
    backend = model.backend
    if model.engine:
        if not model.config.is_quantized:
            raise UsageError(
                f"{model.folder} was rounded to INT4 while it was loaded, which hides its choices of experts: "
                "save it with `mobilemoe quantize`, or use the `backend` 'torch'"
            )
        backend = load(model.folder, backend="torch").backend
    form: MobileMoE = backend.model  # type: ignore[attr-defined]
    return form


def choose_experts(model: MobileMoE, ids: Sequence[int]) -> tuple[NDArray[np.float32], Ints]:
    """logits_TV and the chosen experts_LTA of each layer, from one forward pass."""
    import torch

    with torch.inference_mode():
        tokens_BT = torch.tensor([list(ids)], device=model.head_VD.device)
        x_BTD, routings = model.hidden(tokens_BT)
        logits_TV: NDArray[np.float32] = model.logits(x_BTD)[0].float().cpu().numpy()
        experts_LTA: Ints = torch.stack([routing.experts_NA for routing in routings]).long().cpu().numpy()
    return logits_TV, experts_LTA


def _used(experts_LTA: Ints, config: ModelConfig) -> NDArray[np.bool_]:
    used_LTE = np.zeros((*experts_LTA.shape[:2], config.num_local_experts), bool)
    np.put_along_axis(used_LTE, experts_LTA, True, axis=2)
    return used_LTE


def draw_load(use: ExpertUse) -> bytes:
    """A PNG with a map for each layer: a row for each benchmark and a column for each expert, the most used first.

    Colour is the share of the benchmark's choices over a uniform share, from 1/8 to 8; grey experts were never chosen.
    """
    layers, names = use.config.num_hidden_layers, list(use.benchmarks)
    columns = min(_COLUMNS, layers)
    rows = -(-layers // columns)
    figure = _figure_kind()(figsize=(1.5 + 4.2 * columns, 0.9 + rows * (0.6 + 0.22 * len(names))), layout="constrained")
    grid: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    ratio_GLE = np.array([each.load_LE / each.load_LE.mean(axis=1, keepdims=True) for each in use.benchmarks.values()])
    for layer, axes in enumerate(grid[:layers]):
        order_E = np.argsort(-ratio_GLE[:, layer].mean(axis=0), kind="stable")
        with np.errstate(divide="ignore"):  # never chosen: minus infinity, which is grey
            levels_GE = np.log2(ratio_GLE[:, layer, order_E])
        masked_GE = np.ma.masked_invalid(levels_GE)
        image = axes.imshow(masked_GE, cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto", interpolation="nearest")
        axes.set_facecolor("0.6")
        axes.set_title(f"layer {layer}", fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xticks([])
    for axes in grid[layers:]:
        axes.set_axis_off()
    figure.supxlabel(f"the {use.config.num_local_experts} experts of each layer, the most used first", fontsize=9)
    bar = figure.colorbar(image, ax=grid, extend="both", ticks=range(-3, 4), label="times an even share")
    bar.ax.set_yticklabels(["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    return png(figure, dpi=120)


def draw_distinct(use: ExpertUse) -> bytes:
    """A PNG: the different experts that each prompt touches, over its number of tokens, with the line of chance."""
    total = use.config.num_hidden_layers * use.config.num_local_experts
    figure = _figure_kind()(figsize=(8, 5), layout="constrained")
    from matplotlib import colormaps
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes = figure.subplots()
    for number, (name, each) in enumerate(use.benchmarks.items()):
        colour = colormaps["tab10" if len(use.benchmarks) <= 10 else "tab20"](number)
        axes.plot(each.tokens_P, each.distinct_PL.sum(axis=1), ".", color=colour, alpha=0.6, label=name)
    tokens = np.concatenate([each.tokens_P for each in use.benchmarks.values()])
    line = np.unique(np.geomspace(1, tokens.max(), 200).astype(int))
    axes.plot(line, use.chance(line), color="0.3", linewidth=1, label="drawn evenly by chance")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())  # a short axis would get labels such as 6 x 10^0
    axes.set_xlim(left=max(1, tokens.min() / 2))
    axes.set_ylim(0, 1.02 * total)
    axes.set_xlabel("tokens of the prompt")
    axes.set_ylabel(f"different experts touched, of {total:,}")
    shares = axes.twinx()
    shares.set_ylim(*(100 * use.share_of_file(distinct) for distinct in axes.get_ylim()))
    shares.set_ylabel("weights read, % of the INT4 file")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return png(figure, dpi=120)


HEADS = (
    "benchmark", "prompts", "tokens a prompt", "experts a prompt", "10% to 90%", "by chance", "of the file",
    f"experts in {WINDOW} tokens", "by chance", "of the file", "never used",
)  # fmt: skip


def table_rows(use: ExpertUse) -> list[list[str]]:
    """A row for each benchmark, under HEADS."""
    rows = []
    for name, each in use.as_json()["benchmarks"].items():
        prompt, window = each["prompt"], each["decode_window"]
        few, many = prompt["distinct_p10"], prompt["distinct_p90"]
        row = [name, f"{each['prompts']:,}", f"{each['tokens'] / each['prompts']:,.0f}"]
        row += [f"{prompt['distinct']:,.1f}", f"{few:,.0f} to {many:,.0f}"]
        row += [f"{prompt['chance']:,.1f}", f"{prompt['share_of_file']:.1%}"]
        if window is None:
            row += ["-", "-", "-"]
        else:
            row += [f"{window['distinct']:,.1f}", f"{window['chance']:,.1f}", f"{window['share_of_file']:.1%}"]
        rows.append([*row, f"{each['never_used']:,}"])
    return rows


def section(use: ExpertUse) -> Section:
    """The table and both pictures, for a report's page."""
    c = use.config
    what = (
        f"Of {c.num_hidden_layers * c.num_local_experts:,} routed experts ({c.num_local_experts} in each of "
        f"{c.num_hidden_layers} layers, {c.num_experts_per_tok} for each token): how many different ones a prompt "
        f"touches when it is read, and {WINDOW} tokens in a row when they are decoded one by one."
    )
    notes = [
        f"An expert is {use.expert_bytes:,} bytes in the INT4 file; {use.always_bytes:,} bytes are read always. "
        "The share of the file is what must be in memory for that many experts.",
        "By chance: E (1 - (1 - A/E)^T) in a layer of E experts, of which each of T tokens draws A evenly.",
        "Never used: experts that no prompt of the benchmark chose.",
    ]
    pictures = (
        ("expert_load", "which experts each benchmark uses, by layer", draw_load(use)),
        ("distinct_experts", "different experts over the tokens of a prompt", draw_distinct(use)),
    )
    body = f"<p>{escape(what)}</p>{table(HEADS, table_rows(use))}{bullets(notes)}"
    return Section("Expert use by task", body, pictures, wide=True)


def _figure_kind() -> type[Figure]:
    return figure_kind("drawing the use of experts", "eval")
