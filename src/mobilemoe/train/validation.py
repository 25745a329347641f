"""Validation during training: the loss on held-out text by source, and a short text that the model writes.

Nothing here changes training: no random number is drawn, no gradient made, and the routers' statistics and the
selection bias are left alone. The model computes as it does in training (with quantisation-aware training: with the
rounded weights), except that no token is dropped.

B rows of T tokens, N = B T, D hidden, V vocabulary, C tokens of a chunk, G sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import cross_entropy

from mobilemoe.data.heldout import HeldOutText
from mobilemoe.data.packing import NO_TARGET, Row
from mobilemoe.model import MobileMoE
from mobilemoe.model.linear import product_in_fp32
from mobilemoe.tokenizer import Tokenizer
from mobilemoe.train.loss import CHUNK
from mobilemoe.train.parallel.distributed import World

PROMPT = "Once upon a time"
SAMPLE_TOKENS = 32


@dataclass(frozen=True)
class Validation:
    """What a run is validated with: the held-out text, and the tokenizer that turns the sample into text."""

    text: HeldOutText
    tokenizer: Tokenizer

    def row(self, model: MobileMoE, world: World, precision: str, batch_rows: int) -> dict[str, Any]:
        """What the metrics say of the model, as JSON values; all processes of `world` call it together.

        `loss` in nats per token and `bits_per_byte` are those of the training mixture: each source counts by its
        weight. `by_source` has the bits per byte of each, and `sample` the text that greedy decoding makes of `PROMPT`.
        """
        text = self.text
        nats_G = np.array(nats_by_domain(model, text.rows, len(text.sources), world, precision, batch_rows))
        loss_G = nats_G / text.targets_G
        loss = float((text.shares_G * loss_G).sum())
        bytes_per_target = float((text.shares_G * text.bytes_G / text.targets_G).sum())
        bits_G = nats_G / math.log(2) / np.maximum(1, text.bytes_G)
        return {
            "loss": round(loss, 6),
            "bits_per_byte": round(loss / math.log(2) / max(1e-9, bytes_per_target), 6),
            "by_source": {name: round(float(bits), 6) for name, bits in zip(text.sources, bits_G, strict=True)},
            "sample": write_sample(model, self.tokenizer, world, precision),
        }


def summary(row: dict[str, Any]) -> str:
    """What `Validation.row` gave, in a line, without its sample."""
    by_source = ", ".join(f"{name} {bits:.3f}" for name, bits in row["by_source"].items())
    return f"held-out loss {row['loss']:.4f}, {row['bits_per_byte']:.3f} bits per byte ({by_source})"


@torch.no_grad()
def nats_by_domain(
    model: MobileMoE, rows: Row, domains: int, world: World, precision: str, batch_rows: int
) -> list[float]:
    """The loss of the rows [R, T] in nats, added up over the targets of each of `domains` domains.

    Each process of `world` takes `batch_rows` rows at a time. All of them take part in each forward pass, so where rows
    run out the last one is computed again, without counting.
    """
    nats_G = torch.zeros(domains, dtype=torch.float64, device=world.device)
    count, width = len(rows.tokens_T), batch_rows * world.size
    with _evaluating(model):
        for start in range(0, count, width):
            end = min(count, start + width)
            mine = np.arange(start + world.rank, end, world.size)
            repeated = -(-(end - start) // world.size) - len(mine)
            mine = np.concatenate([mine, np.full(repeated, count - 1)])
            batch = (torch.from_numpy(field_RT[mine]).to(world.device) for field_RT in rows)
            tokens_BT, targets_BT, positions_BT, segments_BT, domains_BT = batch
            targets_BT[len(mine) - repeated :] = NO_TARGET
            with _autocast(world, precision):
                x_BTD, _ = model.hidden(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)
            nats_N = _token_nats(x_BTD.flatten(0, 1), model.head_VD, targets_BT.flatten())
            nats_G.index_add_(0, domains_BT.flatten(), nats_N.double())
    found: list[float] = world.sum(nats_G).tolist()
    return found


@torch.no_grad()
def write_sample(model: MobileMoE, tokenizer: Tokenizer, world: World, precision: str) -> str:
    """`PROMPT` and what greedy decoding adds to it: at most `SAMPLE_TOKENS` tokens, up to the end of the text.

    All steps compute the whole row, whose empty places nothing before them sees: one shape is compiled once, and no
    cache need agree with the precision. Every process computes the same row, since sharded weights need all of them.
    """
    prompt = tokenizer.encode(PROMPT, bos=tokenizer.bos_id is not None)
    length = min(len(prompt) + SAMPLE_TOKENS, model.config.max_position_embeddings)
    tokens_BT = torch.zeros(1, length, dtype=torch.long, device=world.device)
    tokens_BT[0, : len(prompt)] = torch.tensor(prompt)
    with _evaluating(model):
        for place in range(len(prompt), length):
            with _autocast(world, precision):
                x_BTD, _ = model.hidden(tokens_BT)
            logits_BV = x_BTD[:, place - 1] @ model.head_VD.to(x_BTD.dtype).t()
            tokens_BT[:, place] = logits_BV.argmax(dim=-1)
    written = tokens_BT[0, len(prompt) :].tolist()
    stops = [place for place, token in enumerate(written) if token in tokenizer.stop_ids]
    return PROMPT + tokenizer.decode(written[: stops[0] if stops else None])


@contextmanager
def _evaluating(model: MobileMoE) -> Iterator[None]:
    """Evaluation mode, which drops no token; afterwards the model is as it was."""
    training = model.training
    model.eval()
    try:
        # Compiled blocks run as they are written: for this they would be compiled again.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(training)
        if isinstance(model, FSDPModule):
            model.reshard()  # after a forward pass it stays whole for the backward pass, which does not come here


def _autocast(world: World, precision: str) -> torch.autocast:
    return torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _token_nats(x_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """-log softmax(x head^T)[target] of each token in fp32, [N]; 0 without a target."""
    compute_DV = head_VD.to(x_ND.dtype).t()
    parts = zip(x_ND.split(CHUNK), targets_N.split(CHUNK), strict=True)
    return torch.cat(
        [
            cross_entropy(product_in_fp32(x_CD, compute_DV), targets_C, ignore_index=NO_TARGET, reduction="none")
            for x_CD, targets_C in parts
        ]
    )
