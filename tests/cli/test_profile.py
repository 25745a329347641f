"""`mobilemoe profile device`: measures this machine, keeps it under a name, says how far it can be trusted."""

import dataclasses

import pytest

from mobilemoe.presets import family_member
from mobilemoe.profile import measure_device as measuring
from mobilemoe.profile.device import CONSTANTS, device
from mobilemoe.profile.measure_device import Trial
from mobilemoe.profile.speed import DECODED
from scaling_runs import EASY

QUICK = Trial(
    fitted={
        "dense": family_member(64, expansion=1, layers=2, vocab_size=1024),
        "moe": family_member(64, expansion=2, granularity=4, layers=2, vocab_size=1024),
    },
    checked={"check": family_member(32, expansion=2, granularity=4, layers=2, vocab_size=1024)},
    lengths=(16, 64),
    repeats=1,
)
HERE = dataclasses.replace(EASY, name="here", threads=1)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Real models, small ones, on which everything takes as long as on HERE; the user's cache, empty."""

    def pretend(subjects, lengths, depths, repeats, on_point):
        for subject in subjects:
            config = subject.engine.config
            subject.prefill.update({n: [HERE.prefill_seconds(config, n) / n] for n in lengths})
            subject.decode.update({n: [HERE.decode_seconds(config, n + DECODED // 2)] for n in depths})
        on_point("a point")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "STANDARD", QUICK)
    monkeypatch.setattr(measuring, "measure", pretend)
    return tmp_path


def test_a_measured_machine_is_kept_under_its_name(mobilemoe_cli, quick):
    ended = mobilemoe_cli("profile", "device", "--name", "mine", "--threads", "1", "--json")
    assert ended.status == 0, ended.err
    values = ended.json
    kept = device("mine")
    assert kept.threads == values["threads"] == 1
    assert {constant: values[constant] for constant in CONSTANTS} == {
        constant: getattr(kept, constant) for constant in CONSTANTS
    }
    assert kept.weight_bandwidth == pytest.approx(HERE.weight_bandwidth, rel=1e-5)
    assert values["worst_error"] == pytest.approx(0, abs=1e-5)
    assert {row["model"]: row["fitted"] for row in values["timings"]} == {"dense": True, "moe": True, "check": False}
    assert "dense: writing random weights" in ended.err
    assert "measure again" not in ended.err


def test_the_table_says_the_constants_and_how_well_they_predict(mobilemoe_cli, quick):
    ended = mobilemoe_cli("profile", "device", "--threads", "1")
    assert ended.status == 0, ended.err
    assert "weight_bandwidth           20.00 GB/s" in ended.out
    assert "routed_cost                 1.50" in ended.out
    assert "not fitted" in ended.out
    assert "a shape that was not fitted is predicted within 0.0%" in ended.out
    assert device("this-machine").threads == 1


def test_a_prediction_that_fails_is_told(mobilemoe_cli, quick, monkeypatch):
    monkeypatch.setattr(measuring.Measured, "worst_error", 0.59)
    ended = mobilemoe_cli("profile", "device", "--threads", "1", "--json")
    assert ended.status == 0
    assert "predicted 59% wrong: measure again while nothing else runs" in ended.err


def test_out_writes_a_file_and_keeps_nothing(mobilemoe_cli, quick):
    out = quick / "folder" / "box.toml"
    assert mobilemoe_cli("profile", "device", "--threads", "1", "--name", "box", "--out", out).status == 0
    assert device(out).name == "box"
    assert [path for path in (quick / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("status", "arguments", "sentence"),
    [
        (2, ("--name", "galaxy-s25"), "choose another name"),
        (1, ("--name", "a/b"), "must be of letters"),
        (2, ("--out", "box.json"), "ends in .toml"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_measured(fails, quick, status, arguments, sentence):
    assert sentence in fails(status, "profile", "device", *arguments)
    assert [path for path in (quick / "cache").rglob("*") if path.is_file()] == []


def test_threads_that_cannot_be_are_refused(mobilemoe_cli, quick):
    ended = mobilemoe_cli("profile", "device", "--threads", "0")
    assert ended.status == 2
    assert ended.err.splitlines()[-1].startswith("mobilemoe: --threads is 0")


def test_an_interrupt_leaves_nothing_behind(mobilemoe_cli, quick, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    (quick / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(quick / "scratch"))
    monkeypatch.setattr(measuring, "measure", interrupt)
    ended = mobilemoe_cli("profile", "device", "--threads", "1")
    assert ended.status == 130
    assert list((quick / "scratch").iterdir()) == []
    assert [path for path in (quick / "cache").rglob("*") if path.is_file()] == []


def test_help_has_an_example(mobilemoe_cli):
    assert "mobilemoe profile device --name mine" in mobilemoe_cli("profile", "device", "--help").out
