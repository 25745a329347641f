"""What a run will take, said before it starts: parameters, memory per device, speed, time and cost.

Memory is counted by the formula of `estimate_memory`. Speed is what a resumed run has measured before; of a new run it
is a stated share of the speed that the device reaches in a matrix product.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mobilemoe import accounting
from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.config import ModelConfig
from mobilemoe.cores import allowed_cores
from mobilemoe.counted import counted
from mobilemoe.hub import find_model
from mobilemoe.train.device import faster_precision, matmul_flops, set_threads, settle, with_precision
from mobilemoe.train.loss import CHUNK, GPU_LOGITS
from mobilemoe.train.metrics import METRICS_FILE, read_metrics
from mobilemoe.train.recipe import LoraTable, ModelTable, Recipe
from mobilemoe.train.schedule import learning_rate

BYTES = {"fp32": 4, "bf16": 2}
RECENT_STEPS = 50  # whose median speed is that of a run under way
LONG = 14 * 86400  # seconds, beyond which the estimate says what to change

# The share of the matrix product's speed that training reaches. A GPU: S's width and more 0.45, and a nano a third as
# wide 0.15 on one H100: in proportion. A CPU: nano in bf16, and fine-tuned in fp32 on two AVX2 cores. All measured.
GPU_SHARE, GPU_WIDTH = 0.45, 768
CPU_SHARE = {"bf16": 0.1, "fp32": 0.4}
FITS = 0.85  # of a GPU's memory, which a model may fill by estimate and still be kept whole by each process
_RECOMPUTED = 3 / 4  # of the speed, where the forward pass runs twice: 6 N useful of 8 N

_ADAPTED = {"attention": "attention", "shared": "shared expert", "experts": "routed experts"}  # to accounting's names


@dataclass(frozen=True)
class Memory:
    """Bytes that one process needs in a step, of each kind at its height.

    `reused`, which is negative, is what two of them share: the backward pass of a GPU frees activations and puts
    gradients in their place.
    """

    weights: int
    gradients: int
    moments: int
    copies: int
    activations: int
    logits: int
    reused: int

    @property
    def total(self) -> int:
        """Bytes at the height of a step."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Estimate:
    """A run's figures. `seconds` and `cost` are for what is left of it; `cost` is in the currency of the price.

    `notes` are sentences on what looks like a mistake, or will take long, and what to change.
    """

    name: str
    total_parameters: int
    active_parameters: int
    steps: int
    steps_done: int
    tokens: int
    flops: int
    device: str
    processes: int
    precision: str
    memory: Memory
    tokens_per_second: float
    speed_source: str
    seconds: float
    cost: float | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["memory"]["total"] = self.memory.total
        return values

    def __str__(self) -> str:
        kinds = dataclasses.asdict(self.memory)
        reused = (
            f"; less {_bytes(-kinds['reused'])} that gradients take over from activations" if kinds["reused"] else ""
        )
        parts = ", ".join(f"{name} {_bytes(size)}" for name, size in kinds.items() if name != "reused") + reused
        done = f", {self.steps_done:,} of them done" if self.steps_done else ""
        cost = "" if self.cost is None else f", cost {self.cost:,.2f}"
        return (
            f"{self.name}: {_count(self.total_parameters)} parameters, {_count(self.active_parameters)} active; "
            f"{_count(self.tokens)} tokens in {counted(self.steps, 'step')}{done}, {self.flops:.2e} FLOPs\n"
            f"  memory on each of {self.processes} x {self.device}, estimated: {_bytes(self.memory.total)} ({parts})\n"
            f"  speed in {self.precision}: {_rate(self.tokens_per_second)} tokens/s, {self.speed_source}; "
            f"{_duration(self.seconds)} to finish{cost}" + "".join(f"\n  note: {note}" for note in self.notes)
        )


def estimate_run(
    recipe: Recipe, config: ModelConfig, run: Path, steps_done: int = 0, price: float | None = None
) -> Estimate:
    """What training `recipe` takes, whose model has `config`, in the folder `run`, where `steps_done` steps are done.

    `price` is of one device for an hour; torchrun's WORLD_SIZE says how many there are. Measures the device's matrix
    product (0.3 s) unless the run's metrics know the speed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = set_threads(recipe.train)
    recipe = settle(recipe, device, run)
    train = recipe.train
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    step_tokens = train.batch_size * train.sequence_length
    flops_per_token = accounting.training_flops_per_token(config, train.sequence_length)
    speed, source = measured_speed(run) if steps_done else None, "as in the run's last steps"
    if speed is None:
        speed, source = expected_speed(recipe, config, device, processes)
    seconds = max(0, train.steps - steps_done) * step_tokens / speed
    notes = recipe_notes(recipe)
    if device.type == "cpu" and train.precision == "bf16" and faster_precision("cpu") == "fp32":
        entry = "train.weights" if train.weights == "bf16" else "train.precision"
        began = " (this run began in bf16 and stays in it: give the new one another --out)" if steps_done else ""
        notes.append(f"this CPU multiplies much faster in fp32 than in bf16: set {entry} to fp32{began}")
    if seconds > LONG:
        mend = "use a GPU" if device.type == "cpu" else "use more GPUs (torchrun)"
        notes.append(
            f"{_duration(seconds)}, since {flops_per_token:.2g} FLOPs a token at this speed are only "
            f"{_flops(speed * flops_per_token)}: {mend}, a smaller model.preset (nano is the smallest that is of use) "
            "or fewer train.steps"
        )
    return Estimate(
        name=recipe.name,
        total_parameters=accounting.total_parameters(config),
        active_parameters=accounting.active_parameters(config),
        steps=train.steps,
        steps_done=steps_done,
        tokens=train.steps * step_tokens,
        flops=train.steps * step_tokens * flops_per_token,
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {counted(threads, 'thread')}",
        processes=processes,
        precision=train.precision,
        memory=estimate_memory(recipe, config, processes),
        tokens_per_second=speed,
        speed_source=source,
        seconds=seconds,
        cost=None if price is None else price * processes * seconds / 3600,
        notes=tuple(notes),
    )


def recipe_notes(recipe: Recipe) -> list[str]:
    """What looks like a mistake in the recipe itself, a sentence each."""
    train, notes = recipe.train, []
    if train.warmup_steps >= train.steps:
        reached = learning_rate(train, train.steps - 1)
        notes.append(
            f"train.warmup_steps is {train.warmup_steps:,}, but the run has only {counted(train.steps, 'step')}: the "
            f"learning rate ends at {reached:.2g} of {train.learning_rate:.2g} and never falls; lower "
            "train.warmup_steps"
        )
    if (train.weights, train.precision) == ("bf16", "fp32"):
        notes.append("train.precision is fp32, but weights that are kept in bf16 are multiplied in bf16")
    if train.threads is not None and train.threads > allowed_cores():
        notes.append(
            f"train.threads is {train.threads:,}, but this process may use only {allowed_cores()} cores: "
            "more threads than cores wait for each other"
        )
    return notes


def architecture(model: ModelTable) -> ModelConfig:
    """The config of the recipe's model, as it is before a tokenizer gives it its control ids.

    Raises ConfigError for a change that is no field, ModelNotFoundError where `init` names no model.
    """
    if model.init is not None:
        return ModelConfig.load(newest_model(find_model(model.init)))
    return model.new_config()


def estimate_memory(recipe: Recipe, config: ModelConfig, processes: int) -> Memory:
    """Bytes of one process, with P parameters, of which it holds one in `processes / replicate`.

    weights, gradients: P of `train.weights` each. moments: two of them, with Muon one for matrices. copies: P in the
    precision of products, where that differs or fake quantisation rounds them (of two layers and the embedding, where
    weights are shared out). Where each process holds the model whole, it has the sums of gradients and the moments of
    one parameter in `processes`. With LoRA gradients and moments are those of the adapters. activations: see
    `activation_bytes`, for one micro-batch. logits: a chunk of them in the precision of products (and in fp32 where
    the loss is not fused), and the head's weights and gradient beside it. With several micro-batches gradients are
    there from the first on, and none of the memory is reused.
    """
    return _memory(recipe, config, processes, max(1, processes // replicas(recipe, config, processes)))


def replicas(recipe: Recipe, config: ModelConfig, processes: int) -> int:
    """How many groups of `processes` hold the model whole: `distributed.replicate`, or what suits its size."""
    table, train = recipe.distributed, recipe.train
    if table.replicate is not None:
        return table.replicate
    if table.expert_parallel > 1 or not torch.cuda.is_available():
        return 1
    if train.precision == "auto":
        recipe = with_precision(recipe, "bf16")  # which `settle` gives on a GPU
    whole = _memory(recipe, config, processes, shards=1).total
    return processes if whole <= FITS * torch.cuda.get_device_properties().total_memory else 1


def _memory(recipe: Recipe, config: ModelConfig, processes: int, shards: int) -> Memory:
    """`estimate_memory` of a process that holds one in `shards` of the parameters."""
    train = recipe.train
    total = accounting.total_parameters(config)
    stored, compute = BYTES[train.weights], BYTES[train.precision]
    trained = total if recipe.lora is None else _adapter_parameters(config, recipe.lora)
    moments = 2 * trained
    if train.optimizer == "muon" and recipe.lora is None:
        moments -= sum(part.parameters for part in accounting.parts(config) if part.storage == "matrix")
    embedding = config.vocab_size * config.hidden_size
    copied = total if shards == 1 else 2 * (total - embedding) // config.num_hidden_layers + embedding
    all_rows = train.batch_size // processes or 1
    rows = train.micro_batch_size or all_rows
    shares_updates = shards == 1 and recipe.lora is None  # as `parallel/replicas.py` has it
    updating = processes if shares_updates else shards
    gradients = trained * stored // shards
    if shares_updates and processes > 1:
        gradients += trained * stored // processes  # the sums of the part that this process updates
    activations = rows * train.sequence_length * activation_bytes(recipe, config)
    chunk = GPU_LOGITS * compute if _fused(recipe) else CHUNK * config.vocab_size * (4 + compute)
    logits = chunk + embedding * (4 + compute)
    return Memory(
        weights=total * stored // shards,
        gradients=gradients,
        moments=moments * stored // updating,
        copies=copied * compute if stored != compute or recipe.qat else 0,
        activations=activations,
        logits=logits,
        reused=-min(gradients, activations + logits) if _fused(recipe) and rows == all_rows else 0,
    )


def activation_bytes(recipe: Recipe, config: ModelConfig) -> int:
    """Bytes that one token leaves for the backward pass.

    With d hidden, q and k the widths of queries and keys, F and W those of a routed and the shared expert, A experts
    a token (times the capacity factor) and E experts, a layer of the model as it is written keeps in fp32 the residual
    stream and its norms, 4 d, and rotation and norms of queries and keys, 2 (q + k); in the precision of products those
    two, v and the output, 2 (q + k), inputs of products, 3 d, and experts, A (3 d + 4 F) + 4 W (a dense FFN: 4 F).

    Compiled blocks with fused kernels keep less, in bf16: 5 d, 2 q + 4 k, 3 W and A (d + 3 F) (a dense FFN: 3 F), and
    about 5 E in fp32; and the layer whose backward pass runs takes as much again. Peaks of S, M and L on an H200 were
    within 7% of it.

    With activation checkpointing a layer keeps d in fp32, and one layer at a time the rest.
    """
    c, layers, fused = config, config.num_hidden_layers, _fused(recipe)
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    ffn: float = (3 if fused else 4) * (c.intermediate_size_mlp if c.is_moe else c.intermediate_size)
    if c.is_moe:
        used = c.num_experts_per_tok * (recipe.train.capacity_factor or 1.0)
        width = c.hidden_size + 3 * c.intermediate_size if fused else 3 * c.hidden_size + 4 * c.intermediate_size
        ffn += used * width
    if fused:
        layer = (5 * c.hidden_size + 2 * queries + 4 * keys + ffn) * BYTES["bf16"]
        layer += 5 * c.num_local_experts * 4 if c.is_moe else 0
    else:
        products = 3 * c.hidden_size + 2 * (queries + keys) + ffn
        layer = (4 * c.hidden_size + 2 * (queries + keys)) * 4 + products * BYTES[recipe.train.precision]
    if recipe.train.activation_checkpointing:
        return int(layers * c.hidden_size * 4 + layer)
    return int((layers + 1 if fused else layers) * layer)


def _fused(recipe: Recipe) -> bool:
    """Whether blocks are compiled and run in fused kernels."""
    train = recipe.train
    return torch.cuda.is_available() and train.precision == "bf16" and train.compile is not False


def _adapter_parameters(config: ModelConfig, lora: LoraTable) -> int:
    """rank x (rows + columns) for every matrix that is adapted."""
    names = tuple(_ADAPTED[target] for target in lora.targets)
    parts = (part for part in accounting.parts(config) if part.name.startswith(names))
    return sum(lora.rank * part.count * (part.rows + part.columns) for part in parts)


def measured_speed(run: Path) -> float | None:
    """Median tokens per second of the last steps in a run's metrics; None where it has none."""
    rows = read_metrics(run / METRICS_FILE, "tokens_per_second")[-RECENT_STEPS:]
    speeds = [speed for row in rows if 0 < (speed := row["tokens_per_second"]) < math.inf]
    return statistics.median(speeds) if speeds else None


def expected_speed(recipe: Recipe, config: ModelConfig, device: torch.device, processes: int) -> tuple[float, str]:
    """Tokens per second of all processes together, and in words where the figure comes from."""
    share = CPU_SHARE.get(recipe.train.precision, 0.0)
    if device.type == "cuda":
        share = GPU_SHARE * min(1.0, config.hidden_size / GPU_WIDTH)
    if recipe.train.activation_checkpointing:
        share *= _RECOMPUTED
    flops = matmul_flops(device, recipe.train.precision)
    speed = share * flops * processes / accounting.training_flops_per_token(config, recipe.train.sequence_length)
    return speed, f"expected from {share:.1%} of the {_flops(flops)} of a {recipe.train.precision} matrix product"


def _bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _count(number: float) -> str:
    for unit, name, digits in ((1e12, "T", 2), (1e9, "B", 2), (1e6, "M", 1)):
        if number >= unit:
            return f"{number / unit:.{digits}f} {name}"
    return f"{number:,.0f}"


def _flops(per_second: float) -> str:
    tera = per_second / 1e12
    return f"{tera:,.2f} TFLOP/s" if tera >= 0.5 else f"{1000 * tera:,.1f} GFLOP/s"


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _duration(seconds: float) -> str:
    for unit, name in ((365 * 86400, "years"), (86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return counted(round(seconds), "second")
