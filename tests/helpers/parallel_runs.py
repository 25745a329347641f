"""What the tests of training in several processes share: the steps that all of them make, and comparisons."""

import numpy as np
import pytest

from mobilemoe.checkpoint import Checkpoint
from train_runs import rows

STEPS = ("train.steps=20", "train.batch_size=4", "train.checkpoint_every=10")


def assert_learnt_the_same(run, other):
    """Losses within 1e-5, and metrics that no rounding touches alike, in every step."""
    assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(other)]
    for ours, theirs in zip(rows(run), rows(other), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["z_loss"] == pytest.approx(theirs["z_loss"], rel=1e-4)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
        for name in ("learning_rate", "tokens", "load_variation", "dead_experts"):
            assert ours[name] == theirs[name], name


def assert_same_weights(folder, other):
    with Checkpoint.open(folder) as ours, Checkpoint.open(other) as theirs:
        assert ours.names == theirs.names
        for name in theirs.names:
            np.testing.assert_allclose(ours.weight(name), theirs.weight(name), atol=1e-3, err_msg=name)
