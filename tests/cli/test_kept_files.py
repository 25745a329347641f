"""A verb writes over what it made itself, and over nothing else: what somebody keeps is named and stays."""

import json

import pytest

from mobilemoe.evaluate.results.results import write_results
from report_results import results


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder with a text that somebody keeps, results of an evaluation and a table of trainings."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text("mine")
    write_results(results("nano"), tmp_path / "nano.json")
    write_results(results("dense"), tmp_path / "dense.json")
    (tmp_path / "runs.csv").write_text("loss,n_active,tokens\n3,1e8,1e9\n")
    return tmp_path / "notes"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report", "nano.json", "--out", "notes"), "is no page"),
        (("report", "nano.json", "--card", "notes"), "holds another text"),
        (("plan", "--memory", "1GB", "--train-flops", "1e21", "--report", "notes"), "is no page"),
        (("plan", "--memory", "1GB", "--train-flops", "1e21", "--png", "notes"), "is no PNG"),
        (("plan", "--memory", "1GB", "--train-flops", "1e21", "--write", "notes"), "exists already"),
        (("fit", "runs.csv", "--report", "notes"), "is no page"),
        (("fit", "runs.csv", "--out", "notes"), "is no law"),
        (("fit", "runs.csv", "--out", "runs.csv"), "is no law"),
        (("bench", "nano", "--png", "notes"), "is no PNG"),
        (("info", "nano", "--routing", "Hi", "--png", "notes"), "is no PNG"),
    ],
)
def test_a_file_of_somebody_else_is_not_replaced(fails, kept, arguments, words):
    table = (kept.parent / "runs.csv").read_bytes()
    assert words in fails(2, *arguments)
    assert kept.read_text() == "mine"
    assert (kept.parent / "runs.csv").read_bytes() == table


def test_the_file_of_another_device_is_not_replaced(fails, kept):
    (kept.parent / "box.toml").write_text('name = "phone"\n')
    assert "is no device box" in fails(2, "profile", "device", "--name", "box", "--out", "box.toml")
    assert (kept.parent / "box.toml").read_text() == 'name = "phone"\n'


def test_what_a_verb_made_is_made_again(mobilemoe_cli, fails, kept):
    for names in (["nano.json"], ["nano.json", "dense.json"]):
        assert mobilemoe_cli("report", *names, "--out", "page.html").status == 0
    for _ in range(2):
        assert mobilemoe_cli("report", "nano.json", "--card", "CARD.md").status == 0
        limits = ("--memory", "1GB", "--train-flops", "1e21")
        assert mobilemoe_cli("plan", *limits, "--report", "plan.html", "--png", "plan.png").status == 0
    assert "dense" in (kept.parent / "page.html").read_text()
    assert "holds another text" in fails(2, "report", "dense.json", "--card", "CARD.md")
    assert json.loads((kept.parent / "nano.json").read_text())["model"]["name"] == "nano"
