"""What a plan says about itself, sentence by sentence: amounts, what a limit buys, why one lost, what is assumed."""

import dataclasses

import pytest

from mobilemoe.presets import preset
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.plan.candidates import Candidate
from mobilemoe.scaling.plan.explain import Relief, amount, compare, relaxations, reliefs, title
from mobilemoe.scaling.plan.limits import Constraints, given
from mobilemoe.scaling.plan.notes import notes
from mobilemoe.scaling.plan.plan import plan
from mobilemoe.scaling.plan.report import relief_text
from mobilemoe.scaling.plan.space import Space
from scaling_runs import PHONE

LAW = published("paper-joint")
SPACE = Space(experts=(1, 8), granularities=(1, 8), widths=(512, 768), ratios=(40,), head_dims=(64,))
FIRST = Candidate(
    config=preset("S"),
    experts=8,
    granularity=8,
    shared=1,
    weight_bits=4,
    kv_bits=8,
    loss=2.40,
    low=2.39,
    high=2.41,
    prior=0.0,
    preference=0.0,
    score=2.40,
    bits_per_byte=None,
    equivalent=False,
    memory=0.6e9,
    weights=0.5e9,
    kv=0.1e9,
    held=1.0,
    flops=0.6e9,
    decode=50.0,
    decode_least=45.0,
    ttft=1.0,
    ttft_most=1.1,
    n_active=0.3e9,
    n_total=0.9e9,
    tokens=3e11,
    departure=0.0,
    outside=(),
)


def like(**changes) -> Candidate:
    """The first with changes; its memory and score follow unless they are given."""
    other = dataclasses.replace(FIRST, **changes)
    follows = {"memory": other.weights + other.kv, "score": other.loss + other.prior}
    return dataclasses.replace(other, **follows | changes)


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("memory", 1.234e9, "1.23 GB"),
        ("memory", 87.4e6, "87 MB"),
        ("decode", 41.26, "41.3 tok/s"),
        ("ttft", 2.0, "2.00 s"),
        ("flops", 0.614e9, "0.614 GFLOPs a token"),
        ("tokens", 5e11, "500 B tokens"),
        ("train_flops", 8.8e20, "8.8e+20 training FLOPs"),
    ],
)
def test_amounts_are_in_the_units_that_people_use(limit, value, said):
    assert amount(limit, value) == said


def test_a_difference_stands_in_the_unit_of_the_value_beside_it():
    assert amount("memory", 13e6, beside=1.2e9) == "0.01 GB"
    assert amount("memory", 13e6, beside=23e6) == "13 MB"


def test_the_limits_that_are_set_are_named_in_their_order():
    assert given(Constraints()) == []
    assert given(Constraints(flops=1e9, memory=1e9)) == ["memory", "flops"]


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (like(), "E 8, g 8, shared"),
        (like(shared=0), "E 8, g 8, no shared"),
        (like(experts=1, granularity=1, shared=0), "dense"),
    ],
)
def test_the_dials_in_words(candidate, words):
    assert title(candidate) == words


def test_the_loser_is_told_its_gap_and_all_that_differs_by_a_percent():
    other = like(shared=0, loss=2.46, weights=0.6e9, decode=60.0, ttft=1.005, flops=0.5e9)
    text = compare(FIRST, other, LAW)
    assert text.startswith("E 8, g 8, no shared lost to E 8, g 8, shared by 0.060 nats")
    better, worse = text.partition("better: ")[2].split("; worse: ")
    assert better == "FLOPs a token -17%, decode speed +20%"
    assert worse == "memory +17%, weights +20%"
    assert "first token" not in text  # half a percent is not worth a word
    assert "priors" not in text
    assert "interval" not in text


def test_a_gap_of_the_priors_is_told_apart_from_that_of_the_law():
    text = compare(FIRST, like(granularity=16, loss=2.395, prior=0.03), LAW)
    assert "by 0.025 nats (-0.005 by the law, +0.030 by the priors)" in text


def test_what_the_law_cannot_tell_apart_is_said():
    text = compare(FIRST, like(loss=2.405, equivalent=True), LAW)
    assert "all else is equal to 1%" in text
    assert text.endswith("the law cannot tell the two apart")
    assert "tell the two apart" not in compare(FIRST, like(loss=2.42), LAW)
    equal = compare(FIRST, like(loss=2.4001, weights=0.7e9, score=2.4), LAW)
    assert equal.startswith(
        "E 8, g 8, shared scores as well as E 8, g 8, shared, which is cheaper in the tightest limit"
    )


def test_what_is_only_worse_is_better_in_nothing():
    assert "better: nothing; worse: memory" in compare(FIRST, like(loss=2.5, kv=0.2e9), LAW)
    assert "worse: nothing else" in compare(FIRST, like(loss=2.5, kv=0.05e9), LAW)


def test_without_a_device_speeds_are_not_compared():
    slow = like(loss=2.5, decode=None, ttft=None)
    assert "decode" not in compare(dataclasses.replace(slow, score=2.4), slow, LAW)


@pytest.mark.parametrize(
    ("buys", "words"),
    [
        (0.0123, "10% on train flops (8.8e+20 training FLOPs) buys 0.012 nats"),
        (4e-5, "10% on train flops (8.8e+20 training FLOPs) buys less than 0.001 nats"),
        (0.0, "10% on train flops (8.8e+20 training FLOPs) buys nothing: it does not bind"),
        (-0.002, "costs, by a law that is outside its domain, 0.002 nats"),
    ],
)
def test_what_a_tenth_more_buys_is_one_sentence(buys, words):
    assert words in relief_text(Relief("train_flops", 8.8e20, buys), 3)


def test_a_tenth_more_of_what_does_not_bind_buys_nothing_and_less_decode_speed_is_more_room():
    limits = Constraints(memory=1e11, decode=60, tokens=3e11)
    table = plan(limits, device=PHONE, space=SPACE).table
    found = {relief.limit: relief for relief in reliefs(table, LAW, limits)}
    assert list(found) == ["memory", "decode", "tokens"]
    assert found["memory"].buys == 0
    assert found["decode"].relaxed_to == pytest.approx(60 / 1.1)
    assert found["tokens"].relaxed_to == pytest.approx(3.3e11)
    assert found["tokens"].buys > 0


def test_an_infeasible_limit_is_told_by_how_much_and_the_helpless_ones_together():
    table = plan(Constraints(flops=1e12), space=SPACE).table
    cheapest = table.memory.min()
    one = [*relaxations(table, Constraints(memory=1e6))]
    assert one == [
        f"the smallest of all needs {amount('memory', cheapest)}, "
        f"{amount('memory', cheapest - 1e6, cheapest)} more than --memory"
    ]
    both = [*relaxations(table, Constraints(memory=1e6, flops=1e6))]
    assert both == ["relaxing --memory or --flops alone does not help"]


def test_what_is_missing_is_said_of_the_process_and_with_the_margin_where_they_are_known():
    known = dataclasses.replace(PHONE, error=0.2, process_weights=1.5, process_kv=4.0)
    limits = Constraints(memory=1e6, flops=1e9)
    table = plan(limits, device=known, space=SPACE).table
    assert " of process memory, " in next(relaxations(table, limits))
    fast = [*relaxations(table, Constraints(decode=1e5))]
    assert fast[0].startswith(
        f"the fastest of all decodes at {amount('decode', table.decode_least.max())} with its margin"
    )
    plain = plan(limits, device=PHONE, space=SPACE).table
    assert "margin" not in next(relaxations(plain, Constraints(decode=1e5)))


def said(space=SPACE, law=LAW, constraints=None, candidates=(FIRST,), dense=None, device=None) -> str:
    asked = constraints or Constraints(tokens=3e11)
    return "\n".join(notes(space, law, device, asked, candidates, dense))


def test_the_best_dense_model_is_told_beside_the_first_unless_it_is_the_first():
    dense = like(experts=1, granularity=1, shared=0, loss=2.45)
    assert "the best dense model within the limits: 768 x 20, loss 2.450, +0.050 nats, 600 MB" in said(dense=dense)
    assert "dense model" not in said(candidates=(dense,), dense=dense)


def test_candidates_outside_the_law_are_loud_whichever_they_are():
    far = like(outside=("tokens is 9e3B",))
    assert said(candidates=(far,)).startswith("OUTSIDE THE LAW'S DOMAIN, the first candidate: tokens is 9e3B")
    assert "OUTSIDE THE LAW'S DOMAIN too: every candidate marked with !" in said(candidates=(FIRST, far))
    assert "OUTSIDE" not in said(candidates=(FIRST, FIRST))


def test_what_is_known_of_the_law_is_said_and_what_is_not():
    assert f"law: {LAW.source}; the losses' interval is the RMSE of the fit" in said()
    assert "counts the embedding is unknown" in said()
    known = dataclasses.replace(LAW, counts_embedding=True, forecast_rmse=0.0123, prior="")
    text = said(law=known)
    assert "counts the embedding is unknown" not in text
    assert "the RMSE of its forecast, 0.012 nats" in text
    assert "prior in the law" not in text


def test_an_assumed_budget_is_said_and_a_given_one_is_not():
    assert "500 B tokens are assumed" in said(constraints=Constraints())
    assert "tokens are assumed" not in said(constraints=Constraints(train_flops=1e20))


def test_priors_are_said_where_they_rank():
    assert "a prior of 0.015 nats for INT4 after QAT" in said()
    assert "g = 16" not in said()
    finest = dataclasses.replace(SPACE, granularities=(8, 16), weight_bits=(4, 8), kv_bits=(8, 16))
    text = said(space=finest)
    assert "prior: INT4 weights are ranked as 0.015 nats worse" in text
    assert "prior: an int8 KV cache is taken to cost no loss" in text
    assert "prior: g = 16 is ranked as 0.01 nats worse" in text
    assert "INT4" not in said(space=dataclasses.replace(SPACE, weight_bits=(8,)))


def test_a_winner_at_the_end_of_the_space_is_said_to_be_there():
    assert "as wide as the space goes" in said()
    assert "as wide" not in said(space=dataclasses.replace(SPACE, widths=(512, 768, 1024)))


def test_a_margin_on_speeds_and_the_process_s_memory_are_said_where_they_are_known():
    assert "limits on speed have no margin" in said(device=PHONE)
    assert "a process takes more" in said(device=PHONE)
    known = said(device=dataclasses.replace(PHONE, error=0.247, process_weights=1.2, process_kv=9.0))
    assert "up to 24.7% off: a limit on decode or ttft counts as met only with that margin" in known
    assert "memory = the process on phone: 1.2 bytes for each byte of weights" in known


def test_what_vocabularies_are_compared_by_is_said_as_a_prior():
    text = said(space=dataclasses.replace(SPACE, vocabularies=(32_000, 128_256)))
    assert "prior: the law is taken to hold for tokens of the first vocabulary (32,000)" in text
    assert "equally good byte for byte" in text
    unknown = said(space=dataclasses.replace(SPACE, vocabularies=(32_000, 256_000)))
    assert "each is ranked apart, in the order given, since bytes per token are known for sizes from 4,096" in unknown
    assert "vocabular" not in said()


def test_memory_alone_is_loud():
    assert "NOTHING LIMITS ACTIVE PARAMETERS" in said()
    assert "NOTHING LIMITS" not in said(constraints=Constraints(tokens=3e11, flops=1e9))


def test_a_candidate_is_json():
    values = FIRST.as_json()
    assert (values["memory"], values["score"]) == (FIRST.memory, FIRST.score)
    assert values["config"] == FIRST.config.to_dict()


def test_what_a_law_forecast_and_which_runs_it_left_out_are_said():
    facts = {"forecast_rmse": 0.02, "forecast_split": "5 runs of the largest compute, by a fit to 20 others"}
    text = said(law=dataclasses.replace(LAW, left_out=("wild",), **facts))
    assert "the law was fitted without 1 run far from it (wild)" in text
    assert "RMSE of its forecast over 5 runs of the largest compute, by a fit to 20 others, 0.02 nats" in text
