"""A law's own promises beside its loss: what it can choose among, how it is written down, when it is no law."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mobilemoe.errors import DataError, UsageError
from mobilemoe.scaling import Law, Points, published
from mobilemoe.scaling.law.forms import FORMS
from refusals import refusal
from scaling_runs import joint_law

E, JOINT, CHINCHILLA = (published(name) for name in ("paper-E", "paper-joint", "chinchilla"))
SAMPLES = joint_law().theta * np.random.default_rng(0).normal(1, 0.01, (40, 12))


# What it can choose among


@pytest.mark.parametrize(
    ("law", "column", "values", "known"),
    [
        (E, "experts", (1, 2, 8, 64), (1, 2, 8)),  # within its domain
        (replace(E, domain={"granularity": (2.0, 2.0)}), "granularity", (1, 2, 16), (2,)),  # all of its runs had that
        (JOINT, "granularity", (1, 2, 16, 32), (1, 2, 16)),
        (JOINT, "shared", (0, 1), (0, 1)),
        (CHINCHILLA, "experts", (1, 8), (1,)),  # a law of dense models
        (replace(E, domain={}), "granularity", (1, 2), (8,)),  # it says nothing of it: the family's
        (replace(E, domain={}), "shared", (0, 1), (1,)),
        (replace(JOINT, domain={}), "experts", (1, 99), (1, 99)),
        (replace(JOINT, domain={"shared": (1.0, 1.0)}), "shared", (0, 1), (1,)),
    ],
)
def test_a_law_chooses_among_what_it_has_a_term_for_inside_its_domain(law, column, values, known):
    assert law.known(column, values) == known


# When it is no law


def test_constants_that_are_not_numbers_and_samples_of_another_shape_are_refused():
    law = joint_law()
    worse = law.parameters | {"A": float("nan")}
    assert "not a number" in refusal(lambda: replace(law, parameters=worse), UsageError)
    assert "not a number" in refusal(lambda: replace(law, rmse=float("inf")), UsageError)
    assert "must be [S, 12]" in refusal(lambda: replace(law, samples=np.ones((3, 11))), UsageError)
    assert "must be [S, 12]" in refusal(lambda: replace(law, samples=np.ones(12)), UsageError)
    assert "domain names 'colour'" in refusal(lambda: replace(law, domain={"colour": (0.0, 1.0)}), UsageError)


def test_a_law_that_gives_no_loss_at_the_ends_of_its_domain_is_none():
    JOINT.check()
    replace(JOINT, samples=SAMPLES).check()
    wild = replace(JOINT, parameters=JOINT.parameters | {"gamma": -1e6})
    assert "no loss at the ends of its domain" in refusal(wild.check, DataError)
    drawn = SAMPLES.copy()
    drawn[7, FORMS["joint"].parameters.index("zeta")] = 1e6
    assert "no loss" in refusal(replace(JOINT, samples=drawn).check, DataError)


# How sure it is


def test_an_interval_of_samples_is_their_quantiles_at_each_point():
    law, points = replace(joint_law(), samples=SAMPLES), Points(n_active=[[0.3], [0.9]], tokens=[100, 500], experts=8)
    low, high = law.interval(points, 0.5)
    assert low.shape == high.shape == (2, 2)
    each = np.array([FORMS["joint"].loss(theta, points) for theta in SAMPLES])
    np.testing.assert_allclose([low, high], np.quantile(each, [0.25, 0.75], axis=0))
    wider = law.interval(points, 0.9)
    assert np.all(wider[0] <= low)
    assert np.all(high <= wider[1])
    assert law.interval_kind == "bootstrap"


def test_a_parameters_interval_is_that_of_its_column():
    law = replace(joint_law(), samples=SAMPLES)
    place = FORMS["joint"].parameters.index("beta")
    assert law.parameter_interval("beta", 0.8) == pytest.approx(tuple(np.quantile(SAMPLES[:, place], [0.1, 0.9])))


# How it is written down


def test_a_law_comes_back_from_json_and_its_samples_to_seven_digits():
    law = replace(joint_law(), samples=SAMPLES, domain={"tokens": (1.0, 2.0)}, prior="assumed", counts_embedding=False)
    again = Law.from_json(json.loads(json.dumps(law.as_json(), allow_nan=False)))
    np.testing.assert_allclose(again.samples, SAMPLES, rtol=5e-7)
    assert replace(again, samples=None) == replace(law, samples=None)


def test_what_is_done_to_the_values_is_not_done_to_the_law():
    law = replace(joint_law(), samples=SAMPLES, domain={"tokens": (1.0, 2.0)})
    values = law.as_json()
    values["parameters"].clear()
    values["domain"].clear()
    values["samples"][0][0] = 99.0
    assert law.parameters == joint_law().parameters
    assert law.domain == {"tokens": (1.0, 2.0)}
    assert law.samples[0, 0] == SAMPLES[0, 0]


@pytest.mark.parametrize("entry", ["form", "parameters", "rmse", "domain", "source"])
def test_a_missing_entry_is_named(entry):
    values = E.as_json()
    del values[entry]
    assert f"a law needs the entry {entry!r}" in refusal(lambda: Law.from_json(values), DataError)


def test_what_may_be_missing_is_not_known_and_what_is_new_is_left_out():
    values = E.as_json() | {"colour": "red"}
    for name in ("samples", "prior", "counts_embedding", "forecast_rmse"):
        del values[name]
    read = Law.from_json(values)
    assert (read.samples, read.prior, read.counts_embedding, read.forecast_rmse) == (None, "", None, None)
    assert read.parameters == E.parameters


def test_a_file_with_a_law_that_gives_no_loss_is_refused_with_its_name(tmp_path):
    wild = JOINT.as_json()
    wild["parameters"]["gamma"] = -1e6
    (tmp_path / "law.json").write_text(json.dumps(wild))
    assert "law.json is not a law: " in refusal(lambda: Law.load(tmp_path / "law.json"), DataError)


def test_saving_over_a_law_leaves_the_new_one_alone_in_the_folder(tmp_path):
    E.save(tmp_path / "law.json")
    JOINT.save(tmp_path / "law.json")
    assert Law.load(tmp_path / "law.json") == JOINT
    assert [path.name for path in tmp_path.iterdir()] == ["law.json"]


# What was published


def test_every_published_law_is_a_law_with_its_source_and_its_domain():
    for name in ("paper-E", "paper-joint", "chinchilla"):
        law = published(name)
        law.check()
        assert law.source
        assert {"n_active", "tokens"} <= law.domain.keys()
        assert 0 < law.rmse < 0.05
        assert law.samples is None


def test_the_joint_law_is_the_papers_where_there_is_nothing_to_assume():
    plain = Points(n_active=[0.3, 0.9], tokens=300, experts=[1, 8])
    np.testing.assert_allclose(JOINT.loss(plain), E.loss(plain), rtol=1e-12)
    finer = Points(n_active=0.5, tokens=300, experts=8, granularity=[1, 8, 16], shared=0)
    gains = -np.diff(JOINT.loss(finer))
    assert gains[0] > gains[1] > 0  # finer is better, and less so from 8 to 16
    assert gains[1] < 0.01  # as the paper finds
    assert JOINT.loss(Points(n_active=0.5, tokens=300, experts=8, granularity=8, shared=1)) < JOINT.loss(finer)[1]
