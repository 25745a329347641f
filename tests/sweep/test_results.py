"""The committed sweeps: each table is its grid's, gives the committed laws, and docs/scaling.md says what it says."""

import csv
import runpy

import numpy as np
import pytest

from mobilemoe.scaling import Law, fit, read_runs
from mobilemoe.scaling.law.compare import compare
from mobilemoe.sweep.grid import load_grid
from mobilemoe.sweep.runs import grid_runs
from places import RECIPES, ROOT

SWEEP = RECIPES / "sweep"
THIRD = SWEEP / "third"
FOURTH = SWEEP / "fourth"
FIFTH = SWEEP / "fifth"
SIXTH = SWEEP / "sixth"
LAWS = {"law.json": ("*-dense-*", "*-e8g8s0-*"), "law-from-25M.json": ("*-dense-t[!1]*", "*-e8g8s0-t[!1]*")}


def words(path):
    return " ".join(path.read_text(encoding="utf-8").replace("**", "").split())


WORDS = words(ROOT / "docs" / "scaling.md")
THIRD_WORDS = words(THIRD / "README.md")


def rows(name, folder=SWEEP):
    with (folder / name).open(newline="") as handle:
        return list(csv.DictReader(handle))


def said(value, digits=4):
    """As the docs write it: without the zero."""
    return f"{value:.{digits}f}".replace("0.", ".", 1)


def signed(value):
    return "missing" if value is None else f"{value:+.3f}".replace("0.", ".", 1)


def test_every_run_is_one_of_the_grid_and_its_forecast_was_registered_by_the_rule():
    grid = load_grid(SWEEP / "grid.toml")
    runs = {run.id: run for run in grid_runs(grid)}
    table = rows("runs.csv")
    assert len(table) == 81
    for row in table:
        assert runs[row["id"]].key == row["key"]
        above = 6 * int(row["n_active"]) * int(row["tokens"]) > grid.scaling.held_out_above
        assert row["held_out"] == str(int(above))
    trials = load_grid(SWEEP / "grid.toml", ("train.learning_rate=4.2e-3", "scaling.width_exponent=0.75"))
    keys = {run.id: run.key for run in grid_runs(trials)}
    assert all(keys[row["id"]] == row["key"] for row in rows("rates.csv"))


@pytest.mark.parametrize("name", LAWS)
def test_the_table_gives_the_committed_law_and_the_docs_its_errors(name):
    law = Law.load(SWEEP / name)
    found = fit(read_runs(SWEEP / "runs.csv", only=LAWS[name]), "paper-E", holdout=None)
    assert found.holdout.registered
    assert law.rmse == pytest.approx(found.rmse, abs=2e-4)
    assert law.forecast_rmse == pytest.approx(found.holdout.rmse, abs=5e-4)
    assert law.domain == found.law.domain
    points = found.runs.points
    np.testing.assert_allclose(law.loss(points), found.law.loss(points), atol=1e-3)
    errors = f"{said(law.rmse)} | {said(law.forecast_rmse)} over {len(found.holdout.ids)} |"
    assert f"| {len(found.runs)} | {errors}" in WORDS


def test_the_registered_law_beats_its_plain_rivals():
    table = compare(read_runs(SWEEP / "runs.csv", only=LAWS["law.json"]))
    law = next(row for row in table if row.name == "paper-E")
    rivals = {row.name: row for row in table if row.rival}
    assert rivals.keys() >= {"constant", "log-linear"}
    for row in rivals.values():
        assert law.holdout_rmse < row.holdout_rmse
        assert said(row.holdout_rmse) in WORDS


def test_documents_add_up_to_the_losses_and_findings_are_as_the_docs_say():
    findings = runpy.run_path(str(SWEEP / "findings.py"))
    documents = findings["Documents"](rows("documents.csv"))
    for row in rows("runs.csv"):
        loss, _ = documents.jackknife(documents.nats(row["id"]))
        assert loss == pytest.approx(float(row["loss"]), abs=1e-5)
    found = findings["everything"]()
    differences = {row["model"]: signed(row["difference"]) for row in found["findings"] if row["model"].endswith("s0")}
    shared = {row["model"]: signed(row["difference"]) for row in found["findings"] if row["model"].endswith("s1")}
    experts, finer, helps = (
        [of[f"d256x7-{model}"] for model in models]
        for of, models in (
            (differences, ("e2g8s0", "e4g8s0", "e16g8s0", "e32g8s0")),
            (differences, ("e8g1s0", "e8g2s0", "e8g4s0", "e8g16s0")),
            (shared, ("e4g8s1", "e8g8s1", "e16g8s1")),
        )
    )
    dense = found["twins"]["24.6 M, E = 8 - dense"]["mean"]
    assert "E = 2: {}, 4: {}, 16: {}, 32: {}; dense {} +-".format(*experts, signed(-dense)) in WORDS
    assert "g = 1: {}, 2: {}, 4: {}, 16: {} |".format(*finer) in WORDS
    over = [signed(found["shared_expert"][end]) for end in ("mean", "low", "high")]
    assert "at E = 4: {}, 8: {}, 16: {}; over all six pairs {} ({} to {})".format(*helps, *over) in WORDS
    for place, tokens in enumerate((12.3, 24.6, 49.2, 98.3)):
        cells = " | ".join(signed(values[place]) for values in found["mixtures_gain"].values())
        assert f"| {tokens} M | {cells} |" in WORDS


def keys(grid, *changes):
    return {run.id: run.key for run in grid_runs(load_grid(THIRD / grid, changes))}


def test_every_run_of_the_third_sweep_is_one_of_its_grid():
    grid, table = load_grid(THIRD / "grid.toml"), rows("runs.csv", THIRD)
    assert len(table) == 140
    assert {row["id"]: row["key"] for row in table}.items() <= keys("grid.toml").items()
    for row in table:
        above = 6 * int(row["n_active"]) * int(row["tokens"]) > grid.scaling.held_out_above
        assert row["held_out"] == str(int(above))
    trials = rows("rates.csv", THIRD)
    assert {row["id"]: row["key"] for row in trials}.items() <= keys(
        "grid.toml", "scaling.dense_learning_rate=4.5e-3"
    ).items()
    for order in ("shuffled", "file-order"):
        twins = {row["id"]: row["key"] for row in rows("order.csv", THIRD) if row["order"] == order}
        assert twins == keys("order.toml")
    same = [{row[name] for row in (*table, *trials)} for name in ("device", "torch", "data", "heldout", "code")]
    assert all(len(values) == 1 for values in same)


def test_every_run_of_the_fourth_sweep_is_one_of_its_grid():
    grid, table = load_grid(FOURTH / "grid.toml"), rows("runs.csv", FOURTH)
    assert len(table) == 137
    assert {row["id"]: row["key"] for row in table}.items() <= {run.id: run.key for run in grid_runs(grid)}.items()
    for row in table:
        above = 6 * int(row["n_active"]) * int(row["tokens"]) > grid.scaling.held_out_above
        assert row["held_out"] == str(int(above))
    assert all(len({row[name] for row in table}) == 1 for name in ("device", "torch", "data", "heldout", "code"))


def test_the_fifth_sweep_is_all_of_its_grid_above_every_fitted_run_and_with_new_seeds_but_for_width_256():
    grid, table = load_grid(FIFTH / "grid.toml"), rows("runs.csv", FIFTH)
    assert {row["id"]: row["key"] for row in table} == {run.id: run.key for run in grid_runs(grid)}
    before = [row for folder in (SWEEP, THIRD, FOURTH) for row in rows("runs.csv", folder)]
    assert {row["held_out"] for row in table} == {"1"}
    known = {(row["id"].split("-t")[0], row["seed"]) for row in before}
    assert {width for width, seed in known & {(row["id"].split("-t")[0], row["seed"]) for row in table}} == {
        "d256x7-dense",
        "d256x7-e8g8s0",
    }
    assert all(len({row[name] for row in table}) == 1 for name in ("device", "torch", "data", "heldout", "code"))


def test_the_fifth_sweeps_forecasts_come_from_the_tables_before_it_and_the_docs_say_how_near_they_were():
    found = runpy.run_path(str(FIFTH / "forecast.py"))
    again = found["forecasts"]()
    for row in rows("forecasts.csv", FIFTH):
        assert again[row["id"]] == pytest.approx({name: float(row[name]) for name in again[row["id"]]}, abs=2e-4)

    def error(*column, **chosen):
        values = np.array([*found["errors"](FIFTH / "runs.csv", *column, **chosen).values()])
        mean = f"{values.mean():+.4f}".replace("0.", ".", 1)
        return len(values), said((values**2).mean() ** 0.5), mean, said(abs(values).max())

    for label, chosen in (
        ("`root`, registered", ""),
        ("dense models, 20 runs", "-dense-"),
        ("mixtures (E = 8), 17 runs", "-e8g8s0-"),
        ("the new width, 576 (3 runs)", "d576"),
    ):
        count, *cells = error(only=chosen)
        assert " | ".join((label, *cells)) in WORDS
        assert str(count) in label or count == 37
    beside = [value for name, value in found["errors"](FIFTH / "runs.csv").items() if "d256" not in name]
    assert f"without this width's four runs the RMSE is {said(float(np.mean(np.square(beside)) ** 0.5))}" in WORDS
    rivals = [error(name) for name in ("paper_e", "paper_e_no_embedding")]
    assert "; ".join(rival[1] for rival in rivals) in WORDS
    domains = [error(name, name) for name in ("loss_books", "loss_specs", "loss_code", "loss_textbooks", "loss_docs")]
    for place in (1, 2):
        assert ", ".join(domain[place] for domain in domains) in WORDS


def test_the_dense_rate_of_the_third_sweep_is_the_minimum_of_its_trials():
    losses = {float(row["rate"]): float(row["loss"]) for row in rows("rates.csv", THIRD)}
    half, one, double = (losses[rate] for rate in (0.5, 1, 2))
    minimum = 4.5e-3 * 2 ** ((half - double) / (2 * (half - 2 * one + double)))
    assert load_grid(THIRD / "grid.toml").scaling.dense_learning_rate == float(f"{minimum:.1e}")


@pytest.mark.parametrize(("folder", "text", "counts"), [(THIRD, THIRD_WORDS, (60, 59)), (FOURTH, WORDS, (75, 55))])
def test_the_docs_say_how_the_registered_law_forecast(folder, text, counts):
    forecast = runpy.run_path(str(THIRD / "forecast.py"))
    runs = forecast["read"](folder / "runs.csv")
    known, unseen = runs.part(~runs.held_out_R), runs.part(runs.held_out_R)
    assert (len(known.ids), len(unseen.ids)) == counts
    for name, said_of in (("root (registered)", "`root`, registered | 9"), ("paper-E", "`paper-E` | 9")):
        law, count = forecast["LAWS"][name]
        theta, again = forecast["fit"](law, count, known), forecast["fit"](law, count, runs)
        fitted = forecast["rmse"](law(theta, known) - known.loss_R)
        errors = law(theta, unseen) - unseen.loss_R
        mean = f"{errors.mean():+.4f}".replace("0.", ".", 1)
        everything = forecast["rmse"](law(again, runs) - runs.loss_R)
        cells = (said(fitted), said(forecast["rmse"](errors)), mean, said(everything))
        assert " | ".join((said_of, *cells)) in text


def test_the_docs_say_what_the_fourth_sweep_found():
    found = runpy.run_path(str(FOURTH / "findings.py"))
    rmse, root = found["FORECAST"]["rmse"], found["ROOT"]
    errors = found["forecasts"]()
    law = {name: said(rmse(laws[root])) for name, laws in errors.items()}
    paper = {name: said(rmse(laws["paper-E"])) for name, laws in errors.items()}
    body = ", N without embedding"
    for sentence, names in (
        ("mixtures alone | 5; 5 | | {}; {} |", ("dense alone", "mixtures alone")),
        ("from 24.6 M tokens on within {},", ("fourth, then second",)),
        ("forecasts the fourth's 55 larger ones within {}.", ("second's smaller, then fourth's larger",)),
        ("forecasts within {} (dense", (f"all{body}",)),
        ("(dense alone {}, mixtures alone {})", (f"dense alone{body}", f"mixtures alone{body}")),
        ("width 128 it has {}, and with both {}", ("without width 128", f"without width 128{body}")),
        ("78 forecast: {}; with N without the embedding {})", ("second and fourth", f"second and fourth{body}")),
        ("98.3 M within {}, up to", ("24.6 to 68.8 M tokens, then 98.3 M",)),
        ("up to 49.2 M within {};", ("24.6 to 49.2 M tokens, then 98.3 M",)),
        ("for books, {} for textbooks, {} for specifications, {} for code", ("textbooks", "specs", "code")),
    ):
        assert sentence.format(*(law[name] for name in names)) in WORDS
    domains = ", ".join(paper[name] for name in ("books", "textbooks", "specs", "code", "docs"))
    assert f"(`paper-E`: {domains})" in WORDS
    fitted = found["fitted_to_all"]()
    _, left, k = fitted["this N, second and fourth"]
    assert f"the k that they give ({said(k, 2)}; it leaves {said(left)})" in WORDS
    shapes = said(fitted["N"][2], 2), said(fitted["N without embedding"][2], 2)
    assert "{} for all 130 ({} with N without the embedding)".format(*shapes) in WORDS
    apart = np.concatenate([errors[f"{arm} alone{body}"][root] for arm in ("dense", "mixtures")])
    assert f"dense models and mixtures apart ({said(rmse(apart))} together)" in WORDS
    for arm, label in (("dense", "dense"), ("e8g8s0", "E = 8")):
        cells = [said(found["noise"](arm, (tokens,))[0]) for tokens in found["TOKENS"]]
        assert f"| {label} | {' | '.join((*cells, said(found['noise'](arm)[0])))} |" in WORDS
    for tokens in found["TOKENS"]:
        gaps = [found["gap"](model, tokens, model, tokens) for model in found["MODELS"]]
        cells = " | ".join(signed(pair[0]) for pair in gaps if pair)
        assert f"| {tokens / 1e6:.1f} M | {cells} |" in WORDS
    knobs = {name: f"{signed(middle)} +- {said(half, 3)}" for name, (middle, half) in found["knobs"]().items()}
    assert f"| dense: {knobs['dense']}, E = 2: {knobs['e2g8s0']}, 16: {knobs['e16g8s0']} | E = 2:" in WORDS
    assert f"| g = 1: {knobs['e8g1s0']} | g = 1:" in WORDS
    assert f"| at E = 8: {knobs['e8g8s1']} | at E = 4:" in WORDS


def test_the_sixth_sweep_is_all_of_its_grid_and_the_docs_say_what_it_found():
    runs = {run.id: run.key for run in grid_runs(load_grid(SIXTH / "grid.toml"))}
    assert {row["id"]: row["key"] for row in rows("runs.csv", SIXTH)} == runs
    found = runpy.run_path(str(SIXTH / "findings.py"))["differences"]()
    assert {(difference.seeds, said(difference.half, 3)) for difference in found.values()} == {(4, ".008")}
    means = {name: signed(difference.mean) for name, difference in found.items()}
    for sentence, names in (
        ("| dense: {}, E = 2: {}, 4: {}, 16: {}, 32: {} |", ("dense", "e2g8s0", "e4g8s0", "e16g8s0", "e32g8s0")),
        ("| g = 1: {}, 2: {}, 4: {}, 16: {} |", ("e8g1s0", "e8g2s0", "e8g4s0", "e8g16s0")),
        ("| at E = 8: {}, at E = 16: {} |", ("e8g8s1", "e16g8s1")),
    ):
        assert sentence.format(*(means[name] for name in names)) in WORDS
    assert {name for name, difference in found.items() if not difference.shown} == {"e8g4s0", "e8g8s1"}


def test_the_third_report_says_what_that_sweep_found():
    found = runpy.run_path(str(THIRD / "findings.py"))
    errors = found["forecasts"]()
    assert f"within {said(errors['dense alone']['root (registered)'])} (bias" in THIRD_WORDS
    assert f"For mixtures alone it has {said(errors['mixtures alone']['root (registered)'])}," in THIRD_WORDS
    assert f"Mixtures cause {found['shares']()['experts 8'][0]:.0%}" in THIRD_WORDS
    lengths = [tokens for tokens in found["TOKENS"] if tokens not in found["NOISE_OF"]]
    for name, arm, column in (
        ("dense", "dense", "loss"),
        ("E = 8", "e8g8s0", "loss"),
        ("E = 8, code", "e8g8s0", "loss_code"),
        ("E = 8, books", "e8g8s0", "loss_books"),
    ):
        cells = " | ".join(said(found["noise"](arm, tokens, column)[0]) for tokens in lengths)
        assert f"| {name} | {cells} |" in THIRD_WORDS
    for tokens in lengths:
        gaps = [found["gap"](model, tokens, model, tokens) for model in found["MODELS"]]
        cells = " | ".join(signed(pair[0]) for pair in gaps if pair)
        assert f"| {tokens / 1e6:.1f} M | {cells} |" in THIRD_WORDS
    for _, tokens, _, dense_tokens, _, (gap, half) in found["equal_bytes"]():
        if tokens != dense_tokens:
            lengths_of_both = f"({tokens / 1e6:.1f}, {dense_tokens / 1e6:.1f})"
            assert f"{signed(gap)} +- {said(half, 3)} {lengths_of_both}" in THIRD_WORDS
    dense, mixtures = (
        ", ".join(said(gain, 3) for gain in found["gains"](arm, 49_152_000, 98_304_000)) for arm in ("dense", "e8g8s0")
    )
    assert f"{dense} at widths 96 to 192 (dense)" in THIRD_WORDS
    assert f"but {mixtures} (E = 8)" in THIRD_WORDS
    body = {name: laws for name, laws in errors.items() if name.endswith("N without embedding")}
    roots = [said(laws["root (registered)"]) for laws in body.values()]
    assert "`root` has {} for all runs, {} for dense models and {} for mixtures".format(*roots) in THIRD_WORDS
    knobs, _ = found["knobs"]()
    assert (
        "E = 2: {}, 4: {}, 16: {}, 32: {} (+-".format(
            *(signed(knobs[name][0]) for name in ("e2g8s0", "e4g8s0", "e16g8s0", "e32g8s0"))
        )
        in THIRD_WORDS
    )
    spreads = [said(found["order"]()[f"{order} loss"][1]) for order in ("shuffled", "file-order")]
    assert "the standard deviation is {} (95% interval .007 to .032) shuffled and {} ".format(*spreads) in THIRD_WORDS
