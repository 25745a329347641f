"""Relaxing a limit never worsens a plan, and what 10% more buys is what a plan with 10% more has."""

import dataclasses
import random

import pytest

from mobilemoe.profile.device import device
from mobilemoe.scaling.plan.limits import LIMITS, Constraints, given
from mobilemoe.scaling.plan.plan import Plan, plan
from mobilemoe.scaling.plan.space import Space

# The default space without some of its granularities and heads, so that 500 plans take seconds.
SPACE = Space(granularities=(8, 16), shared=(1,), head_dims=(64,))
PHONES = ("galaxy-s25", "iphone-16-pro")


def drawn(seed: int, memory: str) -> tuple[Constraints, str]:
    """Limits and a phone at random: always something that charges for active parameters, and a training budget."""
    draw = random.Random(seed)
    limits = {memory: draw.uniform(0.4e9, 4e9)}
    choices = {"decode": (15, 60), "ttft": (1.2, 6), "flops": (0.3e9, 2e9)}
    for name in draw.sample(sorted(choices), draw.randint(1, 3)):
        limits[name] = draw.uniform(*choices[name])
    if memory == "max_memory":
        limits.setdefault("decode", 15)
    budget = {"tokens": draw.uniform(1e11, 5e11)} if draw.random() < 0.5 else {"train_flops": draw.uniform(2e20, 1e22)}
    return Constraints(**limits, **budget), draw.choice(PHONES)


def planned(constraints: Constraints, phone: str) -> Plan:
    return plan(constraints, device=device(phone), space=SPACE, top=1)


def relaxed(constraints: Constraints, name: str, by: float) -> Constraints:
    grows = name not in LIMITS or LIMITS[name].at_most
    value = getattr(constraints, name)
    return dataclasses.replace(constraints, **{name: value * (1 + by) if grows else value / (1 + by)})


@pytest.mark.parametrize("memory", ["memory", "max_memory"])
@pytest.mark.parametrize("seed", range(20))
def test_relaxing_any_limit_never_worsens_the_score_and_ten_percent_buy_what_is_said(seed, memory):
    constraints, phone = drawn(seed, memory)
    base = planned(constraints, phone)
    assert base.candidates, "a draw that fits nowhere tests nothing"
    said = {relief.limit: relief.buys for relief in base.reliefs}
    budget = "tokens" if constraints.train_flops is None else "train_flops"
    assert [*said] == [*given(constraints), budget]
    for name in said:
        score, least = base.candidates[0].score, base.equivalent.least
        for by in (0.1, 0.3, 1.0):
            more = planned(relaxed(constraints, name, by), phone)
            assert more.candidates[0].score <= score
            assert more.equivalent.least <= least
            if by == 0.1:
                assert said[name] >= 0
                fell = base.candidates[0].score - more.candidates[0].score
                assert said[name] == pytest.approx(fell, abs=1.01 * 10.0**-base.digits)
            score, least = more.candidates[0].score, more.equivalent.least


KNOWN = [
    (Constraints(memory=4e9, decode=20, ttft=4, tokens=300e9), "ttft"),
    (Constraints(memory=2e9, decode=30, ttft=3, train_flops=1e22), "ttft"),
    (Constraints(memory=1e9, decode=40, ttft=1.5, train_flops=8e20), "ttft"),
]


@pytest.mark.parametrize(("constraints", "name"), KNOWN, ids=["4GB", "2GB", "1GB"])
def test_plans_that_were_wrong_once(constraints, name):
    found = plan(constraints, device=device("galaxy-s25"))
    scores = [c.score for c in found.candidates]
    assert scores == sorted(scores)  # no row is better than the first
    buys = next(relief.buys for relief in found.reliefs if relief.limit == name)
    assert buys > 0.001  # there is something to gain here, and no step of the space hides it
    more = plan(relaxed(constraints, name, 0.1), device=device("galaxy-s25"))
    assert more.candidates[0].score < found.candidates[0].score
    assert more.equivalent.least < found.equivalent.least
