"""The sections of a law's report: their tables are those of the searches, their sentences count what the tables say."""

import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from mobilemoe.presets import DENSE
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.report import pictures
from mobilemoe.scaling.report.curves import MEMORIES, _memories, compute_optimum, equal_loss, equal_memory
from mobilemoe.scaling.report.scene import Scene
from mobilemoe.scaling.report.words import count, loss, size

LAW = published("paper-joint")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Pictures take most of the time, and have tests of their own."""
    monkeypatch.setattr(pictures, "draw", lambda paint: b"drawn")


def scene(law=LAW, experts=(1, 8), **changes) -> Scene:
    values = {"granularity": 8, "shared": 1, "flops": (1.8e20, 2.7e21), "vocab_size": 128_256, "context": 4096}
    return Scene(law=law, experts=experts, **values | changes)


def rows(html: str) -> list[list[str]]:
    """The cells of a table, its head first."""
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", unescape(html))]


def test_the_table_of_optima_is_that_of_the_search_at_the_ends_and_the_middle():
    section = compute_optimum(scene())
    head, *found = rows(section.body)
    assert head == ["FLOPs", "N", "D", "E", "samples that choose it", "loss", "law's domain"]
    assert [row[0] for row in found] == ["1.8e+20", f"{(1.8e20 * 2.7e21) ** 0.5:.1e}", "2.7e+21"]
    for row, budget in zip(found, scene().budgets((0, 0.5, 1)), strict=True):
        best = scene().optimum(LAW, budget)
        assert row[1].startswith(count(best.n_active.value))
        assert row[5].startswith(loss(best.loss.value))
        assert row[4] == "-"  # there are no samples
        assert row[6] == ("outside" if best.best.warnings else "inside")
    assert f"Intervals are {scene().optimum(LAW, 1e21).interval}" in section.body
    assert [name for name, _, _ in section.pictures] == ["optimum-n", "optimum-d", "optimum-loss"]


def test_with_samples_their_share_stands_in_the_table():
    theta = LAW.theta * np.random.default_rng(0).normal(1, 0.002, (30, len(LAW.parameters)))
    shares = [row[4] for row in rows(compute_optimum(scene(replace(LAW, samples=theta))).body)[1:]]
    assert all(re.fullmatch(r"\d+%", share) for share in shares)


def test_mixtures_and_the_dense_model_are_compared_at_the_same_memories_and_compute():
    section = equal_memory(scene())
    _, *found = rows(section.body)
    flops = scene().budgets((0.5,))[0]
    assert len(found) == MEMORIES
    for row, memory in zip(found, _memories(scene()), strict=True):
        best = {choice.experts: choice for choice in scene().within(memory, flops).choices}
        assert row[0] == size(memory)
        assert row[1] == "8"
        assert (row[2], row[4]) == (count(best[8].n_active.value), loss(best[8].loss.value))
        assert (row[5], row[6]) == (count(best[1].n_active.value), loss(best[1].loss.value))
        assert row[7] == f"{best[1].loss.value - best[8].loss.value:+.4f}"
        assert ("dense" in row[8]) == bool(best[1].warnings)


def test_the_sentence_counts_the_rows_of_its_table():
    section = equal_memory(scene())
    gains = [float(row[7]) for row in rows(section.body)[1:]]
    better, worse = sum(gain > LAW.rmse for gain in gains), sum(gain < -LAW.rmse for gain in gains)
    assert f"by more than the RMSE at {better} of these {MEMORIES} memories" in section.body
    assert f"the dense model beats every mixture at {worse}." in section.body
    clean = sum(not row[8] for row in rows(section.body)[1:])
    assert f"in {clean} rows neither does" in section.body


@pytest.mark.parametrize("experts", [(1,), (4, 8)])
def test_without_both_kinds_there_is_nothing_to_compare(experts):
    section = equal_memory(scene(experts=experts))
    assert rows(section.body) == []
    assert len(section.pictures) == 3


def test_memories_go_from_the_least_dense_model_of_the_domain_to_the_largest_mixture():
    found = _memories(scene())
    lines = scene().lines
    assert found == sorted(found)
    assert found[0] == pytest.approx(max(float(lines[DENSE].memory(np.array(0.3))), lines[8, 8, 1].least_memory))
    assert found[-1] == pytest.approx(float(lines[8, 8, 1].memory(np.array(0.9))))
    np.testing.assert_allclose(np.diff(np.log(found)), np.log(found[-1] / found[0]) / (MEMORIES - 1))


def test_levels_of_equal_loss_are_said_with_the_family_that_is_drawn():
    section = equal_loss(scene(context=2048, vocab_size=32_000))
    levels = scene(vocab_size=32_000).levels((0.75, 0.5, 0.25))
    assert [what for _, what, _ in section.pictures] == [f"models that reach {level:.3f}" for level in levels]
    assert "a vocabulary of 32,000, in INT4, with an int8 KV cache of 2,048 tokens" in section.body
