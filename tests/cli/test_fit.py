"""`mobilemoe fit`: from a table to a law, in print, as JSON and as a file that others read."""

import csv

import numpy as np
import pytest

from mobilemoe.scaling import Law
from scaling_runs import joint_law, runs_of


@pytest.fixture
def runs_csv(tmp_path):
    """The paper's sweep with plain counts, other people's column names, a bad row and a few repeated runs."""
    runs = runs_of(joint_law(), noise=0.002)
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["Name", "Training_Loss", "n_active", "tokens", "experts", "granularity", "shared", "repeated"])
        p = runs.points
        for place in range(len(runs)):
            count = [p.n_active[place] * 1e9, p.tokens[place] * 1e9, p.experts[place]]
            knobs = [p.granularity[place], p.shared[place], int(place % 7 == 0)]
            writer.writerow([f"r{place}", runs.loss[place], *count, *knobs])
        writer.writerow(["bad", "nan", 1e9, 1e9, 1, 1, 0, 0])
    return path


COLUMNS = ["--columns", "loss=Training_Loss, id=Name"]


def test_fit_gives_the_law_its_errors_and_what_was_left_out(mobilemoe_cli, runs_csv, tmp_path):
    out = tmp_path / "law.json"
    call = ["fit", runs_csv, *COLUMNS, "--bootstraps", 60, "--json", "--out", out]
    values = mobilemoe_cli(*call).json
    assert values["law"] == "joint"
    assert values["runs"] == 180
    assert values["repeated"]["runs"] == 30
    for name, value in values["parameters"].items():
        low, high = values["intervals"][name]
        assert low <= high
        assert low - (high - low) < value < high + (high - low)
    assert 0 < values["rmse"] < 0.004
    assert 0 < values["holdout"]["mae"] <= values["holdout"]["rmse"] < 0.01
    assert values["resamples"] == 60
    assert values["failed_resamples"] == 0
    assert values["weak_prior"] == Law.load(out).weak_prior != ""
    assert any("loss is not a number above 0" in note for note in values["notes"])
    law = Law.load(out)
    assert law.parameters == values["parameters"]
    assert law.samples.shape == (values["resamples"], 12)
    low, high = law.interval(runs_of(joint_law()).points)
    assert np.all(low < high)


def test_fit_prints_the_same_for_people(mobilemoe_cli, runs_csv):
    call = ["fit", runs_csv, *COLUMNS, "--bootstraps", 30]
    values, ended = mobilemoe_cli(*call, "--json").json, mobilemoe_cli(*call)
    assert ended.status == 0
    for text in (
        values["formula"],
        f"{values['parameters']['A']:.4f}",
        f"RMSE {values['rmse']:.4f}",
        f"RMSE {values['holdout']['rmse']:.4f}",
        "90% interval",
        "fitted apart",
        "1 run left out",
        "n_active 0.3 to 0.9",
    ):
        assert text in ended.out, text


def marked(tmp_path, words=("yes", "no")):
    """A table whose column held_out marks the 30 runs of 100 B tokens at one size, with one wild run."""
    runs = runs_of(joint_law(), noise=0.002)
    p = runs.points
    rows = ["id,loss,n_active,tokens,experts,granularity,shared,held_out"]
    for place, loss in enumerate(runs.loss):
        held = p.tokens[place] == 100 and p.n_active[place] != 0.5
        values = [p.n_active[place], p.tokens[place], p.experts[place], p.granularity[place], p.shared[place]]
        rows.append(",".join(map(str, [f"r{place}", loss * (1.4 if place == 20 else 1), *values, words[not held]])))
    path = tmp_path / "marked.csv"
    path.write_text("\n".join(rows))
    return path


def test_the_runs_that_the_column_held_out_marks_are_those_predicted(mobilemoe_cli, tmp_path):
    call = ["fit", marked(tmp_path), "--bootstraps", 0, "--out", tmp_path / "law.json"]
    held = mobilemoe_cli(*call, "--json").json["holdout"]
    assert held["registered"]
    assert len(held["ids"]) == 28
    assert held["split"] == "28 runs registered by the column held_out, by a fit to 182 others"
    law = Law.load(tmp_path / "law.json")
    assert (law.forecast_rmse, law.forecast_split) == (held["rmse"], held["split"])
    other = mobilemoe_cli("fit", marked(tmp_path), "--bootstraps", 0, "--holdout", 0.1, "--json").json["holdout"]
    assert not other["registered"]
    assert other["ids"] != held["ids"]


def test_without_outliers_both_fits_are_shown(mobilemoe_cli, tmp_path):
    call = ["fit", marked(tmp_path), "--bootstraps", 0, "--without-outliers"]
    values, shown = mobilemoe_cli(*call, "--json").json, mobilemoe_cli(*call).out
    assert values["left_out"] == ["r20"]
    assert (values["runs"], values["with_outliers"]["runs"]) == (209, 210)
    assert values["rmse"] < 0.1 * values["with_outliers"]["rmse"]
    assert "left out above: r20; with it: RMSE" in shown
    assert f"{values['with_outliers']['parameters']['A']:.4f}" in shown


def test_compare_shows_laws_and_rivals_the_best_first(mobilemoe_cli, runs_csv):
    call = ["fit", runs_csv, *COLUMNS, "--law", "chinchilla", "--bootstraps", 0, "--compare", "--json"]
    rows = mobilemoe_cli(*call).json["compared"]
    assert {"joint", "chinchilla", "paper-E", "constant", "log-linear"} <= {row["name"] for row in rows}
    assert [row["bic"] for row in rows] == sorted(row["bic"] for row in rows)
    assert rows[0]["name"] == "joint"


def test_chinchillas_constants_are_printed_in_plain_counts_too(mobilemoe_cli, runs_csv):
    call = ["fit", runs_csv, *COLUMNS, "--law", "chinchilla", "--bootstraps", 0, "--holdout", 0]
    values, shown = mobilemoe_cli(*call, "--json").json, mobilemoe_cli(*call).out
    assert f"plain counts: {values['plain_counts']['A']:.4g} N^" in shown
    assert (values["intervals"], values["holdout"]) == ({}, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "it has Name, Training_Loss"),
        (["--columns", "loss"], "OURS=THEIRS"),
        (["--columns", "loss=x,loss=y"], "twice"),
        (["--columns", "loss=nothing"], "'nothing'"),
        ([*COLUMNS, "--law", "linear"], "chinchilla"),
        ([*COLUMNS, "--bootstraps", "-1"], "--bootstraps"),
        ([*COLUMNS, "--holdout", "0.9"], "--holdout"),
        ([*COLUMNS, "--holdout", "nan"], "--holdout"),
        ([*COLUMNS, "--seed", "-1"], "--seed"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_wrong_usage_ends_with_2_and_the_mend(fails, runs_csv, options, words):
    assert words in fails(2, "fit", runs_csv, *options)


def test_what_cannot_be_fitted_ends_with_1(fails, tmp_path):
    assert "does not exist" in fails(1, "fit", tmp_path / "none.csv")
    (tmp_path / "few.csv").write_text("loss,n_active,tokens\n2,1,1\n3,2,2\n4,3,3\n")
    assert "3 runs" in fails(1, "fit", tmp_path / "few.csv", "--law", "chinchilla")
