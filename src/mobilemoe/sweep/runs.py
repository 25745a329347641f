"""The runs of a sweep's grid: for each architecture and length a recipe of its own, made from the reference run.

Batch and learning rate follow the rules of `grid.Scaling`. The learning rate decays over each run's own steps, so that
its last loss belongs to its number of tokens and is not a point of a longer run. The warm-up takes the same share of
the steps as in the reference run.

With schedule "wsd" the rate is constant up to the decay. Runs that differ in their tokens alone then have the same
beginning, their trunk, which is trained once: each branches off where its decay begins. There the batch does not depend
on the tokens, and every run has the reference's steps of warm-up.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from mobilemoe import accounting
from mobilemoe.config import ModelConfig
from mobilemoe.data.sources import digest
from mobilemoe.errors import ConfigError
from mobilemoe.presets import DENSE, family_knobs, family_member, preset
from mobilemoe.sweep.grid import Block, Grid, HeldOut, Scaling, Size
from mobilemoe.train.recipe import Recipe

WIDTHS: tuple[int, ...] = (
    *range(32, 256, 32),
    *range(256, 2049, 64),
)  # candidates for a size that is given in parameters
# The fields of a run's model that `family_member` decides; all others are the reference's.
_FAMILY = (
    "norm_topk_prob",
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "ffn_type"),
    *("intermediate_size", "intermediate_size_mlp", "num_local_experts", "num_experts_per_tok"),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of the grid, with the blocks that contain it.

    `experts` is the expansion E, `rate` the factor on the rule's learning rate; `key` is a hash of everything that its
    result depends on, except the text and the code. Runs of one `trunk` differ only in their steps, and the first
    `shared_steps` of each are the same.
    """

    id: str
    trunk: str
    blocks: tuple[str, ...]
    recipe: Recipe
    config: ModelConfig
    experts: int
    granularity: int
    shared: int
    rate: float
    seed: int
    key: str
    held_out: bool = False

    @property
    def batch_tokens(self) -> int:
        return self.recipe.train.batch_size * self.recipe.train.sequence_length

    @property
    def tokens(self) -> int:
        return self.recipe.train.steps * self.batch_tokens

    @property
    def shared_steps(self) -> int:
        return self.recipe.train.decay_start if self.recipe.train.schedule == "wsd" else 0

    @property
    def compute(self) -> int:
        """6 N D, as laws count training compute."""
        return 6 * accounting.active_parameters(self.config) * self.tokens

    @property
    def flops(self) -> int:
        """FLOPs of the whole training: 6 N_act, the embedding counted once, and attention, for each token."""
        return self.tokens * accounting.training_flops_per_token(self.config, self.recipe.train.sequence_length)

    @property
    def columns(self) -> dict[str, Any]:
        """What is known of a run before it is trained, by the table's column names."""
        active, config = accounting.active_parameters(self.config), self.config
        return {
            "id": self.id,
            "block": "+".join(self.blocks),
            "trunk": self.trunk,  # whose runs are not independent of each other
            "n_active": active,
            "n_active_no_embedding": active - config.vocab_size * config.hidden_size,
            "n_total": accounting.total_parameters(config),
            "tokens": self.tokens,
            "experts": self.experts,
            "granularity": self.granularity,
            "shared": self.shared,
            "hidden_size": config.hidden_size,
            "layers": config.num_hidden_layers,
            "learning_rate": self.recipe.train.learning_rate,
            "rate": self.rate,
            "batch_tokens": self.batch_tokens,
            "seed": self.seed,
            "held_out": int(self.held_out),
            "flops": self.flops,
        }


def grid_runs(grid: Grid) -> list[Run]:
    """The runs of all blocks, each once, in the order in which they are trained.

    Blocks come in the file's order, and of each the longest training first, so that no process is still busy with a
    long one when the others have nothing left to do.
    """
    runs: dict[str, Run] = {}
    for name, block in grid.blocks.items():
        for run in sorted(_expand(grid, name, block), key=lambda run: (-run.flops, run.id)):
            known = runs.get(run.id, run)
            runs[run.id] = dataclasses.replace(known, blocks=tuple(dict.fromkeys((*known.blocks, name))))
    held_out = _held_out(grid, list(runs.values()))
    return [dataclasses.replace(run, held_out=run.id in held_out) for run in runs.values()]


def _held_out(grid: Grid, runs: list[Run]) -> set[str]:
    """The ids of the runs that `Scaling` holds out, by 6 N D."""
    by_compute = sorted(runs, key=lambda run: (run.compute, run.id))
    chosen = {run.id for run in by_compute[max(0, len(runs) - grid.scaling.held_out) :]}
    limit = grid.scaling.held_out_above
    return chosen | {run.id for run in runs if limit is not None and run.compute > limit}


def _expand(grid: Grid, name: str, block: Block) -> Iterator[Run]:
    knobs = list(family_knobs(block.experts, block.granularity, block.shared))
    for size, tokens, chosen, rate, seed in product(block.sizes, block.tokens, knobs, block.rates, block.seeds):
        yield _make_run(grid, name, size, tokens, chosen, rate, seed)


def _make_run(
    grid: Grid, block: str, size: Size, tokens: int, knobs: tuple[int, int, int], rate: float, seed: int
) -> Run:
    experts, granularity, shared = knobs
    reference = dataclasses.replace(preset(grid.model.preset or ""), **grid.model.changes)
    member = _member(size, knobs, reference.vocab_size)
    changes = {field: getattr(member, field) for field in _FAMILY} | _rules(grid.scaling, member)
    config = dataclasses.replace(reference, **changes)
    train = _scaled(grid, member.hidden_size / reference.hidden_size, tokens, rate, dense=experts == 1)
    train["seed"] += seed
    architecture = "dense" if experts == 1 else f"e{experts}g{granularity}s{shared}"
    model = f"d{member.hidden_size}x{member.num_hidden_layers}-{architecture}"
    variant = (f"-rate{rate:g}".replace("+", "") if rate != 1 else "") + (f"-seed{seed}" if seed else "")
    identity = f"{model}-t{tokens}{variant}"
    values = {field: getattr(grid, field) for field in Recipe.model_fields}
    values["name"] = identity
    values["model"] = {"preset": grid.model.preset, "changes": grid.model.changes | changes}
    values["train"] = train
    values["data"] = grid.data.model_copy(update={"seed": grid.data.seed + seed})
    made = Recipe.model_validate(values)
    return Run(
        id=identity,
        trunk=model + variant if train["schedule"] == "wsd" else identity,
        blocks=(block,),
        recipe=made,
        config=config,
        experts=experts,
        granularity=granularity,
        shared=shared,
        rate=rate,
        seed=seed,
        key=_key(made, grid.heldout),
    )


def _rules(rules: Scaling, member: ModelConfig) -> dict[str, Any]:
    """What `head_dim` and `equal_gates` change in a family member."""
    changes: dict[str, Any] = {}
    if (head_dim := rules.head_dim) is not None:
        if member.hidden_size % head_dim:
            raise ConfigError(
                f"scaling.head_dim is {head_dim}, but must divide every width, and one is {member.hidden_size}"
            )
        heads = member.hidden_size // head_dim
        changes |= {"head_dim": head_dim, "num_attention_heads": heads, "num_key_value_heads": heads}
    if rules.equal_gates and member.is_moe:
        chosen = member.num_experts_per_tok
        changes["routed_scaling_factor"] = float(chosen) if chosen > 1 else 2.0
    return changes


def _member(size: Size, knobs: tuple[int, int, int], vocab_size: int) -> ModelConfig:
    """The family's model of this size and these E, g, s."""
    width = size.hidden_size or _nearest_width(size, vocab_size)
    return _of_width(width, size, knobs, vocab_size)


def _nearest_width(size: Size, vocab_size: int) -> int:
    """The width whose dense model comes nearest to `size.parameters`: the same for every E, g and s."""

    def distance(width: int) -> float:
        active = accounting.active_parameters(_of_width(width, size, DENSE, vocab_size))
        return float(abs(active - vocab_size * width - wanted))

    wanted = size.parameters or 0.0
    return min(WIDTHS, key=distance)


def _of_width(width: int, size: Size, knobs: tuple[int, int, int], vocab_size: int) -> ModelConfig:
    experts, granularity, shared = knobs
    return family_member(
        width,
        expansion=experts,
        granularity=granularity,
        shared=bool(shared),
        layers=size.layers,
        vocab_size=vocab_size,
    )


def _scaled(grid: Grid, width: float, tokens: int, rate: float, *, dense: bool) -> dict[str, Any]:
    """The train table of a run of `tokens` whose width is `width` of the reference's."""
    train, rules = grid.train, grid.scaling
    row, micro = train.sequence_length, train.micro_batch_size or 1
    reference_tokens = train.steps * train.batch_size * row
    rows = micro * max(1, round(train.batch_size / micro * (tokens / reference_tokens) ** rules.batch_exponent))
    steps = max(1, round(tokens / (rows * row)))
    rate_of, exponent = train.learning_rate, rules.width_exponent
    if dense:
        rate_of = rate_of if rules.dense_learning_rate is None else rules.dense_learning_rate
        exponent = exponent if rules.dense_width_exponent is None else rules.dense_width_exponent
    factor = rate * width**-exponent * (rows / train.batch_size) ** rules.rate_exponent
    shared = train.schedule == "wsd"
    return train.model_dump() | {
        "batch_size": rows,
        "steps": steps,
        "warmup_steps": train.warmup_steps if shared else round(steps * train.warmup_steps / train.steps),
        "learning_rate": float(f"{rate_of * factor:.4g}"),
        "final_learning_rate": float(f"{train.final_learning_rate * factor:.4g}"),
    }


def _key(recipe: Recipe, heldout: HeldOut) -> str:
    """The hash of a run, without the places of its files, how often it is saved or validated, and what changes its
    speed alone."""
    values = recipe.model_dump(mode="json") | {"heldout": heldout.model_dump(mode="json", exclude={"path"})}
    for entry in ("checkpoint_every", "keep_checkpoints", "threads", "compile"):
        del values["train"][entry]
    for entry in ("log_every", "validate_every", "validate_tokens"):
        del values["train"][entry]
    del values["data"]["path"], values["tokenizer"]["path"]
    values["distributed"] = {"replicate": 1, "expert_parallel": 1}  # a run is one process; known keys have these words
    if values["draft"] is None:  # known keys are older than this table
        del values["draft"]
    return digest(json.dumps(values, sort_keys=True))
