"""Promises of the estimate that is printed before training: its sums, where its speed comes from, and what it costs."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cli_calls import RECIPE, recipe_options
from mobilemoe import accounting
from mobilemoe.config import ModelConfig
from mobilemoe.errors import ConfigError, ModelNotFoundError
from mobilemoe.model import MobileMoE
from mobilemoe.presets import family_member, preset
from mobilemoe.train import estimate as estimate_module
from mobilemoe.train.estimate import (
    activation_bytes,
    architecture,
    estimate_memory,
    estimate_run,
    expected_speed,
    replicas,
)
from mobilemoe.train.recipe import ModelTable, Recipe, load_recipe

pytest_plugins = ["train_runs"]
NANO = preset("nano")
P = accounting.total_parameters(NANO)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def recipe(*overrides: str) -> Recipe:
    return load_recipe(RECIPE, ("train.precision=bf16", *overrides))


@pytest.fixture
def known_device(monkeypatch):
    """A device whose matrix products run at 1 TFLOP/s."""
    monkeypatch.setattr(estimate_module, "matmul_flops", lambda device, precision: 1e12)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def write_metrics(run: Path, speeds: list[float]) -> None:
    run.mkdir(parents=True)
    rows = [{"step": step + 1, "tokens_per_second": speed} for step, speed in enumerate(speeds)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# Memory


@pytest.mark.parametrize(
    ("overrides", "weights", "gradients", "moments", "copies"),
    [
        ((), 4, 4, 8, 2),
        (("train.weights=bf16",), 2, 2, 4, 0),
        (("train.precision=fp32",), 4, 4, 8, 0),
        (("train.precision=fp32", "qat.group_axis=in"), 4, 4, 8, 4),
    ],
)
def test_weights_gradients_and_moments_take_the_bytes_of_their_precision(
    overrides, weights, gradients, moments, copies
):
    memory = estimate_memory(recipe(*overrides), NANO, 1)
    sizes = (memory.weights, memory.gradients, memory.moments, memory.copies)
    assert sizes == tuple(size * P for size in (weights, gradients, moments, copies))
    assert memory.total == sum(sizes) + memory.activations + memory.logits


def test_shards_divide_what_is_stored_and_replicas_do_not():
    alone, four = (estimate_memory(recipe("distributed.replicate=1"), NANO, processes) for processes in (1, 4))
    replicated = estimate_memory(recipe("distributed.replicate=2"), NANO, 4)
    assert (four.weights, four.moments) == (alone.weights // 4, alone.moments // 4)
    assert replicated.gradients == alone.gradients // 2
    whole = estimate_memory(recipe("distributed.replicate=4"), NANO, 4)
    assert (whole.weights, whole.moments) == (alone.weights, alone.moments // 4)
    assert whole.gradients == alone.gradients * 5 // 4  # those of this process, and the sums of its part
    assert four.copies < alone.copies
    assert four.activations == alone.activations // 4  # of two rows in place of eight
    assert estimate_memory(recipe("train.micro_batch_size=2"), NANO, 1).activations == alone.activations // 4


@pytest.fixture
def h100(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(total_memory=80e9))


ROWS = ("train.sequence_length=2048", "train.precision=bf16")


@pytest.mark.parametrize(
    ("name", "rows", "overrides", "groups"),
    [
        ("S", 16, (), 4),
        ("S", 16, ("train.precision=auto",), 4),
        ("M", 8, (), 4),
        ("M", 16, (), 1),
        ("M", 16, ("train.micro_batch_size=4",), 4),
        ("L", 8, ("train.weights=bf16",), 4),
        ("L", 4, ("train.weights=bf16",), 4),
        ("L", 16, ("train.weights=bf16",), 1),
        ("S", 16, ("distributed.replicate=2",), 2),
        ("S", 16, ("distributed.expert_parallel=2",), 1),
    ],
)
def test_gpus_replicate_a_model_whose_step_fits_one(name, rows, overrides, groups, h100):
    chosen = recipe(*ROWS, f"train.batch_size={4 * rows}", *overrides)
    assert replicas(chosen, preset(name), 4) == groups


def test_gradients_take_the_place_of_activations_but_not_of_those_of_the_next_micro_batch(h100):
    whole, parts = (estimate_memory(recipe(*ROWS, *more), NANO, 1) for more in ((), ("train.micro_batch_size=2",)))
    assert whole.reused == -min(whole.gradients, whole.activations + whole.logits) < 0
    assert parts.reused == 0


@pytest.mark.parametrize(
    ("name", "weights", "rows", "overrides", "measured"),
    [
        ("S", "bf16", 32, (), 61.75),
        ("S", "bf16", 40, (), 73.24),
        ("S", "fp32", 32, (), 72.94),
        ("S", "fp32", 16, (), 48.67),
        ("M", "bf16", 16, (), 63.62),
        ("M", "fp32", 8, (), 61.66),
        ("L", "bf16", 8, (), 64.85),
        ("L", "bf16", 8, ("train.activation_checkpointing=true",), 40.77),
    ],
)
def test_the_peaks_of_an_h200_in_gib_are_met(name, weights, rows, overrides, measured, h100):
    chosen = recipe(*ROWS, f"train.batch_size={rows}", f"train.weights={weights}", *overrides)
    assert estimate_memory(chosen, preset(name), 1).total / 2**30 == pytest.approx(measured, rel=0.08)


def test_cpus_share_a_model(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert replicas(recipe(), NANO, 4) == 1


def test_muon_keeps_one_moment_of_matrices_and_lora_trains_little():
    adamw, muon = (estimate_memory(recipe(f"train.optimizer={name}"), NANO, 1) for name in ("adamw", "muon"))
    matrices = sum(part.parameters for part in accounting.parts(NANO) if part.storage == "matrix")
    assert adamw.moments - muon.moments == 4 * matrices
    everything = estimate_memory(recipe("lora.rank=4"), NANO, 1)
    attention = estimate_memory(recipe("lora.rank=4", "lora.targets=['attention']"), NANO, 1)
    widths = 2 * NANO.num_attention_heads * NANO.head_dim + 2 * NANO.num_key_value_heads * NANO.head_dim
    adapters = NANO.num_hidden_layers * 4 * (widths + 4 * NANO.hidden_size)
    assert (attention.gradients, attention.moments) == (4 * adapters, 8 * adapters)
    assert attention.gradients < everything.gradients < adamw.gradients / 5
    assert everything.weights == adamw.weights


@pytest.mark.parametrize("expansion", [1, 8])
def test_activations_are_what_the_model_keeps_for_its_backward_pass(expansion, one_thread):
    config = family_member(128, expansion=expansion, layers=2, vocab_size=256)
    model = MobileMoE(config)
    model.initialize(0)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept(rows: int, length: int = 128) -> int:
        storages, alive = {}, []

        def pack(tensor):
            alive.append(tensor)  # or its memory would be another's soon
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        tokens_BT = torch.arange(rows * length).view(rows, length) % 256
        positions_BT = torch.arange(length).expand(rows, length)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            output = model.hidden(tokens_BT, positions_BT=positions_BT, segments_BT=torch.zeros_like(tokens_BT))
            alive.append(output)
        return sum(size for storage, size in storages.items() if storage not in own)

    measured = (kept(3) - kept(1)) / (2 * 128)
    assert activation_bytes(recipe(), config) == pytest.approx(measured, rel=0.25)


def test_activation_checkpointing_saves_memory_and_costs_speed(known_device):
    plain, light = recipe(), recipe("train.activation_checkpointing=true")
    assert activation_bytes(light, NANO) < activation_bytes(plain, NANO) / 3
    assert expected_speed(light, NANO, CPU, 1)[0] == pytest.approx(0.75 * expected_speed(plain, NANO, CPU, 1)[0])


# Speed, time and cost


def test_the_expected_speed_is_a_stated_share_of_the_measured_product(known_device):
    flops = accounting.training_flops_per_token(NANO, 512)
    speed, source = expected_speed(recipe(), NANO, CPU, 1)
    share = estimate_module.CPU_SHARE["bf16"]
    assert speed == pytest.approx(share * 1e12 / flops)
    assert source == f"expected from {share:.1%} of the 1.00 TFLOP/s of a bf16 matrix product"
    assert expected_speed(recipe(), NANO, CPU, 8)[0] == pytest.approx(8 * speed)
    wide = preset("S")
    assert "from 45.0% of" in expected_speed(recipe(), wide, GPU, 1)[1]
    assert "from 45.0% of" in expected_speed(recipe(), preset("L"), GPU, 1)[1]
    assert f"from {0.45 / 2:.1%} of" in expected_speed(recipe(), NANO, GPU, 1)[1]


def test_the_speed_of_a_matrix_product_is_a_cpus():
    assert 1e9 < estimate_module.matmul_flops(CPU, "fp32") < 1e14


def test_a_resumed_run_is_planned_by_its_own_speed(known_device, tmp_path):
    write_metrics(tmp_path / "run", [1.0] * 30 + [3.0, 1000.0, 3.0] * 20)
    estimate = estimate_run(recipe("train.steps=100"), NANO, tmp_path / "run", steps_done=90)
    assert (estimate.tokens_per_second, estimate.speed_source) == (3.0, "as in the run's last steps")
    assert estimate.seconds == pytest.approx(10 * 4096 / 3.0)
    assert estimate.tokens == 100 * 4096
    fresh = estimate_run(recipe("train.steps=100"), NANO, tmp_path / "run", steps_done=0)
    assert fresh.speed_source.startswith("expected")


def test_the_cost_is_the_price_of_all_devices_for_the_time_left(known_device, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "4")
    estimate = estimate_run(recipe("train.steps=1000"), NANO, tmp_path, steps_done=250, price=2.0)
    expected = 750 * 4096 / estimate.tokens_per_second
    assert estimate.seconds == pytest.approx(expected)
    assert estimate.cost == pytest.approx(4 * 2.0 * expected / 3600)
    assert estimate_run(recipe(), NANO, tmp_path).cost is None


def test_a_plan_reads_as_its_numbers(known_device, tmp_path):
    text = str(estimate_run(recipe("train.steps=1000"), NANO, tmp_path, steps_done=500, price=3600.0))
    assert f"nano-cpu: {P / 1e6:.1f} M parameters" in text
    assert "4.1 M tokens in 1,000 steps, 500 of them done" in text
    assert "estimated: " in text
    assert "tokens/s, expected from" in text
    assert ", cost " in text


def test_what_will_take_years_and_what_looks_like_a_mistake_is_said_with_what_to_change(monkeypatch, tmp_path):
    monkeypatch.setattr(estimate_module, "matmul_flops", lambda device, precision: 1e9)
    monkeypatch.setattr(estimate_module, "faster_precision", lambda kind: "fp32")
    text = str(estimate_run(recipe("train.warmup_steps=1000", "train.steps=10"), preset("S"), tmp_path))
    assert " 0 tokens/s" not in text
    assert "0.00 TFLOP/s" not in text
    assert "1.0 GFLOP/s of a bf16 matrix product" in text
    assert "train.warmup_steps is 1,000, but the run has only 10 steps" in text
    assert "multiplies much faster in fp32 than in bf16: set train.precision to fp32\n" in text + "\n"
    long = str(estimate_run(recipe("train.steps=1000000"), preset("S"), tmp_path))
    assert " years to finish" in long
    assert "use a GPU, a smaller model.preset" in long
    assert estimate_run(recipe("train.precision=fp32", "train.steps=500"), NANO, tmp_path).notes == ()


# The model


def test_the_architecture_is_the_presets_with_changes_or_that_of_init(tiny_folder, tmp_path):
    changed = architecture(ModelTable(preset="nano", changes={"num_hidden_layers": 2}))
    assert changed == dataclasses.replace(NANO, num_hidden_layers=2)
    assert architecture(ModelTable(init=str(tiny_folder))) == ModelConfig.load(tiny_folder)
    with pytest.raises(ConfigError, match=r"model\.changes\.widht is not a field"):
        architecture(ModelTable(preset="nano", changes={"widht": 2}))
    with pytest.raises(ModelNotFoundError):
        architecture(ModelTable(init=str(tmp_path / "none")))


# The verb


def test_the_verb_plans_and_stops(mobilemoe_cli, tiny_folder, tmp_path):
    run = tmp_path / "run"
    call = ["train", RECIPE, *recipe_options(tiny_folder), "--out", run, "--plan", "--price", "2"]
    shown = mobilemoe_cli(*call)
    assert (shown.status, shown.err) == (0, "")
    assert "memory on each of 1 x CPU" in shown.out
    values = mobilemoe_cli(*call, "--json").json
    assert values["memory"]["total"] == sum(values["memory"][name] for name in values["memory"] if name != "total")
    assert values["cost"] == pytest.approx(2 * values["seconds"] / 3600)
    assert not run.exists()
