"""Writes the best candidate as a recipe for `mobilemoe train`: model, tokens and schedule; the data are a proposal."""

from __future__ import annotations

import json
import textwrap
from dataclasses import fields
from typing import Any

from mobilemoe import accounting
from mobilemoe.config import ModelConfig
from mobilemoe.counted import counted
from mobilemoe.presets import preset
from mobilemoe.scaling.plan.candidates import Candidate
from mobilemoe.scaling.plan.explain import amount, memory_of, title
from mobilemoe.scaling.plan.limits import given
from mobilemoe.scaling.plan.plan import Plan
from mobilemoe.scaling.plan.space import VOCABULARY

PRESET = "S"
SEQUENCE = 2048  # of the paper's pre-training (spec section 5)
MOST_ROWS = 2048  # a batch of 4.2 M tokens, as in recipes/S-pretrain.toml
LEAST_STEPS = 10_000  # shorter trainings take smaller batches to have that many steps: our choice
MICRO_BATCH = 8
WARMUP = 2000
LINE = 116  # the longest line of a comment, in characters

# Sets of recipes/S-pretrain.toml in the paper's shares of the kinds of text (spec section 5).
_MIXTURE = """\
mixture = [
  { name = "fineweb-edu", hub = "HuggingFaceFW/fineweb-edu", weight = 20 },  # web, 62
  { name = "dclm", hub = "mlfoundations/dclm-baseline-1.0", weight = 42 },
  { name = "finemath", hub = "HuggingFaceTB/finemath", subset = "finemath-3plus", weight = 11.6 },  # math
  { name = "starcoder", hub = "bigcode/starcoderdata", text_field = "content", weight = 10 },  # code; licence
  { name = "cosmopedia", hub = "HuggingFaceTB/smollm-corpus", subset = "cosmopedia-v2", weight = 8 },  # knowledge, 10
  { name = "wikipedia", hub = "wikimedia/wikipedia", subset = "20231101.en", weight = 2 },
  # science
  { name = "peS2o", hub = "json", data_files = "hf://datasets/allenai/peS2o/data/v2/train-*.json.gz", weight = 6.4 },
]
"""


def recipe_text(plan: Plan, name: str) -> str:
    """The TOML for the first candidate, which the plan must have; `name` is the name of the run."""
    winner = plan.candidates[0]
    rows, steps = batch(winner.tokens)
    lines = [
        *_comments(plan, winner),
        f"name = {json.dumps(name)}",
        "",
        "[model]",
        f'preset = "{PRESET}"',
        "",
        *_changes(winner.config),
        "[tokenizer]",
        *_tokenizer(winner.config),
        "",
        "[data]  # a proposal: any mixture will do that holds as many tokens",
        'path = "data"',
        "seed = 1",
        "holdout = 0.001",
        _MIXTURE,
        "[train]",
        f"steps = {steps:_}  # {steps * rows * SEQUENCE / 1e9:.4g} B tokens",
        f"batch_size = {rows}  # {rows * SEQUENCE / 1e6:.3g} M tokens",
        f"micro_batch_size = {min(MICRO_BATCH, rows)}",
        f"sequence_length = {SEQUENCE}",
        "learning_rate = 4e-4  # the paper's for S, M and L",
        "final_learning_rate = 4e-5",
        f"warmup_steps = {min(WARMUP, steps // 10)}",
        'schedule = "cosine"',
        *(["capacity_factor = 1.5"] if winner.config.is_moe else []),
        f"checkpoint_every = {min(1000, max(1, steps // 10))}",
    ]
    return "\n".join(lines) + "\n"


def batch(tokens: float) -> tuple[int, int]:
    """(rows of a batch, steps) for so many tokens: the largest power of two up to MOST_ROWS that leaves LEAST_STEPS."""
    rows = MOST_ROWS
    while rows > 1 and tokens < LEAST_STEPS * rows * SEQUENCE:
        rows //= 2
    return rows, max(1, round(tokens / (rows * SEQUENCE)))


def _comments(plan: Plan, c: Candidate) -> list[str]:
    limits = [
        f"{name.replace('_', ' ')} {amount(name, getattr(plan.constraints, name))}" for name in given(plan.constraints)
    ]
    device = f", on {plan.device.name}" if plan.device else ""
    speed = "" if c.decode is None or c.ttft is None else f"{c.decode:.0f} tok/s, first token {c.ttft:.2f} s, "
    budget, places = plan.constraints.train_flops, plan.digits
    text = [
        f"Made by `mobilemoe plan`: {title(c)}, chosen among {counted(len(plan.table), 'model')}.",
        f"Limits: {', '.join(limits) or 'none'}{device}; prompt {plan.constraints.prompt:,}, "
        f"context {plan.constraints.context:,}.",
        f"Training: {c.tokens / 1e9:.4g} B tokens" + (f", of {budget:.3g} FLOPs." if budget else "."),
        f"It has {accounting.total_parameters(c.config) / 1e9:.3g} B parameters, {c.n_active / 1e9:.3g} B of them "
        f"active; {c.weight_bits}-bit weights of {amount('memory', c.weights)} and a KV cache of "
        f"{amount('memory', c.kv)}; memory is {amount('memory', c.memory)} ({memory_of(plan.device)}).",
        f"Expected: {speed}loss {c.loss:.{places}f} ({c.low:.{places}f} to {c.high:.{places}f}) nats a token"
        f"{_of(plan)} before quantisation.",
        *(f"OUTSIDE THE LAW'S DOMAIN: {sentence}." for sentence in c.outside),
    ]
    return [f"# {line}" for sentence in text for line in textwrap.wrap(sentence, LINE)]


def _of(plan: Plan) -> str:
    """Whose tokens losses are for, where vocabularies were compared."""
    return f" of a vocabulary of {plan.table.vocab_size[0]:,.0f}" if plan.vocabularies else ""


def _changes(config: ModelConfig) -> list[str]:
    """The fields in which the model differs from the preset; no line if there are none."""
    base = preset(PRESET)
    changed = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.compare and getattr(config, field.name) != getattr(base, field.name)
    }
    # A smaller vocabulary may carry the larger one's control ids, and the tokenizer gives a run its own.
    changed = {name: value for name, value in changed.items() if not name.endswith("_token_id")}
    return ["[model.changes]", *(f"{name} = {_toml(value)}" for name, value in changed.items()), ""] if changed else []


def _toml(value: Any) -> str:
    return f"{value:_}" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def _tokenizer(config: ModelConfig) -> list[str]:
    if config.vocab_size == VOCABULARY:
        return ['path = "facebook/MobileMoE-S-Base"  # licence; or a folder with Llama-3\'s tokenizer']
    return [f'path = "tokenizer"  # a folder with a tokenizer of {config.vocab_size:,} ids']
