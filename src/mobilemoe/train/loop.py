"""The training loop (SPEC section 5): one process, CPU or one GPU; killed at any moment, it resumes bit for bit.

B rows, T tokens, L MoE layers, E experts.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilemoe.chat import CHAT_TEMPLATE, ChatTemplate
from mobilemoe.checkpoint.run_folder import step_folders
from mobilemoe.config import ModelConfig
from mobilemoe.data.loader import Batch, PackedLoader
from mobilemoe.data.mixture import build_mixture
from mobilemoe.data.packing import NO_TARGET
from mobilemoe.errors import ConfigError, TokenizerError, TrainError
from mobilemoe.files import write_json
from mobilemoe.hub import find_model
from mobilemoe.model import MobileMoE
from mobilemoe.presets import preset
from mobilemoe.tokenizer import Tokenizer
from mobilemoe.train import balance, checkpointing
from mobilemoe.train.loss import cross_entropy_sum, router_z_loss
from mobilemoe.train.metrics import MetricsLog, ProgressReport, draw_loss, drawing, read_metrics
from mobilemoe.train.optimizer import make_optimizer
from mobilemoe.train.recipe import Recipe
from mobilemoe.train.schedule import learning_rate


@dataclass(frozen=True)
class Result:
    """How a call of `train` ended: steps done, last loss in nats per token, and the newest checkpoint's folder."""

    steps: int
    loss: float
    finished: bool
    checkpoint: Path


def train(recipe: Recipe, run: Path) -> Result:
    """Trains what `recipe` says in the folder `run`, going on where a run that is there already stopped.

    An interrupt (Ctrl-C, SIGTERM) saves and returns with finished=False. Raises TrainError and the rooms' own errors.
    """
    drawing()  # a missing package should not be found out at the end
    trainer = _Trainer(recipe, run)
    _keep_allocations()
    with _interrupts() as interrupted:
        return trainer.run_steps(interrupted)


class _Trainer:
    def __init__(self, recipe: Recipe, run: Path) -> None:
        self.recipe, self.run, self.train = recipe, run, recipe.train
        if self.train.threads:
            torch.set_num_threads(self.train.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer_folder = find_model(recipe.tokenizer.path)
        tokenizer = Tokenizer.load(tokenizer_folder)
        try:
            template = ChatTemplate.load(tokenizer_folder)
        except TokenizerError:
            template = ChatTemplate(CHAT_TEMPLATE)
        self.tokenizer_files = [path for path in sorted(tokenizer_folder.glob("tokenizer*")) if path.is_file()]
        self.model = MobileMoE(model_config(recipe, tokenizer))
        self.model.initialize(self.train.seed)
        self.model.to(self.device).train()
        for layer in self.model.moe_layers():
            layer.experts.capacity_factor = self.train.capacity_factor
        self.optimizer = make_optimizer(self.model, self.train)
        self.loader = PackedLoader(
            build_mixture(recipe.data, Path.cwd()),
            tokenizer,
            template,
            batch_size=self.train.batch_size,
            sequence_length=self.train.sequence_length,
        )

    def run_steps(self, interrupted: list[int]) -> Result:
        """Steps until the recipe's end or an interrupt; saves every `checkpoint_every` steps and at the end."""
        train = self.train
        self.run.mkdir(parents=True, exist_ok=True)
        checkpointing.remove_leftovers(self.run)
        state = checkpointing.restore(self.run, self.model, self.optimizer) or {
            "step": 0,
            "tokens": 0,
            "loss": math.nan,
        }
        if state["step"]:
            self.loader.load_state_dict(state["loader"])
        write_json(self.run / "recipe.json", self.recipe.model_dump())
        step, tokens, loss = state["step"], state["tokens"], state["loss"]
        log, progress = MetricsLog(self.run / "metrics.jsonl", step), ProgressReport(train.steps, step)
        try:
            started, first = time.monotonic(), step
            stopping = bool(interrupted)
            while step < train.steps and not stopping:
                began = time.monotonic()
                row = self._step(next(self.loader), step)
                step, loss, tokens = step + 1, row["loss"], tokens + train.batch_size * train.sequence_length
                row |= {"step": step, "tokens": tokens}
                row["tokens_per_second"] = train.batch_size * train.sequence_length / (time.monotonic() - began)
                log.write(row)
                progress.update(row, (time.monotonic() - started) / (step - first) * (train.steps - step))
                stopping = bool(interrupted)  # asked once, so that no step ends the loop unsaved
                if step % train.checkpoint_every == 0 or step == train.steps or stopping:
                    self._save(step, tokens, loss)
        finally:
            progress.close()
            log.close()
        folders = step_folders(self.run)
        if not folders:
            raise TrainError(f"{self.run} was interrupted before its first step: nothing is saved")
        draw_loss(read_metrics(self.run / "metrics.jsonl"), self.run / "loss.png")
        return Result(step, loss, step >= train.steps, folders[-1])

    def _save(self, step: int, tokens: int, loss: float) -> None:
        state = {"tokens": tokens, "loss": loss, "loader": self.loader.state_dict()}
        checkpointing.save(
            self.run, step, self.model, self.optimizer, state, self.tokenizer_files, self.train.keep_checkpoints
        )

    def _step(self, batch: Batch, step: int) -> dict[str, Any]:
        """One optimizer step over one batch, in micro-batches; returns what the metrics say of it."""
        train = self.train
        rate = learning_rate(train, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        targets = int((batch.targets_BT != NO_TARGET).sum())
        if targets == 0:
            raise TrainError(f"the batch of step {step + 1} holds nothing to predict: look at the data's documents")
        micro = train.micro_batch_size or train.batch_size
        loss, z_loss, load_LE = 0.0, 0.0, None
        for start in range(0, train.batch_size, micro):
            part = Batch(*(field[start : start + micro] for field in batch))
            part_loss, part_z, part_load_LE = self._backward(part, targets, micro / train.batch_size)
            loss, z_loss = loss + part_loss, z_loss + part_z
            load_LE = part_load_LE if load_LE is None else load_LE + part_load_LE
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_norm).item()
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainError(f"step {step + 1} gave loss {loss} and gradient norm {norm}: the last checkpoint stands")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        row = {"loss": loss, "z_loss": z_loss, "gradient_norm": norm, "learning_rate": rate}
        row |= {"load_variation": 0.0, "dead_experts": 0}
        if load_LE is not None and len(load_LE):
            balance.move_biases(self.model.moe_layers(), load_LE, train.balance_rate)
            load = balance.report(load_LE)
            row |= {"load_variation": load.variation, "dead_experts": load.dead}
        return row

    def _backward(self, batch: Batch, targets: int, share: float) -> tuple[float, float, Tensor]:
        """Gradients of one micro-batch, whose weight in the step is its targets over all, `share` for the z-loss."""
        tokens_BT, targets_BT, positions_BT, segments_BT = (self._tensor(field) for field in batch)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.train.precision == "bf16"):
            x_BTD, routings = self.model.hidden(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)
        loss = cross_entropy_sum(x_BTD.flatten(0, 1), self.model.head_VD, targets_BT.flatten()) / targets
        z_loss = router_z_loss(routings) * share if routings else loss.new_zeros(())
        (loss + self.train.z_loss * z_loss).backward()
        load_LE = balance.loads(routings) if routings else torch.zeros(0, 0)
        return loss.item(), z_loss.item(), load_LE

    def _tensor(self, array_BT: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array_BT).to(self.device)


def model_config(recipe: Recipe, tokenizer: Tokenizer) -> ModelConfig:
    """The recipe's model with the tokenizer's control ids. Raises ConfigError for a change that is no field."""
    base = preset(recipe.model.preset)
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.stop_ids,
        "eot_token_id": tokenizer.eot_id,
        "header_start_token_id": tokenizer.header_start_id,
        "header_end_token_id": tokenizer.header_end_id,
    }
    known = {field.name for field in dataclasses.fields(base)} - {"raw"}
    if unknown := sorted(set(recipe.model.changes) - known):
        raise ConfigError(f"model.changes.{unknown[0]} is not a field of a model config")
    config = dataclasses.replace(base, **{**ids, **recipe.model.changes})
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(f"the tokenizer has {tokenizer.vocab_size} ids, but vocab_size is only {config.vocab_size}")
    if recipe.train.sequence_length > config.max_position_embeddings:
        raise ConfigError(
            f"train.sequence_length is {recipe.train.sequence_length}, "
            f"but the model's context is {config.max_position_embeddings}"
        )
    return config


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the step under way can end and be saved; the second one ends it at once."""
    seen: list[int] = []

    def collect(number: int, _: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, collect) for kind in kinds]
    try:
        yield seen
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _keep_allocations() -> None:
    """Tells glibc to keep freed memory: giving activations back each step cost a fifth of the time in page faults.

    It holds as long as the process; elsewhere than on glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mmap_threshold, trim_threshold = -3, -1  # names that malloc.h gives these numbers
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)
