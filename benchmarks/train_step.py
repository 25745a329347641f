"""Measures training speed on one GPU: tokens/s, share of a measured 8192^3 bf16 matmul (MFU), peak memory.

Tokens are random, none is dropped, and experts are those the router chooses. FLOPs per token are 6 N_act + 6 layers
heads head_dim T (causal half), as `accounting.training_flops_per_token` counts them. There are two rows: bf16 weights
and moments, and what the recipes use: fp32 weights and moments, bf16 products, z-loss, clipping, moving selection
biases.

usage: python benchmarks/train_step.py [--shape S] [--batch 16] [--sequence 2048] [--weights bf16 fp32] [--profile]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mobilemoe import accounting
from mobilemoe.model import MobileMoE
from mobilemoe.presets import preset
from mobilemoe.train import balance
from mobilemoe.train.loss import cross_entropy_sum, router_z_loss
from mobilemoe.train.recipe import TrainTable
from mobilemoe.train.setup import prepare_blocks

BACKENDS = {
    "flash": [SDPBackend.FLASH_ATTENTION],
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION],
}


def seconds(step: Callable[[], object], repeats: int, warm: int = 3) -> float:
    for _ in range(warm):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def matmul_peak() -> float:
    """FLOP/s of an 8192^3 product of random bf16 matrices."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / seconds(lambda: a @ b, 10)


def make_step(
    name: str, batch: int, sequence: int, weights: str, compiled: bool, checkpointing: bool
) -> Callable[[], torch.Tensor]:
    """One optimizer step of the shape `name` on fixed random tokens."""
    config = preset(name)
    with torch.device("cuda"):
        model = MobileMoE(config)
    model.initialize(0)
    model.train()
    pure = weights == "bf16"
    if pure:
        model.to(torch.bfloat16)
    layers = model.moe_layers()
    train = TrainTable(
        steps=1,
        batch_size=batch,
        sequence_length=sequence,
        learning_rate=1e-4,
        compile=compiled,
        activation_checkpointing=checkpointing,
    )
    prepare_blocks(model, train, torch.device("cuda"))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay, fused=True
    )
    tokens_BT = torch.randint(0, config.vocab_size, (batch, sequence), device="cuda")
    targets_N = tokens_BT.roll(-1, 1).flatten()

    def step() -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=not pure):
            x_BTD, routings = model.hidden(tokens_BT)
        loss = cross_entropy_sum(x_BTD.flatten(0, 1), model.head_VD, targets_N) / targets_N.numel()
        if not pure:
            (loss + 1e-4 * router_z_loss(routings)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        else:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not pure:
            balance.move_biases(layers, torch.stack([routing.load_E() for routing in routings]), 1e-3)
        return loss.detach()

    return step


def profile(step: Callable[[], object], rows: int = 48) -> None:
    """Prints the kernels that take most of a step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    print(f"  {total / 3e3:8.1f} ms of kernels a step")
    for event in events[:rows]:
        share = event.self_device_time_total / total
        print(f"  {event.self_device_time_total / 3e3:8.2f} ms {share:5.1%} {event.count / 3:6.0f}x {event.key[:110]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=["S"])
    parser.add_argument("--batch", nargs="+", type=int, default=[16])
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--weights", nargs="+", choices=("bf16", "fp32"), default=["bf16", "fp32"])
    parser.add_argument("--attention", nargs="+", choices=tuple(BACKENDS), default=["cudnn"])
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--checkpointing", action="store_true", help="recompute each layer's activations")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    peak = matmul_peak()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, matmul {peak / 1e12:.0f} TFLOP/s", flush=True)
    results = []
    for shape in options.shape:
        flops = accounting.training_flops_per_token(preset(shape), options.sequence)
        for weights in options.weights:
            for batch in options.batch:
                for attention in options.attention:
                    torch._dynamo.reset()  # compiled code does not check again which attention it may use
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                    began = time.perf_counter()
                    try:
                        with sdpa_kernel(BACKENDS[attention], set_priority=True):
                            step = make_step(
                                shape, batch, options.sequence, weights, not options.eager, options.checkpointing
                            )
                            loss = step().item()
                            first = time.perf_counter() - began
                            rate = batch * options.sequence / seconds(step, options.steps)
                            if options.profile:
                                profile(step)
                    except torch.OutOfMemoryError:
                        print(f"{shape} {weights} batch {batch}: out of memory", flush=True)
                        continue
                    memory = torch.cuda.max_memory_allocated() / 2**30
                    row = {"shape": shape, "weights": weights, "batch": batch, "attention": attention}
                    row |= {"tokens_per_second": rate, "mfu": rate * flops / peak, "gib": memory, "loss": loss}
                    results.append(row)
                    print(
                        f"{shape} {weights} weights, batch {batch}, {attention}: {rate / 1e3:.1f} ktok/s, "
                        f"MFU {rate * flops / peak:.1%}, {memory:.1f} GiB, first step {first:.0f} s, loss {loss:.3f}",
                        flush=True,
                    )
                    del step
    print(json.dumps({"matmul_tflops": peak / 1e12, "sequence": options.sequence, "rows": results}))


if __name__ == "__main__":
    main()
