"""The sections of a report that show what a law implies: the compute optimum, equal memory, equal loss."""

from __future__ import annotations

import numpy as np

from mobilemoe.page import Section, table
from mobilemoe.presets import DENSE
from mobilemoe.scaling.report import pictures
from mobilemoe.scaling.report.scene import Scene
from mobilemoe.scaling.report.words import band, count, loss, number, size

MEMORIES = 6  # at which the mixtures are compared with the dense model


def compute_optimum(scene: Scene) -> Section:
    flops, found = pictures.compute_optima(scene)
    rows = []
    for budget in scene.budgets((0, 0.5, 1)):
        best = scene.optimum(scene.law, budget)
        share = "-" if best.best.share is None else f"{best.best.share:.0%}"
        outside = "outside" if best.best.warnings else "inside"
        rows.append(
            (
                f"{budget:.1e}",
                band(best.n_active, count),
                band(best.tokens, count),
                band(best.experts, number),
                share,
                band(best.loss, loss),
                outside,
            )
        )
    heads = ("FLOPs", "N", "D", "E", "samples that choose it", "loss", "law's domain")
    shown = [
        ("optimum-n", "best size", lambda axes: pictures.optimal(axes, scene, flops, found, "n_active")),
        ("optimum-d", "best tokens", lambda axes: pictures.optimal(axes, scene, flops, found, "tokens")),
        ("optimum-loss", "least loss", lambda axes: pictures.gained(axes, scene, flops, found)),
    ]
    return Section(
        "The compute optimum",
        "<p>If only training compute C = 6 N D counts, this is the best model for it. A device's memory usually stops "
        f"short of that size: see the next section. Intervals are {best.interval}.</p>" + table(heads, rows),
        [(name, what, pictures.draw(paint)) for name, what, paint in shown],
    )


def equal_memory(scene: Scene) -> Section:
    budgets = scene.budgets((0.25, 0.5, 0.75))
    panels = [
        (f"memory-{place}", f"loss over memory at {budget:.1e} FLOPs", _memory_curves(scene, budget))
        for place, budget in enumerate(budgets, 1)
    ]
    compared = _against_dense(scene, budgets[1]) if DENSE in scene.lines and len(scene.lines) > 1 else ""
    return Section(
        "At equal memory",
        f"<p>Models trained with the same compute, by the memory that they take on the device: {_shape(scene)}. "
        "Where a line rises again, its models are so large that they see too few tokens.</p>" + compared,
        panels,
    )


def _memory_curves(scene: Scene, flops: float) -> bytes:
    return pictures.draw(lambda axes: pictures.equal_compute(axes, scene, flops))


def _against_dense(scene: Scene, flops: float) -> str:
    """A table of the best model at several memories, and a sentence on whether mixtures beat the dense model."""
    rows, gains = [], []
    for memory in _memories(scene):
        found = scene.within(memory, flops)
        mixture = next(choice for choice in found.choices if choice.experts > 1)
        dense = next(choice for choice in found.choices if choice.experts == 1)
        gains.append(dense.loss.value - mixture.loss.value)
        outside = [name for name, choice in (("mixture", mixture), ("dense", dense)) if choice.warnings]
        rows.append(
            (
                size(memory),
                f"{mixture.experts}",
                count(mixture.n_active.value),
                count(mixture.tokens.value),
                loss(mixture.loss.value),
                count(dense.n_active.value),
                loss(dense.loss.value),
                f"{gains[-1]:+.4f}",
                ", ".join(outside),
            )
        )
    heads = ("memory", "best E > 1", "its N", "D", "loss", "dense N", "dense loss", "mixture's gain", "outside")
    better = sum(gain > scene.law.rmse for gain in gains)
    worse = sum(gain < -scene.law.rmse for gain in gains)
    return (
        f"<p>With {flops:.1e} FLOPs a mixture beats the dense model by more than the RMSE at {better} of these "
        f"{len(gains)} memories; the dense model beats every mixture at {worse}. The last column names the models that "
        f"lie outside the law's domain: in {sum(not row[-1] for row in rows)} rows neither does.</p>"
        + table(heads, rows)
    )


def _memories(scene: Scene) -> list[float]:
    """Memories from the least dense model in the domain to the largest mixture."""
    small, large = scene.law.domain["n_active"]
    dense, mixture = scene.lines[DENSE], scene.lines[max(scene.lines)]
    low = max(
        float(dense.memory(np.clip(small, *dense.range))), *(sizes.least_memory for sizes in scene.lines.values())
    )
    high = float(mixture.memory(np.clip(large, *mixture.range)))
    return [float(memory) for memory in np.geomspace(low, high, MEMORIES)]


def equal_loss(scene: Scene) -> Section:
    levels = scene.levels((0.75, 0.5, 0.25))
    panels = [
        (f"equal-loss-{place}", f"models that reach {level:.3f}", _loss_curves(scene, level))
        for place, level in enumerate(levels, 1)
    ]
    return Section(
        "Equal loss: memory against training compute",
        "<p>All models on one line reach the same loss. The lower left is cheaper in both: the lowest line is the E "
        f"to take for that memory. Shown is {_shape(scene)}.</p>",
        panels,
    )


def _loss_curves(scene: Scene, level: float) -> bytes:
    return pictures.draw(lambda axes: pictures.equal_loss(axes, scene, level))


def _shape(scene: Scene) -> str:
    return (
        f"the paper's family with a vocabulary of {scene.vocab_size:,}, in INT4, with an int8 KV cache of "
        f"{scene.context:,} tokens"
    )
