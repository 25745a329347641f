"""The promise of expert parallelism: experts that live in several processes learn what they would in one."""

import pytest

from mobilemoe.checkpoint.run_folder import step_folder
from parallel_runs import STEPS, assert_learnt_the_same, assert_same_weights
from train_runs import assert_whole

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")


def test_experts_in_two_processes_learn_what_they_do_in_one(together, unbroken, tmp_path):
    together(tmp_path / "run", 2, *STEPS, "distributed.expert_parallel=2")
    assert_learnt_the_same(tmp_path / "run", unbroken(*STEPS))
    assert_whole(tmp_path / "run")


@pytest.mark.parametrize("replicas", [1, 2])
def test_parallel_experts_may_be_sharded_or_replicated_too_and_go_on(replicas, together, unbroken, tmp_path):
    run, short = tmp_path / "run", ("train.steps=6", "train.batch_size=4")
    overrides = (*short, "distributed.expert_parallel=2", f"distributed.replicate={replicas}")
    assert not together(run, 4, *overrides, fault="SIGTERM", fault_at=3)[0]["finished"]
    assert together(run, 4, *overrides)[0]["finished"]
    assert_learnt_the_same(run, unbroken(*short))
    assert_same_weights(step_folder(run, 6), step_folder(unbroken(*short), 6))


def test_experts_that_cannot_be_split_evenly_are_refused(together, tmp_path):
    changed = "model.changes.num_local_experts=5"
    ends = together(tmp_path / "run", 2, *STEPS, changed, "distributed.expert_parallel=2")
    assert ends == [{"error": "distributed.expert_parallel is 2, which does not divide the 5 experts"}] * 2
