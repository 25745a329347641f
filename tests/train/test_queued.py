"""The promise of steps that are queued, as on a GPU: the same training, and no change once a loss is not finite."""

import pytest
import torch
from torch.distributed.utils import _to_kwargs

from mobilemoe.checkpoint.run_folder import step_folder, step_folders
from mobilemoe.errors import TrainError
from mobilemoe.model import MobileMoE
from mobilemoe.train import step as step_module
from mobilemoe.train.loop import train
from mobilemoe.train.step import Stepper
from train_runs import assert_same, rows

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def queued(monkeypatch):
    """Has the CPU queue its steps as a GPU does."""
    real = Stepper.__init__

    def make(self, *arguments):
        real(self, *arguments)
        self.waits = False

    monkeypatch.setattr(Stepper, "__init__", make)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("log_every", [1, 3, 10])
def test_queued_steps_train_as_steps_that_wait(log_every, optimizer, recipe, unbroken, queued, tmp_path, monkeypatch):
    waited = f"train.optimizer={optimizer}"
    train(recipe(waited, f"train.log_every={log_every}"), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr("mobilemoe.train.loop.draw_loss", lambda rows, path: None)
    assert_same(tmp_path / "run", unbroken(waited))


def test_fsdp_has_nothing_to_wait_for_in_the_segments_of_a_batch(recipe, tmp_path, monkeypatch):
    """FSDP copies every tensor of the host that the model is given to the GPU, and waits for all work before it."""
    given = []

    def hidden(self, tokens_BT, **others):
        given.append(others["segments_BT"])
        return real(self, tokens_BT, **others)

    real = MobileMoE.hidden
    monkeypatch.setattr(MobileMoE, "hidden", hidden)
    train(recipe("train.steps=1"), tmp_path / "run")
    for segments_BT in given:
        assert (
            _to_kwargs((), {"segments_BT": segments_BT}, torch.device("meta"), False)[1][0]["segments_BT"]
            is segments_BT
        )


def _break_from(monkeypatch, number: int):
    """The loss of the steps from `number` on, counted from 1, is no number while they are taken."""
    real, taken = step_module.cross_entropy_sum, []

    def broken(*arguments):
        taken.append(None)
        return real(*arguments) * (float("nan") if len(taken) >= number else 1.0)

    monkeypatch.setattr(step_module, "cross_entropy_sum", broken)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_from_a_loss_that_is_no_number_on_nothing_changes_until_it_is_read(
    optimizer, recipe, queued, tmp_path, monkeypatch
):
    states = []
    real = Stepper.step

    def step(self, batch, at, begins):
        real(self, batch, at, begins)
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        for number, of in enumerate(self.optimizer.state.values()):
            state |= {f"{number}/{name}": torch.as_tensor(value).clone() for name, value in of.items()}
        states.append(state)

    monkeypatch.setattr(Stepper, "step", step)
    _break_from(monkeypatch, 6)
    with pytest.raises(TrainError, match="step 6 gave loss nan"):
        train(recipe(f"train.optimizer={optimizer}"), tmp_path / "run")
    assert len(states) == 8  # read at the checkpoint
    for state in states[5:]:
        assert all(torch.equal(value, states[4][name]) for name, value in state.items())
    assert any(not torch.equal(value, states[4][name]) for name, value in states[3].items())
    assert step_folders(tmp_path / "run") == [step_folder(tmp_path / "run", 4)]
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5]  # those before it are told


def test_the_tensor_that_was_not_finite_is_named_though_it_is_read_later(recipe, queued, tmp_path, monkeypatch):
    real = Stepper.step

    def step(self, batch, at, begins):
        if at == 1:
            with torch.no_grad():
                self.model.model.layers[1].self_attn.o_proj.weight[0, 0] = float("inf")
        real(self, batch, at, begins)

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(TrainError, match=r"step 2 gave loss nan .*the weight model.layers.1.self_attn.o_proj.weight"):
        train(recipe(), tmp_path / "run")


@pytest.mark.parametrize("more", [(), ("distributed.expert_parallel=2",)])
def test_processes_that_queue_their_steps_train_as_those_that_wait(more, together, tmp_path):
    for name in ("queued", "waited"):
        ends = together(tmp_path / name, 2, "train.log_every=3", *more, queued=name == "queued")
        assert [end.get("finished") for end in ends] == [True, True]
    assert_same(tmp_path / "queued", tmp_path / "waited")
