"""Rows without anything to learn: left out, counted, resumed exactly; and data that hold nothing else, with a name."""

import json

import numpy as np
import pytest

from mobilemoe.chat import ChatTemplate
from mobilemoe.checkpoint.run_folder import step_folders
from mobilemoe.data import loader as loader_module
from mobilemoe.data.config import DataConfig
from mobilemoe.data.encoding import open_tokenizer
from mobilemoe.data.loader import PackedLoader
from mobilemoe.data.mixture import build_mixture
from mobilemoe.data.packing import NO_TARGET
from mobilemoe.errors import DataError
from mobilemoe.train.loop import train
from mobilemoe.train.metrics import read_metrics
from train_runs import assert_same

pytest_plugins = ["train_runs"]
TOKENIZER, _ = open_tokenizer("nano")
LENGTH = 48


def chat(question: str, *answers: str) -> dict:
    said = [("user", question), *(("assistant", answer) for answer in answers)]
    return {"messages": [{"role": role, "content": text} for role, text in said]}


GOOD = [chat(f"What is {n} and {n}?", f"{n} and {n} is {2 * n}.") for n in range(12)]
LONG = chat("Why is it so long, " * 200, "Because.")
USELESS = {
    "only questions": [chat("Anybody here?")] * 9,
    "only system messages": [{"messages": [{"role": "system", "content": "Be kind."}]}] * 9,
    "empty answers": [chat(f"Question {n}?", "") for n in range(9)],
    "a question that never ends": [chat("Why is it so long, " * 200, "")],
}


def write(folder, lines):
    folder.mkdir(exist_ok=True)
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def open_loader(path, batch_size=2):
    source = {"name": "own", "files": path.name, "weight": 1}
    config = DataConfig(path=str(path.parent), seed=1, holdout=0, train_on="assistant", mixture=[source])
    mixture = build_mixture(config, path.parent)
    return PackedLoader(mixture, TOKENIZER, ChatTemplate(), batch_size=batch_size, sequence_length=LENGTH)


def test_every_row_that_is_handed_out_teaches_something_and_the_others_are_counted(tmp_path):
    loader = open_loader(write(tmp_path, [*GOOD, LONG, *USELESS["only questions"]]))
    for _ in range(60):
        assert ((next(loader).targets_BT != NO_TARGET).any(axis=1)).all()
    assert loader.left_out.rows > 20
    assert int(loader.left_out.first.removeprefix("own.jsonl:")) > len(GOOD)
    assert f"rows of {LENGTH} tokens that hold nothing to learn were left out" in str(loader.left_out)
    assert "raise train.sequence_length" in str(loader.left_out)
    assert str(open_loader(write(tmp_path / "good", GOOD)).left_out) == ""


def test_a_loader_resumes_behind_rows_that_were_left_out(tmp_path):
    path = write(tmp_path, [*GOOD, LONG])
    unbroken = open_loader(path)
    for at in range(40):
        state = json.loads(json.dumps(unbroken.state_dict()))
        resumed = open_loader(path)
        resumed.load_state_dict(state)
        batch = next(unbroken)
        assert all(map(np.array_equal, next(resumed), batch)), at
        assert resumed.left_out == unbroken.left_out
    old = unbroken.state_dict()
    del old["left_out"]  # as it was before rows were left out
    resumed.load_state_dict(old)
    assert resumed.left_out.rows == 0


@pytest.mark.parametrize("kind", USELESS)
def test_data_that_hold_nothing_to_learn_say_so_with_a_line(kind, tmp_path):
    with pytest.raises(DataError, match=r"nothing to learn in rows of 48 tokens, from own\.jsonl:\d+ on: .*raise"):
        next(open_loader(write(tmp_path, USELESS[kind])))


def test_a_desert_is_not_searched_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(loader_module, "PATIENCE", 5)
    with pytest.raises(DataError, match="nothing to learn"):
        next(open_loader(write(tmp_path, [chat("Why is it so long, " * 2000, "")])))


# Training


def own(path, *more: str) -> tuple[str, ...]:
    mixture = 'data.mixture=[{name="own", files="own.jsonl", weight=1}]'
    entries = ("data.holdout=0", "data.train_on=assistant", f"train.sequence_length={LENGTH}", mixture, *more)
    return (f"data.path={path.parent}", *entries)


@pytest.mark.usefixtures("quick")
def test_training_gets_past_a_long_question_also_when_it_is_stopped(recipe, stop_in, tmp_path):
    wanted = recipe(*own(write(tmp_path, [*GOOD, LONG]), "train.batch_size=4", "train.micro_batch_size=1"))
    result = train(wanted, tmp_path / "whole")
    assert result.finished
    assert "the first at own.jsonl:13" in result.left_out
    counts = [row["rows_left_out"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    assert counts == sorted(counts)
    assert counts[-1] > 10
    stop_in(6)
    train(wanted, tmp_path / "stopped")
    assert train(wanted, tmp_path / "stopped").left_out == result.left_out
    assert_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.usefixtures("quick")
def test_what_was_learnt_is_saved_before_the_data_stop_the_run(recipe, unbroken, monkeypatch, tmp_path):
    def ends(self):
        if len(taken) == 6:
            raise DataError("the file is gone")
        taken.append(0)
        return real(self)

    taken, real = [], PackedLoader.__next__
    monkeypatch.setattr(PackedLoader, "__next__", ends)
    with pytest.raises(DataError, match="the file is gone"):
        train(recipe(), tmp_path / "run")
    assert step_folders(tmp_path / "run")[-1].name == "step-00000006"  # between those that were due
    monkeypatch.setattr(PackedLoader, "__next__", real)
    assert train(recipe(), tmp_path / "run").finished
    assert_same(tmp_path / "run", unbroken())
