"""Measures the training step of `mobilemoe train` on several GPUs: tokens/s of each, time of exchanges, peak memory.

Every process takes `--rows` rows of random tokens, each row one document. Run it on one GPU for what the others are
compared with. `--profile` counts the time of NCCL's kernels, which includes waiting for the other processes.

usage: torchrun --nproc-per-node N benchmarks/parallel_step.py [--shape S] [--rows 16] [--weights fp32] [--replicate N]
           [--expert-parallel 1] [--sequence 2048] [--steps 8] [--profile]
"""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from mobilemoe.data.loader import Batch
from mobilemoe.model import MobileMoE
from mobilemoe.presets import preset
from mobilemoe.train.device import settle
from mobilemoe.train.optimizer import make_optimizer
from mobilemoe.train.parallel.distributed import World, join, shard
from mobilemoe.train.recipe import Recipe
from mobilemoe.train.setup import prepare_blocks
from mobilemoe.train.step import Stepper

LR = 1e-4


def make_recipe(options: argparse.Namespace, processes: int) -> Recipe:
    train = {"steps": 1000, "batch_size": options.rows * processes, "sequence_length": options.sequence}
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "model": {"preset": options.shape},
            "tokenizer": {"path": "nano"},
            "data": {"path": ".", "seed": 1, "mixture": [{"name": "random", "files": "none", "weight": 1}]},
            "train": train | {"learning_rate": LR, "weights": options.weights},
            "distributed": {"replicate": options.replicate, "expert_parallel": options.expert_parallel},
        }
    )


def make_stepper(recipe: Recipe, world: World) -> Stepper:
    with world.device:
        model = MobileMoE(preset(recipe.model.preset))
    model.initialize(0)
    if recipe.train.weights == "bf16":
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    model.train()
    prepare_blocks(model, recipe.train, world.device)
    shard(model, world, recipe)
    model.to(world.device)
    return Stepper(model, make_optimizer(model, recipe.train), recipe, world, ("random",))


def random_batch(recipe: Recipe) -> Batch:
    size = (recipe.train.batch_size, recipe.train.sequence_length)
    tokens_BT = np.random.default_rng(0).integers(0, preset(recipe.model.preset).vocab_size, size)
    nothing_BT = np.zeros_like(tokens_BT)
    positions_BT = np.broadcast_to(np.arange(size[1]), size).copy()
    return Batch(tokens_BT, np.roll(tokens_BT, -1, 1), positions_BT, nothing_BT, nothing_BT)


def seconds(stepper: Stepper, batch: Batch, world: World, steps: int, first: int) -> float:
    """Mean seconds of a step; `first` is its number in the run."""
    wait = torch.cuda.synchronize if world.device.type == "cuda" else world.wait
    wait()
    began = time.perf_counter()
    for step in range(first, first + steps):
        stepper.step(batch, step, {})
        world.any(False)  # as the loop of training asks whether anyone stops
    wait()
    return (time.perf_counter() - began) / steps


def nccl_seconds(stepper: Stepper, batch: Batch, world: World, first: int) -> float:
    """Seconds of NCCL's kernels in a step, which may run beside others."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        seconds(stepper, batch, world, 2, first)
    return sum(event.self_device_time_total for event in seen.key_averages() if "nccl" in event.key.lower()) / 2e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="S")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--weights", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--replicate", type=int)
    parser.add_argument("--expert-parallel", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    with join(make_recipe(options, processes)) as world:
        recipe = settle(make_recipe(options, processes), world.device)
        stepper, batch = make_stepper(recipe, world), random_batch(recipe)
        seconds(stepper, batch, world, 3, 0)
        each = seconds(stepper, batch, world, options.steps, 3)
        row = vars(options) | {"processes": processes, "ms": each * 1e3}
        row["tokens_per_second_of_each"] = options.rows * options.sequence / each
        if world.device.type == "cuda":
            row["gib"] = torch.cuda.max_memory_allocated() / 2**30
            if options.profile:
                row["nccl_ms"] = nccl_seconds(stepper, batch, world, 3 + options.steps) * 1e3
        row["loss"] = [metrics["loss"] for metrics in stepper.read()][-1]
        if world.is_first:
            print(json.dumps(row))


if __name__ == "__main__":
    main()
