"""A plan's page and picture: the costs it draws, the cells of its table, what it says where nothing fits."""

import dataclasses

import numpy as np
import pytest

from drawn import curve, labels
from mobilemoe.scaling.plan.limits import Constraints
from mobilemoe.scaling.plan.plan import Plan, plan
from mobilemoe.scaling.plan.report import axes_of, draw, equivalent_text, front, headings, row, write_report
from mobilemoe.scaling.plan.space import Space
from scaling_runs import PHONE

SPACE = Space(experts=(1, 8), granularities=(1, 8), widths=(512, 768, 1024))
ASKED = Constraints(memory=1e9, decode=40, ttft=3, tokens=3e11)


@pytest.fixture(scope="module")
def found() -> Plan:
    return plan(ASKED, device=PHONE, space=SPACE)


def test_costs_are_memory_and_flops_and_with_a_device_its_times_too(found):
    axes = axes_of(found)
    assert [axis.column for axis in axes] == ["memory", "flops", "decode", "ttft"]
    assert [axis.limit for axis in axes] == [1.0, None, 25.0, 3000.0]
    table = found.table
    for axis, values in zip(
        axes, (table.memory / 1e9, table.flops / 1e9, 1e3 / table.decode, 1e3 * table.ttft), strict=True
    ):
        np.testing.assert_allclose(axis.values, values)
    without = plan(Constraints(memory=1e9, flops=1e9), space=SPACE)
    assert [axis.column for axis in axes_of(without)] == ["memory", "flops"]


def test_each_panel_draws_the_front_of_each_e_within_all_limits_but_its_own(found, figures):
    draw(found)
    for panel, axis in zip(figures[0].axes, axes_of(found), strict=True):
        allowed = found.table.allowed(ASKED, without=axis.column)
        for experts, name in ((1, "dense"), (8, "E = 8")):
            chosen = allowed & (found.table.experts == experts)
            costs, losses = front(axis.values[chosen], found.losses[chosen])
            assert curve(panel, name) == list(zip(costs, losses, strict=True))
        assert panel.get_xscale() == "log"


def test_a_plan_without_a_candidate_is_drawn_without_a_first_choice(figures):
    draw(plan(Constraints(memory=1e6), space=SPACE))
    assert all("first choice" not in labels(panel) for panel in figures[0].axes)
    assert "limit" in labels(figures[0].axes[0])


def test_the_cells_of_a_candidate_stand_under_their_headings(found):
    first = found.candidates[0]
    cells = [*row(1, first, 3)]
    assert len(cells) == len(headings(found))
    config = first.config
    assert cells[0] == f"1={'!' if first.outside else ''}"
    assert cells[1].splitlines()[0].startswith(f"E 8, g 8, shared: {config.num_local_experts} x ")
    assert cells[1].splitlines()[1] == (
        f"{config.hidden_size} x {config.num_hidden_layers} layers, "
        f"{config.num_attention_heads}/{config.num_key_value_heads} heads of {config.head_dim}"
    )
    assert cells[2] == f"{first.score:.3f}\n{first.low:.3f}-{first.high:.3f}"
    assert cells[3].splitlines()[0] == f"{first.memory / 1e9:.3f} GB"
    assert cells[5] == f"{first.decode:.1f} tok/s\n{first.ttft:.2f} s"
    assert cells[7] == "300 B"


def test_the_headings_say_what_memory_is_of_and_the_margin_on_speeds(found):
    assert "memory\nweights + KV" in headings(found)
    measured = dataclasses.replace(PHONE, error=0.1, process_weights=1.2, process_kv=9.0)
    known = headings(plan(ASKED, device=measured, space=SPACE))
    assert "process\nweights + KV" in known
    assert "decode\n1st token\n+-10%" in known


def test_how_many_are_equivalent_is_one_sentence(found):
    same = found.equivalent
    text = equivalent_text(found)
    assert text.startswith(f"best predicted loss {same.least:.3f} nats, priors included; {same.count} model")
    assert "within the law's error of 0.0076 (RMSE of its fit)" in text
    assert equivalent_text(plan(Constraints(memory=1e6), space=SPACE)) == ""


@pytest.mark.parametrize(("tokens", "cell"), [(1e8, "100 M"), (2.5e9, "2.5 B"), (3.846e12, "3,846 B")])
def test_few_tokens_are_not_shown_as_none(found, tokens, cell):
    assert [*row(1, dataclasses.replace(found.candidates[0], tokens=tokens), 3)][7] == cell


def test_what_is_unusual_in_a_candidate_is_said_in_its_cell(found):
    first = found.candidates[0]
    config = dataclasses.replace(first.config, vocab_size=32_000, tie_word_embeddings=False)
    odd = dataclasses.replace(first, config=config, weight_bits=8, kv_bits=16, decode=None, ttft=None, outside=("far",))
    cells = [*row(2, odd, 3)]
    assert cells[0] == "2=!"
    assert ", 8-bit, KV 16-bit, vocabulary 32,000, untied" in cells[1]
    assert cells[5] == "-"
    assert "bit" not in [*row(1, first, 3)][1]


def test_the_page_of_a_plan_that_fits_nowhere_says_what_is_missing(tmp_path):
    nothing = plan(Constraints(memory=1e6), space=SPACE)
    write_report(nothing, tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    assert "No candidate fits" in page
    assert nothing.infeasible[0] in page
    assert "Runner-up" not in page  # nor any other section without a word in it
    assert "What 10% more would buy" not in page


def test_the_page_is_loud_where_the_law_is_left_and_names_limits_and_reliefs(found, tmp_path):
    far = plan(dataclasses.replace(ASKED, tokens=6e12), device=PHONE, space=SPACE)
    for name, each in (("near", found), ("far", far)):
        write_report(each, tmp_path / f"{name}.html")
    near, loud = ((tmp_path / f"{name}.html").read_text() for name in ("near", "far"))
    assert "Limits: memory 1.00 GB, decode 40 tok/s, ttft 3.00 s." in near
    assert near.count("10% on ") == len(found.reliefs) == 4
    assert "<ul class='loud'><li>OUTSIDE" in loud
