"""`mobilemoe bench`: speeds, shares of the machine's limits, cold starts, random models and comparisons."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from drawn import colours, curve, labels
from memory_limits import named_limit
from mobilemoe import accounting
from mobilemoe.checkpoint import write_random
from mobilemoe.engine import Engine, cache_folder, instruction_sets
from mobilemoe.errors import MobileMoEError
from mobilemoe.load import load
from mobilemoe.presets import family_member, preset
from mobilemoe.profile import benchmark, machine, random_model, sampling_speed
from mobilemoe.profile.batch_speed import measure_batch
from mobilemoe.profile.cold import cold_start
from mobilemoe.profile.guesses import measure_guesses
from mobilemoe.profile.machine import Machine, measure_machine
from mobilemoe.profile.sampling_speed import MODES, measure_sampling
from mobilemoe.profile.speed import DECODED, Subject, measure
from mobilemoe.profile.tokens import TEXT, tokens_for

QUICK = ("--prefill", "16,64", "--depths", "0,16", "--repeats", "1")


@pytest.fixture
def fixed_machine(monkeypatch):
    """Limits that cost no time to measure."""
    limits = Machine(bytes_per_s=1e12, multiply_adds_per_s=1e13)
    monkeypatch.setattr(benchmark, "measure_machine", lambda threads: limits)
    return limits


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_folder().parent


def subject(folder, name="tiny"):
    engine = Engine(folder, threads=1)
    return Subject(name, engine, [1] * engine.context)


# What one line of JSON promises


def test_json_holds_every_promised_field(mobilemoe_cli, tiny_folder):
    ended = mobilemoe_cli(
        "bench", tiny_folder, "--prefill", "16,64,500", "--depths", "0,16", "--threads", "2", "--json"
    )
    assert ended.status == 0, ended.err
    values = ended.json
    assert [set(point) for point in values["prefill"]] == [{"tokens", "tok_s", "mfu"}] * 2
    assert [point["tokens"] for point in values["prefill"]] == [16, 64]  # 500 are more than the context
    assert [set(point) for point in values["decode"]] == [{"depth", "tok_s", "mbu"}] * 2
    assert [point["depth"] for point in values["decode"]] == [0, 16]
    assert all(point["tok_s"] > 0 for point in values["prefill"] + values["decode"])
    # How much it is, the other work of the machine decides too, while its limits are measured and afterwards.
    assert all(point["mfu"] > 0 for point in values["prefill"])
    assert all(point["mbu"] > 0 for point in values["decode"])
    assert 0 < values["ttft_load_s"] < values["ttft_cold_s"] < 60
    assert 2**20 < values["peak_rss_bytes"] < 2**30  # of the other process: this one has held the buffer of 1 GiB
    assert values["threads"] == 2
    assert values["isa"] in instruction_sets()
    assert values["input"] == "real text"
    assert values["guesses"] is None  # its context is too short for them


def test_guesses_are_measured_against_plain_decoding():
    model = load("nano", threads=1)
    found = measure_guesses(model, 2, dummy=False)
    assert set(found.values()) == {"tok_s", "plain_tok_s", "passes", "proposed", "accepted"}
    assert found.speed > 0
    assert found.plain_speed > 0
    assert model.engine.speculate == "auto"
    assert measure_guesses(model, 1, dummy=True) is None
    assert measure_guesses(load("nano", threads=1, speculate="off"), 1, dummy=False) is None


def test_the_table_says_what_was_left_out_and_what_the_times_are(mobilemoe_cli, fixed_machine, tiny_folder):
    out = mobilemoe_cli("bench", tiny_folder, "--prefill", "16,500", "--repeats", "1").out
    assert "left out: prefill at 500, which the context of 256 has no room for" in out
    assert "left out: decode at 500" in out
    assert "from before `import mobilemoe`" in out
    assert "from load(), in a new process" in out
    assert "1000.0 GB/s, int8 peak 10,000 G multiply-adds/s" in out


def test_sample_gives_the_time_of_each_kind_of_sampling(mobilemoe_cli, fixed_machine, tiny_folder):
    assert "sampling" not in mobilemoe_cli("bench", tiny_folder, *QUICK, "--json").json
    found = mobilemoe_cli("bench", tiny_folder, *QUICK, "--sample", "--json").json["sampling"]
    assert [point["mode"] for point in found] == [*MODES]
    assert [set(point) for point in found] == [{"mode", "microseconds"}] * len(MODES)
    assert all(0 < point["microseconds"] < 1e6 for point in found)
    out = mobilemoe_cli("bench", tiny_folder, *QUICK, "--sample").out
    assert "more than greedy" in out
    assert all(mode in out for mode in MODES)


def test_sampling_is_measured_in_a_small_context_too(tiny_folder):
    small = Engine(tiny_folder, threads=1, context=sampling_speed.STEPS + 1)
    assert [*measure_sampling(small, [1] * small.context, 1)] == [*MODES]


def test_sequences_gives_the_speed_of_so_many_texts_at_once(mobilemoe_cli, fixed_machine, tiny_folder):
    assert "batch" not in mobilemoe_cli("bench", tiny_folder, *QUICK, "--json").json
    found = mobilemoe_cli("bench", tiny_folder, *QUICK, "--sequences", "4,1,3", "--json").json["batch"]
    assert [point["sequences"] for point in found] == [1, 3, 4]
    assert [set(point) for point in found] == [{"sequences", "tok_s"}] * 3
    assert all(point["tok_s"] > 0 for point in found)
    assert "texts at once" in mobilemoe_cli("bench", tiny_folder, *QUICK, "--sequences", "1,2").out


@pytest.mark.parametrize("context", [2, DECODED, 256])
def test_a_batch_decodes_all_texts_together_and_each_alone(tiny_folder, monkeypatch, context):
    engine = Engine(tiny_folder, threads=1, context=context)
    passes, forward = [], engine.forward
    monkeypatch.setattr(engine, "forward", lambda requests: passes.append(len(requests)) or forward(requests))
    prompts = 3  # Session.append is such a pass too
    assert [*measure_batch(engine, [*range(50)], (1, 3), 2)] == [1, 3]
    decoded = (len(passes) - prompts) // (2 * 4)
    assert decoded == min(DECODED, context - 1)
    assert passes[prompts:] == 2 * (3 * decoded * [1] + decoded * [3])


def test_tokens_without_a_pattern_are_called_so(mobilemoe_cli, fixed_machine, tiny_folder):
    assert mobilemoe_cli("bench", tiny_folder, *QUICK, "--dummy", "--json").json["input"].startswith("pseudo-random")
    values = mobilemoe_cli("bench", "micro", "--random", *QUICK, "--json").json
    assert values["input"] == "pseudo-random tokens (the model has no tokenizer)"


def test_real_text_is_repeated_where_it_is_too_short(tiny_folder):
    model = load(tiny_folder)
    whole = model.encode(TEXT.read_text())
    assert len(whole) > 8192
    tokens = tokens_for(model, len(whole) + 5, dummy=False)
    assert tokens.ids == whole + whole[:5]


def test_with_a_limit_of_memory_it_says_how_often_experts_were_there(tmp_path):
    """In a process of its own, whose memory does not depend on other tests."""
    config = family_member(512, expansion=20, layers=8, vocab_size=96)
    write_random(tmp_path / "wide", config, seed=1, format="int4")
    limited = ("bench", str(tmp_path / "wide"), *QUICK, "--threads", "1", "--speculate", "off")

    def bench(limit: int | str, *options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mobilemoe", *limited, *options, "--max-memory", str(limit)]
        return subprocess.run(command, capture_output=True, text=True)

    least = named_limit(bench("1KB").stderr)
    found = json.loads(bench(least, "--json").stdout)
    assert found["bytes_per_s"] is found["prefill"][0]["mfu"] is found["decode"][0]["mbu"] is None
    every = config.num_hidden_layers * config.num_local_experts
    assert found["experts"]["in_memory"] < found["experts"]["all"] == every
    assert 0 < found["experts"]["hit_rate"] < 1
    assert found["experts"]["bytes_read_per_token"] > 0
    assert found["peak_rss_bytes"] <= least
    assert found["ttft_cold_s"] is found["ttft_load_s"] is None  # a second process would need as much memory again
    out = bench("9GB").stdout
    assert f"experts in memory  {every:,} of {every:,}: 100.0% of those that decoding visits" in out
    assert "read bandwidth" not in out
    assert "first token" not in out


# Shares of the limits


def test_a_decoded_token_of_s_reads_153_megabytes_of_weights():
    config = preset("S")
    router = 4 * config.num_hidden_layers * config.num_local_experts * config.hidden_size
    assert accounting.decode_bytes(config) - router == pytest.approx(153e6, rel=0.005)  # spec section 7
    assert accounting.decode_bytes(config, 1000, 8) - accounting.decode_bytes(config) == accounting.kv_bytes(
        config, 1000
    )


def test_an_input_embedding_of_its_own_is_not_read_whole():
    config = preset("olmoe-1b-7b")
    every = sum(part.int4_bytes * part.active // part.count for part in accounting.parts(config))
    embedding = config.vocab_size * config.hidden_size * 9 // 16
    assert accounting.decode_bytes(config) == every - embedding


def test_shares_are_work_over_time_and_limit(tiny_folder):
    measured, limits = subject(tiny_folder), Machine(1e9, 1e9)
    measured.prefill[64] = [0.1, 0.001, 5.0]  # seconds per token, of which the median counts
    measured.decode[16] = [0.02, 0.01, 0.01]
    config = measured.engine.config
    assert measured.prefill_speed(64) == 10
    assert measured.mfu(64, limits) == pytest.approx(accounting.prefill_flops(config, 64) / 2 / 6.4 / 1e9)
    assert measured.mbu(16, limits) == pytest.approx(accounting.decode_bytes(config, 16 + DECODED // 2) / 0.01 / 1e9)
    assert measured.mfu(64, Machine(1e9, None)) is None
    exact = Subject("exact", Engine(tiny_folder, activations="fp32"), [1], measured.prefill, measured.decode)
    assert exact.mfu(64, limits) is None  # it multiplies no integers
    assert exact.mbu(16, limits) > measured.mbu(16, limits)  # its keys and values are wider


def test_the_machine_s_limits_are_plausible():
    limits = measure_machine(1)
    assert 1e8 < limits.bytes_per_s < 1e13
    assert limits.multiply_adds_per_s is None or 1e9 < limits.multiply_adds_per_s < 1e14


def test_of_two_measurements_the_higher_limits_count():
    assert Machine(1, 5).better(Machine(2, 4)) == Machine(2, 5)
    assert Machine(3, None).better(Machine(2, None)) == Machine(3, None)


def test_a_peak_that_is_not_known_is_none(monkeypatch):
    monkeypatch.setattr(machine, "native", SimpleNamespace(machine_speed=lambda threads: (1e9, 0.0)))
    assert measure_machine(2) == Machine(1e9, None)


# Taking turns


def test_models_take_turns_at_every_point(tiny_folder):
    told = []
    subjects = [subject(tiny_folder, "a"), subject(tiny_folder, "b")]
    measure(subjects, [8], [0], 2, told.append)
    assert told == [f"{name}: {n} tokens" for n in (0, 8) for name in "ab"] * 2
    assert [len(s.prefill[8]) for s in subjects] == [2, 2]
    assert [list(s.decode) for s in subjects] == [[0], [0]]


def test_a_prompt_that_just_fits_is_measured_without_decoding_behind_it(tiny_folder):
    full = subject(tiny_folder)
    measure([full], [256, 257], [256 - DECODED, 256], 1)
    assert list(full.prefill) == [256]
    assert list(full.decode) == [256 - DECODED]


# Cold starts


def test_a_process_that_fails_is_one_sentence(tmp_path):
    with pytest.raises(MobileMoEError, match=r"cold start failed: .*no folder"):
        cold_start(str(tmp_path / "none"), {}, [1, 2], is_text=False)


# Random models


def test_a_random_model_is_written_once(mobilemoe_cli, fixed_machine, empty_cache):
    first = mobilemoe_cli("bench", "micro", "--random", *QUICK, "--json")
    assert "writing a random micro" in first.err
    [folder] = (empty_cache / "random").iterdir()
    written = (folder / "model.safetensors").stat()
    second = mobilemoe_cli("bench", "micro", "--random", *QUICK, "--json")
    assert "writing" not in second.err
    assert (folder / "model.safetensors").stat() == written


def test_the_group_axis_of_random_experts_is_as_asked_for(empty_cache):
    axes = ("out", "in")
    models = [load(random_model.random_model("micro", axis, lambda sentence: None)) for axis in axes]
    assert tuple(model.config.expert_group_axis for model in models) == axes


def test_an_interrupt_leaves_no_half_of_a_random_model(empty_cache, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mobilemoe.checkpoint.synthetic._random_nibbles", interrupt)
    with pytest.raises(KeyboardInterrupt):
        random_model.random_model("micro", "out", lambda sentence: None)
    assert list((empty_cache / "random").iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(fails, empty_cache, monkeypatch):
    monkeypatch.setattr(random_model.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert "need 7.8 GB" in fails(1, "bench", "olmoe", "--random")
    assert list((empty_cache / "random").iterdir()) == []


# Comparisons


def test_a_comparison_gives_the_ratios_of_the_same_session(mobilemoe_cli, fixed_machine, tiny_folder):
    ended = mobilemoe_cli("bench", tiny_folder, *QUICK, "--compare", "micro", "--json")
    values = ended.json
    [baseline] = values["compared"]
    assert baseline["model"] == "micro"
    expected = [
        (kind, ours[key], ours["tok_s"] / theirs["tok_s"])
        for kind, key in (("prefill", "tokens"), ("decode", "depth"))
        for ours, theirs in zip(values[kind], baseline[kind], strict=True)
    ]
    assert [(r["kind"], r["tokens"], pytest.approx(r["ratio"])) for r in baseline["ratios"]] == expected
    out = mobilemoe_cli("bench", tiny_folder, *QUICK, "--compare", "micro").out
    assert f"how many times as fast {tiny_folder} is as micro" in out
    assert "paper" not in out  # it has not measured these


def test_the_paper_s_ratios_stand_beside_ours(tiny_folder):
    ours, theirs = subject(tiny_folder, "S"), subject(tiny_folder, "mobilellm-pro")
    for each, seconds in ((ours, 0.001), (theirs, 0.003)):
        each.prefill[512], each.prefill[1024], each.decode[4096] = [seconds], [seconds], [seconds]
    found = benchmark.ratios(*(benchmark.Result(each, None, None, 0, None, {}, {}) for each in (ours, theirs)))
    assert [(r.kind, r.tokens, round(r.ratio, 6)) for r in found] == [
        ("prefill", 512, 3),
        ("prefill", 1024, 3),
        ("decode", 4096, 3),
    ]
    assert found[0].paper == {}
    assert found[1].paper["Galaxy S25"] == pytest.approx(2.12, abs=0.01)
    assert found[2].paper["iPhone 16 Pro"] == pytest.approx(3.03, abs=0.01)


# Pictures and faults


def test_the_picture_shows_the_speeds_of_both_models_with_their_shares_of_the_limits(
    mobilemoe_cli, fixed_machine, tiny_folder, tmp_path, figures
):
    path = tmp_path / "speed.png"
    found = mobilemoe_cli("bench", tiny_folder, *QUICK, "--compare", "micro", "--png", path, "--json").json
    assert colours(path.read_bytes()) > 50
    (figure,) = figures
    prefill_axes, decode_axes = figure.axes
    for axes, kind, share in ((prefill_axes, "prefill", "mfu"), (decode_axes, "decode", "mbu")):
        both = {str(tiny_folder): found[kind], "micro": found["compared"][0][kind]}
        assert labels(axes) == [*both]
        for name, points in both.items():
            speeds = [speed for _, speed in curve(axes, name)]
            assert speeds == pytest.approx([point["tok_s"] for point in points])
        shares = [f"{point[share]:.0%}" for points in both.values() for point in points]
        assert [text.get_text() for text in axes.texts] == shares
        assert axes.get_ylabel() == "tokens per second"
        assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in prefill_axes.get_xticklabels()] == ["16", "64"]
    assert [text.get_text() for text in decode_axes.get_xticklabels()] == ["0", "16"]
    assert prefill_axes.get_title() == "prefill (% of 10,000 G multiply-adds/s)"
    assert decode_axes.get_title() == "decode (% of 1000.0 GB/s)"


def test_without_matplotlib_nothing_is_measured(fails, monkeypatch, tiny_folder, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(benchmark, "run", None)
    assert "mobilemoe[train]" in fails(1, "bench", tiny_folder, "--png", tmp_path / "speed.png")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("S",), "add --random"),
        (("x", "--random"), "no preset 'x'"),
        (("nano", "--compare", "micro,x"), "no preset 'x'"),
        (("nano", "--compare", ""), "--compare is empty"),
        (("nano", "--prefill", "1,x"), "--prefill is '1,x'"),
        (("nano", "--prefill", "0"), "--prefill is '0'"),
        (("nano", "--prefill", ""), "--prefill is empty"),
        (("nano", "--depths", "-1"), "--depths is '-1'"),
        (("nano", "--repeats", "0"), "--repeats is 0"),
        (("nano", "--sequences", "0,2"), "none of them may be below 1"),
        (("nano", "--sequences", "1,257"), "none of them may be above 256"),
        (("S", "--random", "--group-axis", "up"), "--group-axis is 'up'"),
        (("nano", "--threads", "0"), "threads is 0"),
        (("nano", "--max-memory", "1GB", "--compare", "micro"), "leave --compare out"),
        (("nano", "--kv", "int3"), "kv is 'int3'"),
    ],
)
def test_what_cannot_be_measured_is_refused(fails, empty_cache, arguments, sentence):
    assert sentence in fails(2, "bench", *arguments)
    assert not (empty_cache / "random").exists()


def test_a_model_that_is_nowhere_is_one_sentence(fails):
    assert "there is no folder nowhere" in fails(1, "bench", "nowhere")
