"""What the tests of scaling share: sweeps whose truth is known, and a device that is made up."""

import numpy as np

from mobilemoe.profile.device import Device
from mobilemoe.scaling import Law, Points, Runs, Space, published

HABIT = Space(ratios=(40,), head_dims=(64,), widths=tuple(range(256, 4097, 64)))  # small steps, so that memory is used
EASY = Device(
    name="easy",
    threads=2,
    weight_bandwidth=20e9,
    attention_rate=30e9,
    prefill_linear_rate=400e9,
    prefill_attention_rate=50e9,
    routed_cost=1.5,
    source="made up",
)
PHONE = Device(
    name="phone",
    threads=4,
    weight_bandwidth=56e9,
    attention_rate=15e9,
    prefill_linear_rate=620e9,
    prefill_attention_rate=50e9,
    routed_cost=4.0,
    source="made up for the tests",
)


def paper_sweep() -> Points:
    """E over N and D at g = 1, then g and s at E = 8 (spec section 4): 210 points."""
    rows = []
    for n in (0.3, 0.5, 0.9):
        for d in (100, 200, 300, 400, 500):
            rows += [(n, d, e, 1, 0) for e in (1, 2, 4, 8, 16, 32)]
            rows += [(n, d, 8, g, s) for g in (2, 4, 8, 16) for s in (0, 1)]
    n, d, e, g, s = np.array(rows, float).T
    return Points(n_active=n, tokens=d, experts=e, granularity=g, shared=s)


def joint_law(**changes: float) -> Law:
    """The paper's E-law with a granularity and a shared term large enough to be measured."""
    parameters = published("paper-joint").parameters | {"kappa": 0.12, "sigma": 0.05} | changes
    return Law(form="joint", parameters=parameters, rmse=0.0, domain={}, source="a truth made up for tests")


def runs_of(law: Law, points: Points | None = None, noise: float = 0.0, seed: int = 0) -> Runs:
    """One run at each point, its loss the law's with Gaussian noise of `noise` nats."""
    points = paper_sweep() if points is None else points
    loss = law.loss(points) + np.random.default_rng(seed).normal(0, noise, len(points))
    ids = tuple(f"run-{place}" for place in range(len(points)))
    return Runs(points=points, loss=loss, ids=ids, repeated=np.zeros(len(points), bool))
