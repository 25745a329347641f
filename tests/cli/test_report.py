"""`mobilemoe report` makes a page, a card and one JSON object of what `mobilemoe eval` wrote."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mobilemoe.cli.report import report
from mobilemoe.errors import DataError, UsageError
from mobilemoe.evaluate.results.results import write_results
from report_results import FOURTEEN, results

app = typer.Typer()
app.command()(report)
FEW = ["hellaswag", "piqa", "siqa"]  # their pictures are quick


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_results(results("nano", score=0.5, without={*FOURTEEN} - {*FEW}), "nano.json")
    write_results(results("dense", score=0.2, flops=5e7, without={*FOURTEEN} - {*FEW}), "dense.json")
    return tmp_path


def call(*arguments):
    ended = CliRunner().invoke(app, [*map(str, arguments)])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


def test_a_page_and_its_pictures_are_written(files):
    ended = call("nano.json", "dense.json", "--json")
    values = json.loads(ended.stdout.splitlines()[-1])
    assert values["written"][0] == "report.html"
    assert {str(path.relative_to(files)) for path in files.rglob("*.*")} == {
        *values["written"],
        "nano.json",
        "dense.json",
    }
    assert {*values["averaged"]} == {*FEW}
    assert values["metric"] == "accuracy"
    assert values["fronts"]["flops"] == ["nano"]
    assert values["models"]["dense"]["flops_per_token"] == 5e7
    assert values["models"]["nano"]["average"] > values["models"]["dense"]["average"]
    assert values["models"]["nano"]["average_stderr"] > 0


def test_people_see_the_same(files, monkeypatch):
    monkeypatch.setattr("mobilemoe.evaluate.report.report.write_report", lambda *_, **__: [Path("page.html")])
    arguments = ["nano.json", "dense.json", "--out", "page.html"]
    shown, values = call(*arguments).stdout, json.loads(call(*arguments, "--json").stdout)
    nano = values["models"]["nano"]
    assert f"{100 * nano['average']:.1f} ± {100 * nano['average_stderr']:.1f}" in shown
    assert "0.02 *" in shown
    assert f"average of accuracy over {', '.join(values['averaged'])}" in shown
    assert "written: page.html" in shown


def test_metrics_that_differ_are_averaged_on_request(files):
    write_results(results("nano", without={*FOURTEEN} - {"bbh", "gsm8k", "drop"}), "nano.json")
    arguments = ["nano.json", "--card", "card.md", "--json"]
    values = json.loads(call(*arguments).stdout.splitlines()[-1])
    assert [*values["left_out"]] == ["drop"]
    values = json.loads(call(*arguments, "--average").stdout.splitlines()[-1])
    assert values["left_out"] == {}
    assert values["metric"] == "exact_match and f1"


def test_a_card_alone_needs_no_page(files):
    assert json.loads(call("nano.json", "--card", "card.md", "--json").stdout)["written"] == ["card.md"]
    assert (files / "card.md").read_text().startswith("# nano\n")
    assert not (files / "report.html").exists()


def test_what_is_no_result_is_refused(files):
    (files / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"other\.json"):
        call("nano.json", "other.json")
    with pytest.raises(DataError, match="does not exist"):
        call("none.json")
    with pytest.raises(UsageError, match="one model"):
        call("nano.json", "dense.json", "--card", "card.md")
    assert not (files / "card.md").exists()
    assert call().exit_code == 2
