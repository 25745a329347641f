"""Several processes learn what one would, and any number of them can resume what another number saved."""

import shutil

import pytest

from mobilemoe.checkpoint.run_folder import step_folder, step_folders
from mobilemoe.errors import ConfigError
from mobilemoe.train.parallel.distributed import join
from parallel_runs import STEPS, assert_learnt_the_same, assert_same_weights
from train_runs import assert_same, assert_whole, leftovers

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")


REPLICAS = ("distributed.replicate=2", "train.micro_batch_size=1")


@pytest.fixture(scope="module")
def alone(unbroken):
    return unbroken(*STEPS)


@pytest.fixture(scope="module")
def sharded(together, tmp_path_factory):
    """The run of two processes. Not to be changed."""
    run = tmp_path_factory.mktemp("sharded") / "run"
    assert together(run, 2, *STEPS) == [{"steps": 20, "finished": True, "checkpoint": "step-00000020"}] * 2
    return run


def test_two_processes_learn_what_one_does(sharded, alone):
    assert_learnt_the_same(sharded, alone)


def test_two_replicas_learn_what_one_process_does(together, alone, tmp_path):
    together(tmp_path / "run", 2, *STEPS, *REPLICAS)
    assert_learnt_the_same(tmp_path / "run", alone)


def test_replicas_go_on_with_what_another_number_of_processes_saved(together, alone, tmp_path):
    run = tmp_path / "run"
    for processes, steps in ((2, 8), (1, 12), (4, 16), (2, 20)):
        distributed = REPLICAS if processes == 2 else (f"distributed.replicate={processes}",)
        together(run, processes, *STEPS, *distributed, "train.checkpoint_every=2", fault="SIGTERM", fault_at=steps)
    assert_learnt_the_same(run, alone)


def test_their_checkpoints_are_those_of_one_process(sharded, alone):
    assert_whole(sharded)
    assert leftovers(sharded) == []
    for ours, theirs in zip(step_folders(sharded), step_folders(alone), strict=True):
        assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
        assert_same_weights(ours, theirs)


@pytest.mark.parametrize("processes", [1, 4])
def test_what_two_processes_saved_another_number_goes_on_with(processes, together, sharded, alone, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    shutil.rmtree(step_folder(run, 20))  # the one before was written while the next steps were made
    assert together(run, processes, *STEPS)[0]["finished"]
    assert_learnt_the_same(run, alone)


def test_an_interrupt_of_one_process_stops_all_and_they_go_on_bit_for_bit(together, sharded, tmp_path):
    run = tmp_path / "run"
    ends = together(run, 2, *STEPS, fault="SIGTERM", fault_at=12)
    assert ends == [{"steps": 12, "finished": False, "checkpoint": "step-00000012"}] * 2
    assert_whole(run)
    together(run, 2, *STEPS)
    assert_same(run, sharded)


def test_a_checkpoint_that_one_process_cannot_write_stops_all_and_the_one_before_stands(together, tmp_path):
    run = tmp_path / "run"
    ends = together(run, 2, "train.steps=4", "train.checkpoint_every=2", fault="full disk", fault_at=4)
    assert ends == [{"error": "process 1 could not write the checkpoint: [Errno 28] No space left on device"}] * 2
    assert [folder.name for folder in step_folders(run)] == ["step-00000002"]
    assert_whole(run)


def test_where_one_process_has_no_more_data_all_save_first_and_they_go_on_bit_for_bit(together, sharded, tmp_path):
    run = tmp_path / "run"
    other, last = together(run, 2, *STEPS, fault="no data", fault_at=12)
    assert last == {"error": "the mount is gone"}
    # It was ended with that sentence (test_rank_failure.py), or noticed first that the other has gone.
    assert other in (None, {"error": "process 1 stopped the training: the mount is gone"})
    assert step_folders(run)[-1].name == "step-00000012"
    assert_whole(run)
    together(run, 2, *STEPS)
    assert_same(run, sharded)


@pytest.mark.parametrize(
    ("processes", "overrides", "words"),
    [
        (3, [], "batch_size is 2, which 3 processes cannot share evenly"),
        (1, ["distributed.replicate=2"], "does not divide the number of processes, 1"),
        (2, ["train.micro_batch_size=2"], "2 processes cannot share evenly in micro-batches of 2 rows"),
        (2, ["lora.rank=2", "distributed.expert_parallel=2"], "lora keeps the whole model in each process"),
        (2, ["distributed.expert_parallel=2", "train.capacity_factor=1.5"], "expert_parallel drops no tokens"),
    ],
)
def test_what_cannot_be_shared_is_said_before_anything_starts(processes, overrides, words, recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(ConfigError, match=words), join(recipe(*overrides)):
        pass
