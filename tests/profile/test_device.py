"""Device profiles: the paper's phones, what a model takes on them, fits, and the measurement of this machine."""

import dataclasses
import itertools

import numpy as np
import pytest

from mobilemoe import accounting
from mobilemoe.engine import cache_folder
from mobilemoe.errors import ConfigError, MobileMoEError, UsageError
from mobilemoe.presets import family_member, preset
from mobilemoe.profile import measure_device as measuring
from mobilemoe.profile.device import CONSTANTS, device, saved_path
from mobilemoe.profile.fit_device import Timing, fit_device
from mobilemoe.profile.measure_device import STANDARD, Trial, measure_device
from mobilemoe.profile.speed import DECODED
from mobilemoe.scaling.plan.space import Space, config_of
from refusals import refusal
from scaling_runs import EASY

# spec section 7, read from it again: (phone, tokens, model): seconds to the first token, tokens/s decoded.
PAPER = {
    ("galaxy-s25", 1024, "mobilellm-pro"): (4.26, 45.8),
    ("galaxy-s25", 1024, "S"): (2.01, 112),
    ("galaxy-s25", 4096, "mobilellm-pro"): (35.62, 18.6),
    ("galaxy-s25", 4096, "S"): (16.36, 48.9),
    ("iphone-16-pro", 1024, "mobilellm-pro"): (6.03, 48.5),
    ("iphone-16-pro", 1024, "S"): (2.14, 148.4),
    ("iphone-16-pro", 4096, "mobilellm-pro"): (39.08, 17.9),
    ("iphone-16-pro", 4096, "S"): (13.86, 54.2),
}
CLAIMED = {"galaxy-s25": 0.05, "iphone-16-pro": 0.09}  # in their files, of every row
CLAIMED_UNSEEN = {"galaxy-s25": 0.09, "iphone-16-pro": 0.18}  # S at 4k, not fitted
TINY = Trial(
    fitted={
        "dense": family_member(64, expansion=1, layers=2, vocab_size=1024),
        "moe": family_member(64, expansion=2, granularity=4, layers=2, vocab_size=1024),
    },
    checked={"check": family_member(32, expansion=2, granularity=4, layers=2, vocab_size=1024)},
    lengths=(16, 64),
    repeats=2,
)


def timing(model, kind, tokens, seconds, shape=None):
    return Timing(model=model, shape=shape or preset(model), kind=kind, tokens=tokens, seconds=seconds)


def paper_timings(phone):
    rows = [(key, value) for key, value in PAPER.items() if key[0] == phone]
    prefill = [timing(model, "prefill", tokens, seconds) for (_, tokens, model), (seconds, _) in rows]
    return prefill + [timing(model, "decode", tokens, 1 / speed) for (_, tokens, model), (_, speed) in rows]


def exact_timings(of=EASY, spread=0.0, models=("mobilellm-pro", "S")):
    """What `of` would take, each a little wrong by turns."""
    signs = itertools.cycle([1, -1, -1, 1, 1])
    rows = [timing(model, kind, n, 1.0) for model in models for kind in ("decode", "prefill") for n in (1, 512, 4096)]
    return [dataclasses.replace(row, seconds=row.predicted(of) * (1 + spread * next(signs))) for row in rows]


def refit(timings):
    return fit_device(timings, name="again", threads=2, source="a test")


# The paper's phones


@pytest.mark.parametrize("row", PAPER, ids=str)
def test_every_row_of_the_paper_is_met_within_15_percent_and_as_the_profile_claims(row):
    phone, tokens, model = row
    first_token_s, decoded_per_s = PAPER[row]
    here, shape = device(phone), preset(model)
    for error in (
        here.prefill_seconds(shape, tokens) / first_token_s - 1,
        here.decode_seconds(shape, tokens) * decoded_per_s - 1,
    ):
        assert abs(error) < CLAIMED[phone] < 0.15


@pytest.mark.parametrize("phone", CLAIMED)
def test_shipped_constants_are_the_fit_to_all_rows(phone):
    fitted, shipped = refit(paper_timings(phone)), device(phone)
    for constant in CONSTANTS:
        assert getattr(shipped, constant) == pytest.approx(getattr(fitted, constant), rel=5e-3), constant


@pytest.mark.parametrize("phone", CLAIMED)
def test_s_at_4k_is_predicted_from_the_other_rows_as_the_profile_claims(phone):
    rows = paper_timings(phone)
    unseen = [row for row in rows if (row.model, row.tokens) == ("S", 4096)]
    fitted = refit([row for row in rows if row not in unseen])
    assert len(unseen) == 2
    assert max(abs(row.error(fitted)) for row in unseen) < CLAIMED_UNSEEN[phone]


@pytest.mark.parametrize("phone", CLAIMED)
def test_the_error_of_a_shipped_profile_is_that_of_its_worst_row_left_out(phone):
    rows = paper_timings(phone)
    errors = [row.error(refit([other for other in rows if other is not row])) for row in rows]
    assert device(phone).error == pytest.approx(max(map(abs, errors)), abs=5e-4)


def test_the_process_s_memory_on_the_s25_is_met_within_8_percent_and_is_not_known_of_the_iphone():
    measured = {("S", 4096): 1.23, ("S", 8192): 1.49, ("L", 8192): 4.71}  # GB, spec section 7
    measured |= {("mobilellm-pro", 4096): 1.35, ("mobilellm-pro", 8192): 1.91}
    for (model, context), gigabytes in measured.items():
        shape = preset(model)
        weights, kv = accounting.int4_file_bytes(shape), accounting.kv_bytes(shape, context)
        assert device("galaxy-s25").process_bytes(weights, kv) / 1e9 == pytest.approx(gigabytes, rel=0.08)
        assert device("iphone-16-pro").process_bytes(weights, kv) == weights + kv


def test_what_a_profile_does_not_know_is_left_out_of_its_file_and_comes_back(tmp_path):
    known = dataclasses.replace(EASY, error=0.1, process_weights=1.2, process_kv=9.0)
    for name, kept in (("unknown", EASY), ("known", known)):
        kept.save(tmp_path / f"{name}.toml")
        assert device(tmp_path / f"{name}.toml") == kept
    assert "error" not in (tmp_path / "unknown.toml").read_text()


def test_the_paper_s_threads():
    assert (device("galaxy-s25").threads, device("iphone-16-pro").threads) == (4, 2)


# What a model takes


def test_a_dense_token_takes_its_bytes_and_its_attention():
    shape = family_member(256, expansion=1)
    attention = 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * 1000
    expected = accounting.decode_bytes(shape) / 20e9 + attention / 30e9
    assert EASY.decode_seconds(shape, 1000) == pytest.approx(expected)


def test_a_dense_prompt_takes_its_flops_each_at_its_rate():
    shape = family_member(256, expansion=1)
    attention = 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * (1000 * 1001 // 2)
    linear = accounting.prefill_flops(shape, 1000) - attention
    assert EASY.prefill_seconds(shape, 1000) == pytest.approx(linear / 400e9 + attention / 50e9)


def test_routed_experts_alone_pay_the_routed_cost():
    shape = preset("S")
    free = dataclasses.replace(EASY, routed_cost=1.0)
    weights = 20 * 4 * 3 * 768 * 384  # layers, experts of a token, matrices of one
    assert EASY.decode_seconds(shape, 9) - free.decode_seconds(shape, 9) == pytest.approx(
        0.5 * weights * 4.5 / 8 / 20e9
    )
    assert EASY.prefill_seconds(shape, 100) - free.prefill_seconds(shape, 100) == pytest.approx(
        0.5 * 100 * 2 * weights / 400e9
    )


def test_arrays_of_shapes_and_of_contexts_give_arrays():
    space = Space(experts=(1, 8), granularities=(2, 8), widths=(512, 768), ratios=(40,), head_dims=(64,))
    count = 0
    for shapes in space.shapes():
        decode, prefill = EASY.decode_seconds(shapes, 1024), EASY.prefill_seconds(shapes, 1024)
        assert decode.shape == prefill.shape == (len(shapes),)
        for index in range(len(shapes)):
            config = config_of(shapes, index, 1024)
            assert decode[index] == pytest.approx(EASY.decode_seconds(config, 1024), rel=1e-12)
            assert prefill[index] == pytest.approx(EASY.prefill_seconds(config, 1024), rel=1e-12)
            count += 1
    assert count > 10
    contexts = np.array([1, 1024, 4096])
    alone = [EASY.decode_seconds(preset("S"), int(context)) for context in contexts]
    assert EASY.decode_seconds(preset("S"), contexts) == pytest.approx(alone)
    alone = [EASY.prefill_seconds(preset("S"), int(tokens)) for tokens in contexts]
    assert EASY.prefill_seconds(preset("S"), contexts) == pytest.approx(alone)


# Fits


def test_a_fit_finds_the_constants_of_exact_timings():
    found = refit(exact_timings())
    for constant in CONSTANTS:
        assert getattr(found, constant) == pytest.approx(getattr(EASY, constant), rel=1e-6)


def test_a_fit_to_disturbed_timings_predicts_about_as_well_as_they_are():
    found = refit(exact_timings(spread=0.05))
    assert max(abs(row.error(found)) for row in exact_timings(models=("M", "olmoe-1b-7b"))) < 0.1


def test_timings_that_scatter_are_refused_and_not_kept_as_a_rate_without_end():
    said = refusal(lambda: refit([dataclasses.replace(row, seconds=0.01) for row in exact_timings()]), MobileMoEError)
    assert "measure again while nothing else runs" in said


@pytest.mark.parametrize(
    "keep",
    [
        lambda row: False,
        lambda row: row.kind == "decode",
        lambda row: row.kind == "prefill",
        lambda row: row.model != "S",
        lambda row: row.tokens == 1 and row.model == "S",
    ],
)
def test_timings_that_leave_a_constant_open_are_refused(keep):
    assert "at least five timings" in refusal(lambda: refit([row for row in exact_timings() if keep(row)]))


# Files and names


def test_a_device_comes_back_from_its_file_as_it_was(tmp_path):
    made = dataclasses.replace(EASY, source='a "quoted" path C:\\x, ümlaut', routed_cost=1 / 3)
    path = tmp_path / "made.toml"
    made.save(path)
    assert device(path) == device(str(path)) == made
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Windows' editor saves it
    assert device(path) == made


def test_a_value_that_cannot_be_is_refused_with_its_file(tmp_path):
    path = tmp_path / "made.toml"
    EASY.save(path)
    path.write_text(path.read_text().replace("routed_cost = ", "routed_cost = -"))
    said = refusal(lambda: device(path), ConfigError)
    assert str(path) in said
    assert "routed_cost is -" in said


def test_a_saved_device_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "mine" not in refusal(lambda: device("nowhere"))
    EASY.save(saved_path("mine"))
    assert device("mine") == EASY
    assert saved_path("mine").is_relative_to(cache_folder().parent)


def test_an_unknown_name_is_told_which_there_are(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    EASY.save(saved_path("mine"))
    said = refusal(lambda: device("galaxy"))
    assert "there is no device 'galaxy'" in said
    assert "galaxy-s25, iphone-16-pro, mine" in said
    assert "mobilemoe profile device" in said


def test_without_a_home_the_shipped_ones_are_there(monkeypatch):
    def no_home(kind):
        raise OSError("no home")

    monkeypatch.setattr("mobilemoe.profile.device.usable_cache", no_home)
    assert device("galaxy-s25").name == "galaxy-s25"
    assert "galaxy-s25" in refusal(lambda: device("mine"))


@pytest.mark.parametrize("name", ["", "../mine", "a b", ".hidden"])
def test_a_name_that_would_be_no_file_is_refused(name):
    assert "but must be of letters" in refusal(lambda: saved_path(name), ConfigError)


def test_a_shipped_name_is_not_taken():
    assert "choose another name" in refusal(lambda: saved_path("galaxy-s25"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight_bandwidth": 0}, "weight_bandwidth is 0, but must be a positive"),
        ({"attention_rate": -1.0}, "attention_rate is -1.0"),
        ({"prefill_linear_rate": float("inf")}, "prefill_linear_rate is inf"),
        ({"prefill_attention_rate": float("nan")}, "prefill_attention_rate is nan"),
        ({"routed_cost": "2"}, "routed_cost is '2'"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 2.5}, "threads is 2.5"),
        ({"threads": True}, "threads is True"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"source": 1}, "source is 1"),
        ({"error": 1.0}, "error is 1.0, but must be a number from 0 to below 1"),
        ({"process_weights": -1.0, "process_kv": 1.0}, "process_weights is -1.0"),
        ({"process_kv": 1.0}, "process_weights and process_kv must be given together"),
    ],
)
def test_values_that_cannot_be_are_refused(change, sentence):
    assert sentence in refusal(lambda: dataclasses.replace(EASY, **change), ConfigError)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name = ", "is not valid TOML"),
        ("\udcff", "is not UTF-8 text at byte 0"),
        ('name = "x"', "it lacks attention_rate, prefill_attention_rate"),
        (None, "has the unknown speed"),
    ],
)
def test_a_file_without_a_device_is_refused(tmp_path, text, sentence):
    path = tmp_path / "bad.toml"
    EASY.save(path)
    kept = path.read_text()
    path.write_bytes((f"{kept}speed = 1\n" if text is None else text).encode(errors="surrogateescape"))
    said = refusal(lambda: device(path), ConfigError)
    assert sentence in said
    assert str(path) in said


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "does not exist" in refusal(lambda: device(tmp_path / "none.toml"), ConfigError)


# This machine


def test_every_point_of_the_trial_is_measured_and_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = []

    def remember(timings, **known):
        seen.extend(timings)
        return dataclasses.replace(EASY, **known)

    monkeypatch.setattr(measuring, "fit_device", remember)
    told = []
    before = sorted(cache_folder().glob("*"))
    measured = measure_device("here", TINY, threads=1, on_step=told.append)
    assert (measured.device.name, measured.device.threads) == ("here", 1)
    assert measured.fitted == seen
    assert {row.model for row in measured.fitted} == {"dense", "moe"}
    assert {row.model for row in measured.checked} == {"check"}
    for model in ("dense", "moe", "check"):
        points = [(row.kind, row.tokens) for row in seen + measured.checked if row.model == model]
        assert sorted(points) == sorted(
            [("prefill", 16), ("prefill", 64)] + [("decode", depth + DECODED // 2) for depth in (0, 16, 64)]
        )
    assert all(1e-7 < row.seconds < 10 for row in seen + measured.checked)
    assert len(told) == TINY.steps
    assert list(tmp_path.iterdir()) == []
    assert sorted(cache_folder().glob("*")) == before


def test_the_fastest_of_the_repeats_counts_and_the_fit_sees_no_timing_of_the_check(monkeypatch):
    def pretend(subjects, lengths, depths, repeats, on_point):
        for subject in subjects:
            slower = 1.0 if subject.name != "check" else 1.2
            for n in lengths:
                seconds = slower * EASY.prefill_seconds(subject.engine.config, n) / n
                subject.prefill[n] = [3 * seconds, seconds]
            for n in depths:
                seconds = slower * EASY.decode_seconds(subject.engine.config, n + DECODED // 2)
                subject.decode[n] = [seconds, 5 * seconds]

    monkeypatch.setattr(measuring, "measure", pretend)
    measured = measure_device("here", TINY, threads=1)
    for constant in CONSTANTS:
        assert getattr(measured.device, constant) == pytest.approx(getattr(EASY, constant), rel=1e-5)
    assert measured.worst_error == measured.device.error == pytest.approx(1 - 1 / 1.2)


def test_threads_that_cannot_be_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert "threads is 0" in refusal(lambda: measure_device("here", TINY, threads=0), UsageError)
    assert list(tmp_path.iterdir()) == []


def test_the_standard_shapes_are_larger_than_a_cache_and_the_check_is_another_shape():
    shapes = [*STANDARD.fitted.values(), *STANDARD.checked.values()]
    assert all(accounting.decode_bytes(shape) > 64e6 for shape in shapes)
    assert sum(map(accounting.int4_file_bytes, shapes)) < 1e9
    assert not set(STANDARD.fitted) & set(STANDARD.checked)
