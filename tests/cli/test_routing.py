"""The options of routing, from the command line."""

import json

import pytest

from mobilemoe.load import load
from mobilemoe.routing import Routing


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": "Once upon a time there was a river. " * n}) + "\n" for n in (5, 9)))
    return path


def test_eval_measures_with_each_option(mobilemoe_cli, text):
    def bits(*options) -> float:
        return mobilemoe_cli("eval", "nano", "--text", text, *options, "--json").json["bits_per_byte"]

    plain = bits()
    unused = ("--cached-experts", 5, "--cache-prior", 0)
    assert bits("--capacity", 1) == bits(*unused) == bits("--experts-per-token", 4) == plain
    found = [
        bits("--capacity", 0.5),
        bits("--capacity", 0.5, "--skip", "random"),
        bits("--capacity", 0.5, "--skip", "token"),
        bits("--experts-per-token", 2),
        bits("--cached-experts", 5, "--cache-prior", 0.5),
        bits("--cached-experts", 5, "--cache-prior", 0.5, "--always-top", 1),
    ]
    assert len({plain, *found}) == 7


def test_run_takes_fewer_experts(mobilemoe_cli):
    options = {"max_new_tokens": 20}
    expected = load("nano", routing=Routing(experts_per_token=2)).generate("Once upon", **options)
    out = mobilemoe_cli("run", "nano", "Once upon", "--max-new-tokens", 20, "--experts-per-token", 2).out
    assert out == expected + "\n" != load("nano").generate("Once upon", **options) + "\n"


def test_bench_measures_a_capacity_without_a_share_of_the_limit(mobilemoe_cli, monkeypatch, tiny_folder):
    from mobilemoe.profile import benchmark, machine

    monkeypatch.setattr(benchmark, "measure_machine", lambda threads: machine.Machine(1e10, 1e11))
    quick = ("bench", tiny_folder, "--prefill", 16, "--depths", 0, "--repeats", 1, "--json")
    assert mobilemoe_cli(*quick).json["prefill"][0]["mfu"] > 0
    assert mobilemoe_cli(*quick, "--capacity", 0.5).json["prefill"][0]["mfu"] is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--cache-prior", "0.2"], "give --max-memory too"),
        (["--capacity", "1.2"], "--capacity is 1.2"),
        (["--experts-per-token", "9"], "--experts-per-token is 9"),
        (["--capacity", "0.5", "--speculate", "lookup"], "guesses would change the text"),
        (["--capacity", "0.5", "--backend", "torch"], "native engine only"),
    ],
)
def test_what_cannot_be_is_one_line(fails, options, sentence):
    assert sentence in fails(2, "run", "nano", "Hi", *options)


def test_a_gguf_file_keeps_its_routing(fails):
    assert "native engine only" in fails(
        2, "eval", "x.gguf", "--suite", "quick", "--backend", "gguf", "--capacity", "0.5"
    )
