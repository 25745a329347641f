"""Learning rate: linear warm-up, then cosine or linear decay to the final rate, at once or after a stable phase."""

from __future__ import annotations

import math

from mobilemoe.train.recipe import TrainTable


def learning_rate(train: TrainTable, step: int) -> float:
    """The learning rate of step `step`, counted from 0; that of the last step is close to `final_learning_rate`."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    return train.final_learning_rate + (train.learning_rate - train.final_learning_rate) * _left(train, step)


def balance_rate(train: TrainTable, step: int) -> float:
    """How far the selection bias moves in step `step`. During the decay of "wsd" it moves less and less, so that the
    choice of experts settles together with the weights."""
    return train.balance_rate * _left(train, step) if train.schedule == "wsd" else train.balance_rate


def _left(train: TrainTable, step: int) -> float:
    """How much of the decay is left at `step`, from 1 to 0."""
    done = max(0.0, (step - train.decay_start) / max(1, train.steps - train.decay_start))
    return (1 + math.cos(math.pi * done)) / 2 if train.schedule == "cosine" else 1 - done
