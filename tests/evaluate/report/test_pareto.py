"""The report averages only what is alike, marks the front, and shows the paper's points only where they can stand."""

import random
import re
import sys
from dataclasses import replace
from math import sqrt

import pytest
from matplotlib.axes import Axes

from mobilemoe.errors import MissingExtraError, UsageError
from mobilemoe.evaluate.report.pareto import average, front, fronts, in_common, labels, main_score
from mobilemoe.evaluate.report.report import write_report
from mobilemoe.paper import S_BASE_ZERO_SHOT, average_marks, s_base_mark
from refusals import refusal
from report_results import FOURTEEN, ZERO_SHOT, results

ACCURACIES = {"hellaswag", "piqa", "siqa", "winogrande", "mmlu", "arc_easy", "arc_challenge", "openbookqa", "boolq"}
PNG = b"\x89PNG\r\n"


@pytest.fixture
def drawn(monkeypatch):
    """For each panel the labels of what is drawn in it, in place of the pictures: they take most of the time."""
    panels: dict[int, list[str]] = {}

    def keeping(draw):
        def kept(self, *values, **options):
            panels.setdefault(id(self), []).append(options.get("label"))
            return draw(self, *values, **options)

        return kept

    for name in ("plot", "errorbar", "step"):
        monkeypatch.setattr(Axes, name, keeping(getattr(Axes, name)))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, out, **options: out.write(PNG))
    return panels


def write(tmp_path, every, **options):
    """The page's text, without its tags."""
    written = write_report(every, tmp_path / "report.html", **options)
    return re.sub(r"<[^>]*>", " ", written[0].read_text())


# Numbers


def test_the_front_is_what_no_other_beats():
    draw = random.Random(0)
    points = {str(place): (draw.randrange(20), draw.randrange(20) / 20) for place in range(60)}
    kept = front(points)
    assert [points[label][0] for label in kept] == sorted(points[label][0] for label in kept)
    for label, (cost, score) in points.items():
        beaten = any((c < cost and s >= score) or (c <= cost and s > score) for c, s in points.values())
        assert (label in kept) == (not beaten)


def test_equals_are_on_the_front_together():
    assert front({"a": (1, 0.5), "b": (1, 0.5), "c": (1, 0.4), "d": (2, 0.5)}) == ["a", "b"]
    assert front({}) == []


def test_accuracies_are_averaged_and_other_metrics_are_not_unless_asked():
    every = {"a": results("a"), "b": results("b")}
    mean, left_out = average(every)
    assert (mean.metric, {*mean.benchmarks}) == ("accuracy", ACCURACIES)
    assert {*left_out} == {*FOURTEEN} - ACCURACIES
    assert left_out["drop"] == "f1 is not averaged with accuracy unless --average asks for it"
    mean, left_out = average(every, mixed=True)
    assert (mean.metric, {*mean.benchmarks}, left_out) == ("accuracy and exact_match and f1", {*FOURTEEN}, {})


def test_the_mean_and_its_error_are_those_of_the_main_metrics():
    every = {"a": results("a")}
    mean, _ = average(every)
    scores = [main_score(every["a"], name) for name in ACCURACIES]
    assert mean.scores["a"].value == pytest.approx(sum(score.value for score in scores) / 9)
    assert mean.scores["a"].stderr == pytest.approx(sqrt(sum(score.stderr**2 for score in scores)) / 9)
    rows = every["a"].results
    unknown = replace(every["a"], results=rows | {"piqa": rows["piqa"] | {"acc_norm_stderr": None}})
    assert average({"a": unknown})[0].scores["a"].stderr is None


def test_only_what_all_results_have_alike_is_averaged():
    other = results("b", without=("piqa", "boolq"))
    rows = other.results | {"siqa": other.results["siqa"] | {"shots": 3}}
    every = {"a": results("a"), "b": replace(other, results=rows), "c": results("c", without=("mmlu",))}
    names, reasons = in_common(every)
    assert {*names} == {*FOURTEEN} - {"piqa", "boolq", "siqa", "mmlu"}
    assert reasons["piqa"] == "b has no score: there is no piqa.jsonl"
    assert reasons["mmlu"] == "c has no score: there is no mmlu.jsonl"
    assert reasons["siqa"] == "the shots differ: 0 and 3"


def test_filters_do_not_make_metrics_differ():
    ours = results("a", without=[name for name in FOURTEEN if name not in ("bbh", "gsm8k")])
    row = ours.results["gsm8k"]
    filtered = {"main_metric": "exact_match,strict-match", "exact_match,strict-match": 0.25}
    mean, _ = average({"a": replace(ours, results=ours.results | {"gsm8k": row | filtered})})
    assert (mean.metric, {*mean.benchmarks}) == ("exact_match", {"bbh", "gsm8k"})
    assert mean.scores["a"].value == pytest.approx((ours.results["bbh"]["exact_match"] + 0.25) / 2)
    assert mean.scores["a"].stderr is None


def test_results_without_a_common_benchmark_have_no_average():
    every = {"a": results("a", without=FOURTEEN[1:]), "b": results("b", without=FOURTEEN[:1])}
    mean, reasons = average(every)
    assert mean is None
    assert {*reasons} == {*FOURTEEN}


def test_each_cost_has_a_front_of_the_results_that_know_it():
    every = {
        "slow": results("slow", score=0.6, flops=9e7, size=9e6, ms=None),
        "fast": results("fast", score=0.3, flops=1e7, size=9e6, ms=1.0),
        "poor": results("poor", score=0.1, flops=5e7, size=9.5e6, ms=2.0),
    }
    found = fronts(every, average(every)[0])
    assert found == {"flops": ["fast", "slow"], "bytes": ["slow"], "ms": ["fast"]}


def test_a_model_met_twice_is_told_apart_by_its_files():
    one, two, other = results("nano"), results("nano", ms=3), results("S")
    assert [*labels([("x/a.json", one), ("x/s.json", other)])] == ["nano", "S"]
    named = labels([("a.json", one), ("s.json", other), ("b.json", two)])
    assert named == {"nano (a.json)": one, "S": other, "nano (b.json)": two}
    assert "a.json is given twice" in refusal(lambda: labels([("a.json", one), ("a.json", one)]), UsageError)


# What the paper published


def test_published_points_have_the_papers_numbers_and_our_accounting():
    marks = {mark.name: mark for mark in average_marks()}
    assert len(marks) == 16
    assert (marks["MobileMoE base S"].score, marks["MobileMoE SFT M"].score) == (0.465, 0.553)
    qat = marks["MobileMoE QAT L"]
    assert (qat.score, qat.flops_per_token, qat.int4_bytes, qat.int4) == (0.578, 2 * 921_683_200, 3_004_279_040, True)
    assert [mark.name for mark in marks.values() if mark.int4] == [
        "MobileMoE QAT S",
        "MobileMoE QAT M",
        "MobileMoE QAT L",
        "MobileLLM-Pro INT4",
    ]
    # The claim of the paper's summary: S at a quarter of the FLOPs of its dense rival.
    assert marks["MobileLLM-Pro"].flops_per_token / marks["MobileMoE base S"].flops_per_token == pytest.approx(4, 0.02)
    assert marks["Gemma-3-270M"].int4_bytes == pytest.approx(151e6, rel=0.01)


def test_the_zero_shot_rows_are_of_benchmarks_that_the_suite_has():
    assert {*S_BASE_ZERO_SHOT} == {*ZERO_SHOT} <= {*FOURTEEN}
    assert s_base_mark("hellaswag").score == 0.589
    assert s_base_mark("mmlu") is None


# The page


def test_the_published_averages_stand_beside_the_same_fourteen_only(tmp_path, drawn):
    every = {"nano": results("nano"), "S": results("S", flops=5e8, size=7e8, ms=20)}
    text = write(tmp_path, every, mixed=True)
    panels = [{*labels} for labels in drawn.values()]
    assert sum("Gemma-3-270M" in labels for labels in panels) == 2  # over FLOPs and bytes: it has no speed
    assert sum("MobileMoE QAT (S, M, L)" in labels for labels in panels) == 2
    assert "not with this harness" in text
    assert "average of 14" in text

    drawn.clear()
    text = write(tmp_path, every)
    assert "left off" in text
    assert "this one is over 9 of them" in text
    assert "average of 14" not in text
    assert not any("Gemma-3-270M" in labels for labels in drawn.values())


def test_single_benchmarks_have_the_papers_point_where_both_are_zero_shot(tmp_path, drawn):
    nano = results("nano")
    rows = {"piqa": {"shots": 5}, "siqa": {"note": "one choice fewer than upstream"}}
    rows = {name: nano.results[name] | change for name, change in rows.items()}
    text = write(tmp_path, {"nano": replace(nano, results=nano.results | rows)})
    marked = sum("MobileMoE base (S)" in labels for labels in drawn.values())
    assert marked == 2 * (len(ZERO_SHOT) - 2)  # over FLOPs and over bytes
    assert "siqa: one choice fewer than upstream" in text


def test_the_front_is_drawn_where_there_is_one(tmp_path, drawn):
    poor = results("poor", score=0.2, flops=5e7, size=5e7, ms=9)
    write(tmp_path, {"good": results("good", score=0.8), "poor": poor})
    assert not any("front of these results" in labels for labels in drawn.values())
    best = results("best", score=0.7, flops=5e8, size=5e8, ms=90)
    write(tmp_path, {"good": results("good", score=0.4), "poor": poor, "best": best})
    assert any("front of these results" in labels for labels in drawn.values())


def test_the_page_is_one_file_that_needs_no_network(tmp_path, drawn):
    page = write_report({"nano": results()}, tmp_path / "report.html")[0].read_text()
    assert set(re.findall(r'(?:src|href)="([^"]{22})', page)) == {"data:image/png;base64,"}
    assert "http" not in page
    assert "<script" not in page
    assert page.count("<img") == 6  # the average and the benchmarks, each over three costs


def test_a_benchmark_without_a_known_cost_has_no_panel(tmp_path, drawn):
    one = results("one", without=FOURTEEN[1:])
    two = results("two", without={*FOURTEEN} - {FOURTEEN[1]}, ms=None)
    write(tmp_path, {"one": one, "two": two})
    # Over FLOPs and bytes a panel each, over milliseconds one; there is no average to draw.
    assert len([labels for labels in drawn.values() if {"one", "two"} & {*labels}]) == 2 + 2 + 1


def test_the_page_tells_scores_errors_and_all_that_was_not_measured(tmp_path, drawn):
    nano = results(without=("mmlu",), limit=200)
    gguf = replace(results("gguf", limit=200), speed={"ms_per_token": None})
    text = write(tmp_path, {"nano": nano, "gguf": gguf})
    row = nano.results["hellaswag"]
    assert f"{100 * row['acc_norm']:.1f} ± {100 * row['acc_norm_stderr']:.1f}" in text
    assert "acc_norm, 0-shot, n 200" in text
    assert f"acc {100 * row['acc']:.1f} ± 1.0" in text
    assert "5*-shot" in text
    assert "the number is our choice" in text
    assert "there is no mmlu.jsonl" in text
    assert "Only the first 200 examples" in text
    assert "1,234 requests" in text
    assert "56 answers" in text
    assert "No measured ms per token is known of gguf" in text
    assert "mobilemoe eval nano --suite foundation --limit 200" in text


def test_names_from_files_are_text(tmp_path, drawn):
    name = "<b>$x$</b>"
    written = write_report(labels([("a.json", results(name))]), tmp_path / "report.html")
    assert "<b>" not in written[0].read_text()
    assert "&lt;b&gt;$x$&lt;/b&gt;" in written[0].read_text()


def test_pictures_are_written_beside_the_page(tmp_path):
    names = [r"nano $\frac$", "S$"]  # formulas to matplotlib, the first a broken one
    every = {name: results(name, without=FOURTEEN[2:], ms=None if name == "S$" else 1) for name in names}
    written = write_report(every, tmp_path / "report.html")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*written}
    assert [path.name for path in written[1:4]] == ["average-flops.png", "average-bytes.png", "average-ms.png"]
    for path in written[1:]:
        assert path.parent.name == "report-pictures"
        assert path.read_bytes().startswith(PNG)
        assert path.stat().st_size > 8000


def test_without_matplotlib_the_extra_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"mobilemoe\[eval\]"):
        write_report({"nano": results()}, tmp_path / "report.html")
    assert not [*tmp_path.iterdir()]
