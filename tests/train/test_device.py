"""The faster precision is found, also where bf16 units are not used; a run keeps the one that it began with."""

import json
import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch

from mobilemoe.train import device as device_module
from mobilemoe.train.device import faster_precision, matmul_flops, set_threads, settle
from mobilemoe.train.loop import train
from mobilemoe.train.metrics import read_metrics
from train_runs import table

pytest_plugins = ["train_runs"]
CPU = torch.device("cpu")
X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.fixture
def faster(monkeypatch):
    """`faster("bf16")`: a device on which that is the faster precision."""
    return lambda name: monkeypatch.setattr(device_module, "faster_precision", lambda kind: name)


@pytest.mark.skipif(not X86, reason="the library can be restricted to AVX2 on x86-64 only")
def test_a_cpu_that_must_do_without_bf16_units_is_noticed_in_well_under_a_second():
    code = """if True:
        import time
        from mobilemoe.train.device import faster_precision
        began = time.process_time()
        print(faster_precision("cpu"), time.process_time() - began)
    """
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    precision, seconds = said.stdout.split()
    assert precision == "fp32"
    assert float(seconds) < 3  # 0.2 on an idle machine


def test_the_choice_is_the_faster_product_and_threads_stay_as_they_are(monkeypatch):
    threads = torch.get_num_threads()
    for slow, chosen in ((torch.bfloat16, "fp32"), (torch.float32, "bf16")):
        monkeypatch.setattr(device_module, "_seconds_of_product", lambda matrix, slow=slow: float(matrix.dtype == slow))
        monkeypatch.setattr(device_module, "_CHOICE_SECONDS", 0.0)
        faster_precision.cache_clear()
        assert faster_precision("cpu") == chosen
    faster_precision.cache_clear()
    assert faster_precision("cuda") == "bf16"
    assert torch.get_num_threads() == threads


def test_auto_is_settled_and_what_a_recipe_asks_for_is_not_touched(recipe, faster):
    auto = recipe("train.precision=auto")
    faster("fp32")
    assert settle(auto, CPU).train.precision == "fp32"
    assert settle(recipe("train.precision=bf16"), CPU).train.precision == "bf16"
    assert settle(recipe("train.precision=auto", "train.weights=bf16"), CPU).train.precision == "bf16"
    faster("bf16")
    assert settle(auto, CPU).train.precision == "bf16"
    assert settle(auto, CPU).model_copy(update={"train": auto.train}) == auto


@pytest.mark.usefixtures("quick")
def test_a_run_goes_on_in_the_precision_in_which_it_began(recipe, faster, stop_in, tmp_path):
    auto, run = recipe("train.precision=auto", "train.steps=4"), tmp_path / "run"
    stop_in(2)
    faster("fp32")
    assert not train(auto, run).finished
    assert json.loads((run / "recipe.json").read_text())["train"]["precision"] == "fp32"
    faster("bf16")
    assert train(auto, run).finished
    assert json.loads((run / "recipe.json").read_text())["train"]["precision"] == "fp32"
    train(recipe("train.precision=fp32", "train.steps=4"), tmp_path / "asked")
    losses = [[row["loss"] for row in read_metrics(folder / "metrics.jsonl")] for folder in (run, tmp_path / "asked")]
    assert losses[0] == losses[1]
    shutil.rmtree(run / "checkpoints")  # nothing to go on from
    assert settle(auto, CPU, run).train.precision == "bf16"


def test_the_speed_of_a_product_is_a_cpus_in_either_precision():
    for precision in ("fp32", "bf16"):
        assert 1e8 < matmul_flops(CPU, precision) < 1e14


def test_threads_are_those_asked_for_or_the_cores_that_one_may_use(monkeypatch, one_thread):
    assert set_threads(table(threads=2)) == 2
    torch.set_num_threads(4)
    monkeypatch.setattr(device_module, "allowed_cores", lambda: 3)
    assert set_threads(table()) == 3
    torch.set_num_threads(1)  # as OMP_NUM_THREADS=1
    assert set_threads(table()) == 1


def test_more_threads_than_cores_are_not_expected_to_be_faster(monkeypatch):
    monkeypatch.setattr(device_module, "_matmul_flops", lambda width, device, precision: 1e9)
    monkeypatch.setattr(device_module, "allowed_cores", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    for threads, speed in ((1, 1e9), (4, 4e9), (64, 4e9)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert matmul_flops(CPU, "fp32") == speed
