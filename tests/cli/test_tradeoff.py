"""`mobilemoe tradeoff`: what other ways to route cost and save."""

import json
import re
from xml.etree import ElementTree

import pytest

from memory_limits import named_limit
from mobilemoe.checkpoint import write_random
from mobilemoe.errors import UsageError
from mobilemoe.evaluate.compare import tradeoff
from mobilemoe.evaluate.compare.bits_per_byte import score_file
from mobilemoe.hub import ASSETS
from mobilemoe.load import load
from mobilemoe.profile import capped
from mobilemoe.routing import Routing
from model_configs import CONFIGS
from places import HELDOUT
from tiny_model import write_model

FEW = ("--cached-experts", "5", "--cache-prior", "0,0.5", "--capacity", "0.5", "--window", "64")
POINTS = 1 + 3 + 3 + 2  # as trained, fewer experts, a capacity of each kind, two strengths


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(tradeoff, "ROUNDS", 1)
    text = tmp_path / "text.jsonl"
    text.write_text("".join(HELDOUT.read_text().splitlines(keepends=True)[:2]))
    return ["tradeoff", "nano", "--text", text, "--out", tmp_path / "out", *FEW]


def test_tradeoff_finds_and_draws_each_point(mobilemoe_cli, arguments, tmp_path):
    found = mobilemoe_cli(*arguments, "--json").json
    points = {Routing(**point["routing"]): point for point in found["points"]}
    assert len(points) == POINTS
    plain, half = points[Routing()], points[Routing(capacity=0.5)]
    score = score_file(load("nano"), arguments[3], window=64)["all"]
    assert plain["bits_per_byte"] == score.bits_per_byte
    assert plain["perplexity"] == pytest.approx(2 ** (score.bits / score.tokens))
    assert plain["prompt_speed"] == 1
    assert half["skipped"] == pytest.approx(0.5, abs=0.01)
    assert half["bits_per_byte"] < points[Routing(capacity=0.5, skip="random")]["bits_per_byte"]
    cached = [points[Routing(cached_experts=5, cache_prior=strength)] for strength in (0.0, 0.5)]
    assert cached[0]["bits_per_byte"] == plain["bits_per_byte"]
    assert cached[1]["miss_rate"] < cached[0]["miss_rate"] < 1
    svg = ElementTree.parse(tmp_path / "out" / "tradeoff.svg")
    assert svg.getroot().tag.endswith("svg")
    out = mobilemoe_cli(*arguments).out
    assert re.search(r"5 experts in memory, lambda 0.5 .*%", out)
    assert "tradeoff.svg" in out


def test_a_run_that_was_stopped_goes_on_and_scores_nothing_twice(mobilemoe_cli, arguments, tmp_path, monkeypatch):
    score, calls = tradeoff._score, []

    def once_in_a_while(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(*given)

    monkeypatch.setattr(tradeoff, "_score", once_in_a_while)
    ended = mobilemoe_cli(*arguments)
    assert ended.status == 130
    assert "the same command continues" in ended.err
    assert len(json.loads((tmp_path / "out" / "points.json").read_text())) == 3
    assert mobilemoe_cli(*arguments).status == 0
    assert len(calls) == POINTS + 1


def test_what_cannot_be_drawn_is_one_line(fails, arguments, tmp_path):
    assert "--capacity is 'x'" in fails(2, *arguments, "--capacity", "x")
    assert "--cached-experts is 19" in fails(2, *arguments, "--cached-experts", "19")
    assert "capacity is 1.5" in fails(2, *arguments, "--capacity", "1.5")
    write_random(tmp_path / "dense", CONFIGS["dense"], seed=1, format="int4")
    assert "is dense" in fails(2, "tradeoff", tmp_path / "dense", *arguments[2:])
    assert "is no regular file" in fails(1, *arguments, "--text", "/dev/zero")
    assert "none.jsonl" in fails(1, *arguments, "--text", "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    assert "holds no text" in fails(1, *arguments, "--text", tmp_path / "empty.jsonl")
    assert "but the process needs at least" in fails(2, *arguments, "--max-memory", "1KB")
    assert not (tmp_path / "out").exists()


def test_decoding_under_a_limit_reads_less_with_a_prior(monkeypatch):
    monkeypatch.setattr(capped, "ROUNDS", 1)
    ids = list(range(200, 200 + capped.BEFORE + capped.DECODED))

    def measure(max_memory: int) -> list[capped.Decoding]:
        return capped.decode_speeds(ASSETS / "nano", [0.0, 1.0], max_memory, ids, 1, lambda done: None)

    with pytest.raises(UsageError, match="needs at least") as refused:
        measure(1000)
    plain, preferring = measure(named_limit(str(refused.value)))
    assert plain.places < plain.experts == 144, plain
    assert preferring.bytes_per_token < plain.bytes_per_token
    assert preferring.hit_rate > plain.hit_rate
    with pytest.raises(UsageError, match="room for all 144 experts"):
        measure(10**10)


def test_a_picture_of_something_else_is_not_replaced(mobilemoe_cli, arguments, tmp_path):
    out, others = tmp_path / "out", tmp_path / "others.jsonl"
    others.write_text("".join(HELDOUT.read_text().splitlines(keepends=True)[2:3]))
    assert mobilemoe_cli(*arguments, "--json").json["picture"] == str(out / "tradeoff.svg")
    first = (out / "tradeoff.svg").read_bytes()
    other = [others if each == arguments[3] else each for each in arguments]
    told = " ".join(mobilemoe_cli(*other).out.split())
    assert "tradeoff-2.svg, since" in told
    assert (out / "tradeoff.svg").read_bytes() == first
    assert mobilemoe_cli(*other, "--json").json["picture"] == str(out / "tradeoff-2.svg")
    assert mobilemoe_cli(*arguments, "--json").json["picture"] == str(out / "tradeoff.svg")


@pytest.mark.parametrize("context", [2, 3, 40])
def test_a_short_context_is_measured_with_what_it_has_room_for(
    mobilemoe_cli, arguments, tmp_path, monkeypatch, context
):
    given = []

    def decoded(code, job, what, error):
        given.append(job)
        return {"strength": job["strength"], "tokens_per_second": 1, "bytes_per_token": 1, "hit_rate": 1} | {
            "places": 5, "experts": 9,
        }  # fmt: skip

    monkeypatch.setattr(capped, "measure_in_child", decoded)
    arguments[1] = write_model(tmp_path / "model", max_position_embeddings=context)
    arguments[arguments.index("--window") + 1] = str(min(context, 8))
    found = mobilemoe_cli(*arguments, "--max-memory", "1GB", "--json").json
    assert len(found["points"]) > 3
    for job in given:
        assert 1 <= len(job["decoded"]) <= len(job["before"])
        assert len(job["before"]) + len(job["decoded"]) == context


@pytest.mark.parametrize("verb", ["tradeoff", "eval", "bench", "prune"])
def test_a_context_of_one_token_is_one_sentence(fails, tmp_path, verb):
    model = write_model(tmp_path / "model", max_position_embeddings=1)
    text = () if verb == "bench" else ("--text", HELDOUT)
    more = ("--experts", 5, "--out", tmp_path / "few") if verb == "prune" else ()
    assert "a context of 1 token, which leaves nothing to" in fails(2, verb, model, *text, *more)


def test_a_window_that_cannot_be_is_refused_before_anything_is_measured(fails, arguments, monkeypatch):
    monkeypatch.setattr(tradeoff, "prompt_speeds", lambda *_: pytest.fail("it was measured"))
    arguments[arguments.index("--window") + 1] = "9999"
    assert "--window is 9999, but must be from 2 to 2048" in fails(2, *arguments)


def test_bench_starts_a_model_whose_context_has_no_room_for_the_usual_prompt(mobilemoe_cli, tmp_path):
    model = write_model(tmp_path / "model", max_position_embeddings=8)
    out = " ".join(mobilemoe_cli("bench", model, "--repeats", "1", "--threads", "1").out.split())
    assert "which the context of 8 has no room for" in out
    assert "first token" in out
