"""The report shows the law, its fit and its optimum in one file that needs nothing else."""

import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.axes import Axes

from mobilemoe.errors import MissingExtraError
from mobilemoe.scaling.law.compare import compare
from mobilemoe.scaling.law.fit import fit
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.law.runs import Points, Runs
from mobilemoe.scaling.report.report import write_report

PNG = b"\x89PNG\r\n"
SMALL = {"vocab_size": 4096, "context": 512}
TRUTH = {"A": 0.55, "delta": -0.12, "alpha": -0.22, "gamma": 0.01, "kappa": 0.1, "phi": 0.58, "sigma": 0.02}
TRUTH |= {"B": 0.35, "omega": 0.12, "beta": -0.28, "zeta": -0.01, "c": 1.5}


class Page(HTMLParser):
    """What a reader of the page meets: headings, text, cells by row, images, and everything that it points to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.headings, self.rows, self.images, self.links, self.open = [], [], [], [], []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        self.links += [values[name] for name in ("src", "href") if name in values]
        if tag == "tr":
            self.rows.append([])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "the page's tags are not nested"

    def handle_data(self, data):
        tag = self.open[-1] if self.open else ""
        if tag == "h2":
            self.headings.append(data)
        if tag in ("td", "th"):
            self.rows[-1].append(data)
        if tag not in ("style", "title"):
            self.text += data


def runs(number: int = 60, **fixed: float) -> Runs:
    """Runs of TRUTH with a little noise, in which everything varies but the fixed fields."""
    draw = np.random.default_rng(0)
    experts = fixed.get("experts", draw.choice([1, 2, 4, 8], number)) * np.ones(number)
    granularity = np.where(experts > 1, fixed.get("granularity", draw.choice([1, 2, 8], number)), 1.0)
    shared = np.where((experts > 1) & (granularity > 1), fixed.get("shared", draw.choice([0, 1], number)), 0.0)
    points = Points(
        n_active=draw.choice([0.003, 0.006, 0.012, 0.024], number),
        tokens=draw.choice([0.008, 0.016, 0.032, 0.064], number),
        experts=experts,
        granularity=granularity,
        shared=shared,
    )
    law = Law(form="joint", parameters=TRUTH, rmse=0, domain={}, source="truth")
    loss = law.loss(points) * np.exp(draw.normal(0, 0.002, number))
    ids = tuple(f"run-{place}" for place in range(number))
    return Runs(points=points, loss=loss, ids=ids, repeated=np.zeros(number, bool), counts_embedding=False)


@pytest.fixture(scope="module")
def fitted():
    return fit(runs(), "joint", bootstraps=60, holdout=0.15)


@pytest.fixture
def drawn(monkeypatch):
    """The labels of every line with one, in place of the pictures themselves: they take most of the time."""
    labels = []
    plot = Axes.plot

    def kept(self, *values, **options):
        labels.append(options.get("label"))
        return plot(self, *values, **options)

    monkeypatch.setattr(Axes, "plot", kept)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, out, **options: out.write(PNG))
    return labels


def test_the_report_of_a_fit_is_one_file_with_all_it_shows(fitted, tmp_path, drawn):
    path = tmp_path / "fit.html"
    assert write_report(fitted, path, comparison=compare(fitted.runs, 0.15), **SMALL) == [path]
    page = Page(path.read_text())
    assert not page.open
    assert page.headings == [
        "The law",
        "Fit against data",
        "What the fit leaves over",
        "Hold-out",
        "Which form the runs support",
        "The compute optimum",
        "At equal memory",
        "Equal loss: memory against training compute",
    ]
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert all(image["alt"] for image in page.images)
    assert len(page.images) == 2 + 5 + 1 + 3 + 3 + 3  # a panel of residuals for each of five columns
    assert "http" not in path.read_text()
    assert {"dense", "E = 2", "E = 4", "E = 8"} <= {*drawn}


def test_the_report_tells_constants_errors_domain_and_assumptions(fitted, tmp_path, drawn):
    write_report(fitted, tmp_path / "fit.html", **SMALL)
    page = Page((tmp_path / "fit.html").read_text())
    cells = {row[0]: row[1:] for row in page.rows if row}
    low, high = fitted.law.parameter_interval("alpha")
    assert cells["alpha"][:2] == [f"{fitted.law.parameters['alpha']:.4f}", f"{low:.4g} to {high:.4g}"]
    assert cells["active parameters"] == ["3 M", "24 M"]
    for number in (fitted.rmse, fitted.mae, fitted.holdout.rmse, fitted.holdout.mae):
        assert f"{number:.4f}" in page.text
    assert fitted.law.formula in page.text
    assert "leaves the embedding out" in page.text
    assert "60 bootstrap samples" in page.text


def test_a_published_law_has_the_same_curves_and_names_its_prior(tmp_path, drawn):
    law = published("paper-joint")
    write_report(law, tmp_path / "law.html")
    page = Page((tmp_path / "law.html").read_text())
    assert page.headings == [
        "The law",
        "The compute optimum",
        "At equal memory",
        "Equal loss: memory against training compute",
    ]
    assert "Assumed, not measured" in page.text
    assert law.prior in page.text
    assert "the RMSE stands in" in page.text
    compared = [row for row in page.rows if row and row[0].endswith((" GB", " MB"))]
    assert all(float(row[7]) > law.rmse for row in compared[1:])  # the paper: mixtures win at equal memory


def test_pictures_are_written_beside_the_page_on_request(tmp_path):
    written = write_report(published("chinchilla"), tmp_path / "law.html", pngs=True)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*written}
    assert len(written) == 1 + 9
    for path in written[1:]:
        assert path.parent.name == "law-pictures"
        assert path.read_bytes().startswith(PNG)
        assert path.stat().st_size > 8000


def test_runs_in_which_knobs_do_not_vary_have_a_report_too(tmp_path, drawn):
    found = fit(runs(30, experts=8, granularity=8, shared=1), "chinchilla")
    write_report(found, tmp_path / "fit.html", **SMALL)
    page = Page((tmp_path / "fit.html").read_text())
    assert len(page.images) == 2 + 2 + 3 + 3 + 3
    assert "Hold-out" not in page.headings
    assert "beats the dense model" not in page.text
    assert {*drawn} >= {"E = 8"}
    assert "dense" not in drawn


def test_runs_that_repeat_data_are_told_apart(tmp_path, drawn):
    table = runs()
    found = fit(replace(table, repeated=np.arange(60) < 20), "chinchilla")
    write_report(found, tmp_path / "fit.html", **SMALL)
    page = Page((tmp_path / "fit.html").read_text())
    assert "Runs that repeat data" in page.headings
    assert "20 runs" in page.text


def test_names_from_a_table_are_text(fitted, tmp_path, drawn):
    table = replace(fitted.runs, notes=("column <script>alert(1)</script> & co",))
    write_report(replace(fitted, runs=table), tmp_path / "fit.html", **SMALL)
    html = (tmp_path / "fit.html").read_text()
    assert "<script>" not in html
    assert "column <script>alert(1)</script> & co" in Page(html).text


def test_a_vocabulary_that_no_model_of_the_domain_can_have_is_said(fitted, tmp_path, drawn):
    whole = replace(fitted, law=replace(fitted.law, counts_embedding=True))
    write_report(whole, tmp_path / "fit.html", vocab_size=10_000_000)
    page = Page((tmp_path / "fit.html").read_text())
    assert "members of the family with a vocabulary of 10,000,000 must lie there" in page.text
    assert "The compute optimum" not in page.headings


def test_without_matplotlib_the_extra_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"mobilemoe\[scaling\]"):
        write_report(published("paper-E"), tmp_path / "law.html")
    assert not [*tmp_path.iterdir()]
