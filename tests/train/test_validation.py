"""The promise of train.validate_every: held-out loss and a sample of text, and training is unchanged."""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilemoe.checkpoint.run_folder import step_folders
from mobilemoe.data.encoding import open_tokenizer
from mobilemoe.data.heldout import read_held_out_text
from mobilemoe.data.loader import PackedLoader
from mobilemoe.data.mixture import build_mixture
from mobilemoe.data.packing import NO_TARGET
from mobilemoe.model import MobileMoE
from mobilemoe.model.experts import Experts
from mobilemoe.train.interrupts import interrupts
from mobilemoe.train.loop import Trainer, train
from mobilemoe.train.metrics import draw_loss, read_metrics
from mobilemoe.train.parallel.distributed import World
from mobilemoe.train.validation import PROMPT, nats_by_domain
from train_runs import assert_same, rows

pytest_plugins = ["cli_calls", "train_runs"]
pytestmark = pytest.mark.usefixtures("quick")

WORLD = World(0, 1, torch.device("cpu"))
HELD_OUT = ("data.holdout=0.1", "train.validate_tokens=512")
QAT = ("qat.group_axis=in", "model.changes.intermediate_size=32")
VALIDATED = (*HELD_OUT, "train.validate_every=3")


def validations(run: Path) -> dict[int, dict]:
    return {row["step"]: row["validation"] for row in rows(run) if "validation" in row}


def test_every_so_many_steps_and_after_the_last_the_metrics_have_loss_sources_and_a_sample(recipe, unbroken):
    found = validations(unbroken(*VALIDATED))
    assert list(found) == [3, 6, 9, 10]
    for row in found.values():
        assert list(row["by_source"]) == ["books", "chat"]
        assert 0 < row["bits_per_byte"] < 20
        assert row["loss"] == pytest.approx(math.log(16384), rel=0.2)  # of a model that has hardly learnt
        assert row["sample"].startswith(PROMPT)


@pytest.mark.parametrize("more", [(), QAT, ("lora.rank=4",), ("train.capacity_factor=1.0",)])
def test_training_is_the_same_to_the_bit_with_and_without(more, recipe, unbroken, tmp_path):
    run = unbroken(*VALIDATED, *more)
    without = unbroken(*HELD_OUT, *more)
    plain = [{name: value for name, value in row.items() if name != "validation"} for row in rows(run)]
    assert plain == rows(without)
    ours, theirs = step_folders(run)[-1], step_folders(without)[-1]
    for path in theirs.iterdir():
        assert (ours / path.name).read_bytes() == path.read_bytes(), path.name
    assert (run / "router.json").read_bytes() == (without / "router.json").read_bytes()


def test_validation_draws_no_random_number_and_leaves_statistics_bias_and_gradients(recipe, stop_in, tmp_path):
    trainer = Trainer(recipe(*VALIDATED, "train.capacity_factor=1.0"), tmp_path / "run", WORLD)
    model, stepper = trainer.setup.model, trainer.stepper
    stop_in(3)
    with interrupts(insistent=True) as stop:
        trainer.run_steps(stop)
    torch.manual_seed(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random, counters = torch.get_rng_state(), [counter.clone() for counter in stepper.health.counters]
    trainer.setup.validation.row(model, WORLD, "fp32", 2)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(map(torch.equal, stepper.health.counters, counters))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("stop", [3, 5])
def test_a_run_that_was_stopped_says_the_same_of_its_held_out_text(stop, recipe, unbroken, stop_in, tmp_path):
    stop_in(stop, signal.SIGTERM)
    assert not train(recipe(*VALIDATED), tmp_path / "run").finished
    result = train(recipe(*VALIDATED), tmp_path / "run")
    assert_same(tmp_path / "run", unbroken(*VALIDATED))
    assert result.validation == validations(unbroken(*VALIDATED))[10]


def test_two_processes_say_what_one_does(recipe, unbroken, together, tmp_path):
    ends = together(tmp_path / "run", 2, *VALIDATED)
    assert [end["finished"] for end in ends] == [True, True]
    ours, theirs = validations(tmp_path / "run"), validations(unbroken(*VALIDATED))
    assert list(ours) == list(theirs)
    for step, row in ours.items():
        assert row["loss"] == pytest.approx(theirs[step]["loss"], rel=1e-4)
        assert row["by_source"] == pytest.approx(theirs[step]["by_source"], rel=1e-4)


def test_training_by_two_processes_is_the_same_with_and_without(together, tmp_path):
    for name, overrides in (("with", VALIDATED), ("without", HELD_OUT)):
        assert all(end["finished"] for end in together(tmp_path / name, 2, *overrides))
    ours, theirs = (step_folders(tmp_path / name)[-1] / "model.safetensors" for name in ("with", "without"))
    assert ours.read_bytes() == theirs.read_bytes()


def _text(recipe, *overrides: str, tokens: int = 512):
    loaded = recipe("data.holdout=0.1", *overrides)
    tokenizer, template = open_tokenizer("nano")
    return loaded, read_held_out_text(loaded.data, Path.cwd(), tokenizer, template, 32, tokens)


def test_held_out_rows_are_bounded_the_same_each_time_and_not_in_the_training_text(recipe):
    loaded, text = _text(recipe)
    again = _text(recipe)[1]
    assert all(map(np.array_equal, text.rows, again.rows))
    assert text.rows.tokens_T.shape == (16, 32)
    assert text.shares_G == pytest.approx([0.6, 0.4])
    assert len(_text(recipe, tokens=64)[1].rows.tokens_T) == 2
    tokenizer, template = open_tokenizer("nano")
    loader = PackedLoader(build_mixture(loaded.data, Path.cwd()), tokenizer, template, batch_size=8, sequence_length=32)
    trained = set()
    while all(source["epochs"] == 0 for source in loader.counts.values()):
        trained.update(_windows(next(loader).tokens_BT))
    assert trained.isdisjoint(_windows(text.rows.tokens_T[:8]))  # the books'


def _windows(tokens_RT: np.ndarray) -> set[bytes]:
    """Runs of 12 tokens, wherever they begin in a row."""
    return {row[start : start + 12].tobytes() for row in tokens_RT for start in range(row.size - 11)}


def test_bytes_are_those_of_the_targets_and_control_tokens_have_none(recipe):
    text = _text(recipe)[1]
    tokenizer = open_tokenizer("nano")[0]
    for number in range(2):
        targets = text.rows.targets_T[(text.rows.targets_T != NO_TARGET) & (text.rows.domains_T == number)]
        assert text.targets_G[number] == len(targets)
        assert text.bytes_G[number] == len(b"".join(map(tokenizer.token_bytes, targets.tolist())))


def test_of_conversations_the_assistants_words_alone_are_scored_where_they_alone_are_learnt(recipe):
    taught = _text(recipe, "data.train_on=assistant")[1]
    assert taught.targets_G[1] < _text(recipe)[1].targets_G[1]


def test_the_loss_is_that_of_the_models_own_logits(recipe):
    text = _text(recipe)[1]
    model = MobileMoE(recipe().model.new_config())
    model.initialize(1)
    found = nats_by_domain(model, text.rows, 2, WORLD, "fp32", 3)
    tokens_RT, targets_RT, positions_RT, segments_RT, domains_RT = map(torch.from_numpy, text.rows)
    with torch.no_grad():
        logits_RTV = model(tokens_RT, positions_BT=positions_RT, segments_BT=segments_RT)
    nats_RT = torch.nn.functional.cross_entropy(logits_RTV.mT, targets_RT, reduction="none", ignore_index=NO_TARGET)
    assert found == pytest.approx([float(nats_RT[domains_RT == number].sum()) for number in range(2)], rel=1e-5)


def test_with_quantisation_aware_training_the_rounded_weights_are_scored(recipe, tmp_path):
    trainer = Trainer(recipe(*VALIDATED, *QAT, "qat.activations=none"), tmp_path / "run", WORLD)
    trainer.setup.loader.close()
    model, text = trainer.setup.model, trainer.setup.validation.text
    plain = MobileMoE(model.config)
    plain.load_state_dict(model.state_dict())
    unrounded = nats_by_domain(plain, text.rows, 2, WORLD, "fp32", 2)
    with torch.no_grad():
        for module, rounded in zip(plain.modules(), model.modules(), strict=True):
            if hasattr(rounded, "effective_weight"):
                module.weight.copy_(rounded.effective_weight())
            elif isinstance(module, Experts):
                for weight, value in zip((module.gate_up_proj, module.down_proj), rounded.weights(), strict=True):
                    weight.copy_(value)
    found = nats_by_domain(model, text.rows, 2, WORLD, "fp32", 2)
    assert found == pytest.approx(nats_by_domain(plain, text.rows, 2, WORLD, "fp32", 2), rel=1e-6)
    assert found != pytest.approx(unrounded, rel=1e-6)


# ---- what the user sees


def test_the_progress_the_summary_and_the_json_say_it(recipe_path, mobilemoe_cli, tmp_path):
    command = ["train", str(recipe_path), "--out", str(tmp_path / "run"), "--set", "train.steps=3"]
    for change in VALIDATED:
        command += ["--set", change]
    said = mobilemoe_cli(*command)
    last = validations(tmp_path / "run")[3]
    assert f"step 3: held-out loss {last['loss']:.4f}, {last['bits_per_byte']:.3f} bits per byte (books " in said.err
    assert f"sample: {json.dumps(last['sample'], ensure_ascii=False)}" in said.err
    assert f"held-out text {last['bits_per_byte']:.3f} bits per byte" in said.out
    assert mobilemoe_cli(*command, "--json").json["validation"] == last  # finished before: from its metrics


@pytest.mark.parametrize(
    ("holdout", "words"),
    [
        ("0", "note: the run is not validated: data.holdout 0 holds out no text of any source"),
        ("0.01", "note: the run is not validated: data.holdout 0.01 holds out no text of any source"),
        ("0.03", "note: not validated on books: data.holdout 0.03 holds out no text of them"),
    ],
)
def test_where_nothing_is_held_out_one_note_says_so_and_the_run_goes_on(holdout, words, recipe, tmp_path, capsys):
    asked = recipe("train.validate_every=1", "train.validate_tokens=64", f"data.holdout={holdout}", "train.steps=2")
    result = train(asked, tmp_path / "run")
    assert result.finished
    assert capsys.readouterr().err.count(words) == 1
    assert (result.validation is None) == (holdout != "0.03")


def test_the_picture_shows_the_held_out_loss_beside_the_training_loss(unbroken, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = {}
    plot = Axes.plot
    monkeypatch.setattr(
        Axes,
        "plot",
        lambda self, x, y, **style: (drawn.update({style.get("label"): (x, y)}), plot(self, x, y, **style)),
    )
    metrics = read_metrics(unbroken(*VALIDATED) / "metrics.jsonl")
    draw_loss(metrics, tmp_path / "loss.png")
    ((label, (tokens, losses)),) = [(label, line) for label, line in drawn.items() if label and "held-out" in label]
    assert tokens == [row["tokens"] / 1e6 for row in metrics if "validation" in row]
    assert losses == [row["validation"]["loss"] for row in metrics if "validation" in row]
    assert "bits per byte" in label
