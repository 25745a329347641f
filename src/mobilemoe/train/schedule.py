"""Learning rate: linear warm-up, then cosine or linear decay to the final rate."""

from __future__ import annotations

import math

from mobilemoe.train.recipe import TrainTable


def learning_rate(train: TrainTable, step: int) -> float:
    """The rate of step `step`, counted from 0; the last step comes close to `final_learning_rate`."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    done = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    left = (1 + math.cos(math.pi * done)) / 2 if train.schedule == "cosine" else 1 - done
    return train.final_learning_rate + (train.learning_rate - train.final_learning_rate) * left
