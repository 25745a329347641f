"""One optimizer step: gradients of a batch in micro-batches, clipping, update, load balance, and what to report.

B rows, T tokens, L MoE layers, E experts, K numbers of each layer, S steps ahead of a draft head.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mobilemoe.data.loader import Batch
from mobilemoe.data.packing import NO_TARGET
from mobilemoe.errors import TrainError
from mobilemoe.model import MobileMoE
from mobilemoe.train import balance, draft
from mobilemoe.train.guard import SpikeGuard, explain_nonfinite
from mobilemoe.train.health import RouterHealth, step_row
from mobilemoe.train.loss import cross_entropy_sum, router_z_loss
from mobilemoe.train.parallel.distributed import World, clip_gradients
from mobilemoe.train.parallel.replicas import Replicas, updated
from mobilemoe.train.qat import Teacher, divergence_sum
from mobilemoe.train.recipe import Recipe
from mobilemoe.train.schedule import balance_rate, learning_rate

Targets: TypeAlias = int | npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Taken:
    """A step whose numbers have not been read: loss, z-loss and gradient norm [3], and the routers' [K, L].

    Of a draft head `targets` are the places of each of its S steps ahead, and the numbers go on with the agreement at
    each.

    `parts` and `begins` are this process's micro-batches and the loader's positions before them, for the case that
    the loss or the gradient is not finite.
    """

    step: int
    parts: list[Batch]
    targets: Targets
    begins: Mapping[str, Sequence[int]]
    numbers: Tensor
    routers_KL: Tensor | None
    skipped: bool = False


class Stepper:
    """Takes the steps of a run; `read` gives their numbers.

    `domains` names the sources that `Batch.domains_BT` counts in; `teacher` is there when the recipe distils.

    A GPU works behind the process that gives it work, so a process that waits for a step's loss leaves it idle for a
    moment. There (`waits` is false) the steps are queued without waiting until `read` is called. Whether loss and
    gradient are finite is then decided by the GPU itself: from the first step on in which they are not, `_broken` is
    set, and neither the optimizer nor the load balance changes anything, so `read` finds weights and moments as they
    were before that step. On a CPU nothing is queued, and where steps with a spike are skipped the process has to know
    the gradient norm: there each step waits for its numbers before the update.
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
        self.replicas = Replicas(model, world.size)
        # Adapters learn beside frozen routers, which need the selection bias that they were trained with.
        self.balances = recipe.lora is None
        self.steps_ahead = 0 if recipe.draft is None else recipe.draft.steps
        self.teacher = teacher
        self.taught_share = recipe.qat.distill_weight if recipe.qat is not None and teacher is not None else 0.0
        layers = [] if self.steps_ahead else model.moe_layers()  # a draft head leaves the model as it is
        self.health = RouterHealth(layers, domains) if layers else None
        self.guard = SpikeGuard(recipe.train.spike_factor, recipe.train.max_spikes)
        self.waits = self.device.type != "cuda" or recipe.train.spike_factor is not None
        self._broken = torch.zeros((), dtype=torch.bool, device=self.device)
        self._taken: list[_Taken] = []

    def step(self, batch: Batch, step: int, begins: Mapping[str, Sequence[int]]) -> None:
        """Learns from `batch` in step `step`, counted from 0.

        `begins` are the loader's positions before the batch. A step with a spike is skipped, as the guard decides.
        Raises TrainError, with the weights as they were, if there is no target; or, where steps wait, if loss or
        gradient is not finite.
        """
        targets = self._targets(batch)
        if not np.all(targets):
            raise TrainError(f"the batch of step {step + 1} holds nothing to predict: look at the data's documents")
        parts = self._parts(batch)
        losses = torch.zeros(2 + self.steps_ahead, dtype=torch.float64, device=self.device)
        for part in parts:
            self.replicas.due(last=part is parts[-1])
            losses += self._backward(part, targets)
        norm = clip_gradients(map(updated, self.model.parameters()), self.train.clip_norm)
        loss, z_loss, *agreed = self.world.sum(losses).unbind()
        numbers = torch.stack([loss, z_loss, norm.double(), *agreed])
        load_LE = routers_KL = None
        if self.health is not None:
            for counter in self.health.counters:
                self.world.sum(counter)
            load_LE, routers_KL = self.health.load_LE, self.health.end_step()
        taken = _Taken(step, parts, targets, begins, numbers, routers_KL)
        if self.waits:
            loss_now, _, gradient_norm, *_ = numbers.tolist()
            if math.isfinite(loss_now) and self.guard.skips(gradient_norm, step + 1):
                self.optimizer.zero_grad(set_to_none=True)
                self._taken.append(dataclasses.replace(taken, skipped=True))
                return
            self._refuse_nonfinite(taken, loss_now, gradient_norm)
        else:
            self._broken |= ~numbers.isfinite().all()
            # Fused optimizers skip an update whose gradients a scaler found infinite; so does ours of Muon.
            self.optimizer.found_inf = self._broken.float()  # type: ignore[attr-defined]
        self._taken.append(taken)
        self._update(step)
        if load_LE is not None and self.balances:
            # Without any load all experts have the mean, and no bias moves.
            load_LE = load_LE if self.waits else load_LE * ~self._broken
            balance.move_biases(self.model.moe_layers(), load_LE, balance_rate(self.train, step))

    def read(self) -> Iterator[dict[str, Any]]:
        """What the metrics say of each step since the last call, in order; waits for the device and for all weights.

        Raises TrainError, with the weights as they were before it, for the first step whose loss or gradient is not
        finite.
        """
        self.replicas.wait_for_weights()
        taken, self._taken = self._taken, []
        if not taken:
            return
        numbers = torch.stack([one.numbers for one in taken]).tolist()
        of_routers = [one.routers_KL for one in taken if one.routers_KL is not None]
        routers = torch.stack(of_routers).tolist() if of_routers else [None] * len(taken)
        for one, (loss, z_loss, gradient_norm, *agreed), layers in zip(taken, numbers, routers, strict=True):
            self._refuse_nonfinite(one, loss, gradient_norm)
            row = {"loss": loss, "z_loss": z_loss, "gradient_norm": gradient_norm}
            row |= {"load_variation": 0.0, "dead_experts": 0} if layers is None else step_row(layers)
            row |= {"agreed": [round(share, 6) for share in agreed]} if agreed else {}
            row["learning_rate"] = learning_rate(self.train, one.step)
            yield row | ({"skipped": True} if one.skipped else {})

    def _refuse_nonfinite(self, taken: _Taken, loss: float, gradient_norm: float) -> None:
        if taken.skipped or (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return
        again = partial(self._backward, targets=taken.targets)
        raise TrainError(
            explain_nonfinite(
                self.model,
                taken.parts,
                again,
                step=taken.step + 1,
                loss=loss,
                norm=gradient_norm,
                domains=self.domains,
                begins=taken.begins,
            )
        )

    def _parts(self, batch: Batch) -> list[Batch]:
        """This process's rows in micro-batches; as copies, so that queued steps do not keep the rows of the others."""
        rows = self.world.rows(self.train.batch_size)
        if self.world.size > 1:
            batch = Batch(*(field_BT[rows].copy() for field_BT in batch))
            rows = slice(0, len(batch.tokens_BT))
        micro = self.train.micro_batch_size or rows.stop - rows.start
        starts = range(rows.start, rows.stop, micro)
        return [Batch(*(field_BT[start : start + micro] for field_BT in batch)) for start in starts]

    def _targets(self, batch: Batch) -> Targets:
        return draft.places(batch, self.steps_ahead) if self.steps_ahead else int((batch.targets_BT != NO_TARGET).sum())

    def _backward(self, batch: Batch, targets: Targets) -> Tensor:
        """Adds the gradients of one micro-batch, whose loss counts by its share of the step's `targets` and whose
        z-loss by its rows; returns both, [2]; of a draft head also the agreement at each step ahead, [2 + S]."""
        if not isinstance(targets, int):
            return self._backward_draft(batch, targets)
        tokens_BT, targets_N = self._tensor(batch.tokens_BT), self._tensor(batch.targets_BT).flatten()
        positions_BT, segments_BT = self._tensor(batch.positions_BT), batch.segments_BT  # which stay on the host
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
        self.replicas.wait()
        if self.health is not None:
            self.health.add(routings, self._tensor(batch.domains_BT).flatten())
        return torch.stack([loss.detach().double(), z_loss.detach().double()])

    def _backward_draft(self, batch: Batch, places_S: npt.NDArray[np.int64]) -> Tensor:
        """`_backward` of a draft head: its loss is the mean over steps ahead of the divergence at a place."""
        tokens_BT, positions_BT = self._tensor(batch.tokens_BT), self._tensor(batch.positions_BT)
        each_S = 1 / self._tensor(places_S).double()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.train.precision == "bf16"):
            states_BTX = draft.states(self.model, tokens_BT, positions_BT, batch.segments_BT)
            nats_S, agreed_S = draft.divergences(self.model, states_BTX, batch, self.steps_ahead)
        loss = (nats_S * each_S).mean()
        loss.backward()
        return torch.cat([torch.stack([loss.detach(), loss.new_zeros(())]), agreed_S * each_S])

    def _update(self, step: int) -> None:
        """One step of the optimizer at the schedule's rate."""
        rate = learning_rate(self.train, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.replicas.spread()

    def _tensor(self, array_BT: np.ndarray[Any, Any]) -> Tensor:
        tensor_BT = torch.from_numpy(array_BT)
        if self.device.type == "cuda":  # pinned, or else the copy would wait for all work before it
            return tensor_BT.pin_memory().to(self.device, non_blocking=True)
        return tensor_BT
