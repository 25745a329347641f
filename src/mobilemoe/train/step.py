"""One optimizer step: gradients of a batch in micro-batches, clipping, update, load balance, and what to report.

B rows, T tokens, L MoE layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilemoe.data.loader import Batch
from mobilemoe.data.packing import NO_TARGET
from mobilemoe.errors import TrainError
from mobilemoe.model import MobileMoE
from mobilemoe.train import balance
from mobilemoe.train.guard import SpikeGuard, explain_nonfinite
from mobilemoe.train.health import RouterHealth
from mobilemoe.train.loss import cross_entropy_sum, router_z_loss
from mobilemoe.train.parallel.distributed import World, clip_gradients
from mobilemoe.train.qat import Teacher, divergence_sum
from mobilemoe.train.recipe import Recipe
from mobilemoe.train.schedule import balance_rate, learning_rate


class Stepper:
    """Takes the steps of a run. Each waits for the device twice: for its own numbers, and for the routers'.

    `domains` names the sources that `Batch.domains_BT` counts in; `teacher` is there when the recipe distils.
    """

    def __init__(
        self,
        model: MobileMoE,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        world: World,
        domains: tuple[str, ...],
        teacher: Teacher | None = None,
    ) -> None:
        self.model, self.optimizer, self.train = model, optimizer, recipe.train
        self.world, self.device, self.domains = world, world.device, domains
        # Adapters learn beside frozen routers, which need the selection bias that they were trained with.
        self.balances = recipe.lora is None
        self.teacher = teacher
        self.taught_share = recipe.qat.distill_weight if recipe.qat is not None and teacher is not None else 0.0
        layers = model.moe_layers()
        self.health = RouterHealth(layers, domains) if layers else None
        self.guard = SpikeGuard(recipe.train.spike_factor, recipe.train.max_spikes)

    def step(self, batch: Batch, step: int, begins: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Learns from `batch` in step `step`, counted from 0; returns what the metrics say of it.

        `begins` are the loader's positions before the batch. A step with a spike is skipped, as the guard decides.
        Raises TrainError, with the weights as they were, if loss or gradient is no number or there is no target.
        """
        targets = int((batch.targets_BT != NO_TARGET).sum())
        if targets == 0:
            raise TrainError(f"the batch of step {step + 1} holds nothing to predict: look at the data's documents")
        parts = self._parts(batch)
        losses = torch.zeros(2, dtype=torch.float64, device=self.device)
        for part in parts:
            losses += self._backward(part, targets)
        norm = clip_gradients(self.model.parameters(), self.train.clip_norm)
        loss, z_loss, gradient_norm = torch.cat([self.world.sum(losses), norm.double().unsqueeze(0)]).tolist()
        row = {"loss": loss, "z_loss": z_loss, "gradient_norm": gradient_norm, "load_variation": 0.0, "dead_experts": 0}
        load_LE = None
        if self.health is not None:
            for counter in self.health.counters:
                self.world.sum(counter)
            load_LE = self.health.load_LE
            row |= self.health.row()
        if math.isfinite(loss) and self.guard.skips(gradient_norm, step + 1):
            self.optimizer.zero_grad(set_to_none=True)
            return row | {"learning_rate": learning_rate(self.train, step), "skipped": True}
        if not math.isfinite(loss) or not math.isfinite(gradient_norm):
            again = partial(self._backward, targets=targets)
            numbers = {"step": step + 1, "loss": loss, "norm": gradient_norm}
            raise TrainError(
                explain_nonfinite(self.model, parts, again, **numbers, domains=self.domains, begins=begins)
            )
        row["learning_rate"] = self._update(step)
        if load_LE is not None and self.balances:
            balance.move_biases(self.model.moe_layers(), load_LE, balance_rate(self.train, step))
        return row

    def _parts(self, batch: Batch) -> list[Batch]:
        """This process's rows, in micro-batches."""
        rows = self.world.rows(self.train.batch_size)
        micro = self.train.micro_batch_size or rows.stop - rows.start
        starts = range(rows.start, rows.stop, micro)
        return [Batch(*(field_BT[start : start + micro] for field_BT in batch)) for start in starts]

    def _backward(self, batch: Batch, targets: int) -> Tensor:
        """Adds the gradients of one micro-batch, whose loss counts by its share of the step's `targets` and whose
        z-loss by its rows; returns both, [2]."""
        tokens_BT, targets_N = self._tensor(batch.tokens_BT), self._tensor(batch.targets_BT).flatten()
        positions_BT, segments_BT = self._tensor(batch.positions_BT), self._tensor(batch.segments_BT)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.train.precision == "bf16"):
            x_BTD, routings = self.model.hidden(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)
        x_ND, head_VD = x_BTD.flatten(0, 1), self.model.head_VD
        loss = cross_entropy_sum(x_ND, head_VD, targets_N) / targets
        z_loss = loss.new_zeros(())
        if routings:
            z_loss = router_z_loss(routings) * (len(tokens_BT) / self.train.batch_size)
        learnt = loss
        if self.teacher is not None:
            taught_x_ND, taught_head_VD = self.teacher.hidden(tokens_BT, positions_BT, segments_BT)
            divergence = divergence_sum(x_ND, head_VD, taught_x_ND, taught_head_VD, targets_N) / targets
            learnt = (1 - self.taught_share) * loss + self.taught_share * divergence
        (learnt + self.train.z_loss * z_loss).backward()
        if self.health is not None:
            self.health.add(routings, self._tensor(batch.domains_BT).flatten())
        return torch.stack([loss.detach().double(), z_loss.detach().double()])

    def _update(self, step: int) -> float:
        """One step of the optimizer at the schedule's rate, which is returned."""
        rate = learning_rate(self.train, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def _tensor(self, array_BT: np.ndarray[Any, Any]) -> Tensor:
        tensor_BT = torch.from_numpy(array_BT)
        if self.device.type == "cuda":  # pinned, or else the copy would wait for all work before it
            return tensor_BT.pin_memory().to(self.device, non_blocking=True)
        return tensor_BT
