"""Muon, adapters and quantisation-aware training learn in several processes what they learn in one."""

import pytest

from mobilemoe.checkpoint.run_folder import step_folder
from parallel_runs import assert_learnt_the_same, assert_same_weights
from train_runs import assert_whole, rows

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")

# INT4 weights need widths that 32 divides. Over more steps rounding grows into other choices of experts.
STEPS = ("train.steps=10", "train.batch_size=4", "train.checkpoint_every=5", "model.changes.intermediate_size=32")
MUON, LORA, QAT = "train.optimizer=muon", "lora.rank=2", "qat.activations=int8"
LEARNT_SCALES = ("qat.activations=none", "qat.learn_scales=true")
EXPERTS = "distributed.expert_parallel=2"


METHODS = [(MUON, 2, ()), (MUON, 2, ("distributed.replicate=2",)), (MUON, 4, (EXPERTS,)), (LORA, 2, ())]


def both(together, unbroken, run, method, processes, distributed):
    ends = together(run, processes, *STEPS, *method, *distributed)
    assert [end.get("finished") for end in ends] == [True] * processes, ends
    assert_whole(run)
    return unbroken(*STEPS, *method)


@pytest.mark.parametrize(("method", "processes", "distributed"), METHODS)
def test_several_processes_learn_what_one_does(method, processes, distributed, together, unbroken, tmp_path):
    alone = both(together, unbroken, tmp_path / "run", (method,), processes, distributed)
    assert_learnt_the_same(tmp_path / "run", alone)
    assert_same_weights(step_folder(tmp_path / "run", 10), step_folder(alone, 10))


@pytest.mark.parametrize(
    ("method", "processes", "distributed"),
    [((LORA, QAT), 2, ()), ((QAT,), 2, (EXPERTS,)), (LEARNT_SCALES, 4, (EXPERTS,))],
    ids=["adapters", "experts", "learnt scales"],
)
def test_rounded_weights_learn_nearly_the_same(method, processes, distributed, together, unbroken, tmp_path):
    """What differs in the last bit may be rounded to another integer, from which later steps differ."""
    alone = both(together, unbroken, tmp_path / "run", method, processes, distributed)
    for ours, theirs in zip(rows(tmp_path / "run")[:5], rows(alone)[:5], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
