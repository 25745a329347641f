"""Training is unchanged: the losses of 50 steps are committed, and change only with a reason in LOG.md."""

import json

import pytest

from mobilemoe.train.loop import train
from places import GOLDEN
from train_runs import rows

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")

# Noise of 2e-7 in the weights, and other instruction sets, move these losses by less than 1e-6; leaving out the
# z-loss, the balance or the weight decay, or another clip_norm or eps, by more than 6e-4. A higher learning rate
# would let rounding flip choices of experts, and the losses would drift apart.
TOLERANCE = 1e-4
PROSE_AND_CODE = """data.mixture=[
  { name = "books", files = "books-*.jsonl*", weight = 0.6 },
  { name = "code", files = "code-*.jsonl*", weight = 0.4 },
]"""


def test_the_losses_of_fifty_steps_are_the_committed_ones(recipe, tmp_path):
    changes = ("train.steps=50", "train.learning_rate=5e-3", "train.micro_batch_size=1", "train.checkpoint_every=50")
    assert train(recipe(*changes, PROSE_AND_CODE), tmp_path / "run").finished
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert losses == pytest.approx(json.loads((GOLDEN / "train_micro.json").read_text())["losses"], rel=TOLERANCE)
