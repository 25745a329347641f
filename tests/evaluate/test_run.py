"""The promises of a whole evaluation: lm_eval's own scores in our form, and a kill that changes no digit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mobilemoe.errors import DataError
from places import HELPERS
from tiny_model import write_model

pytest.importorskip("lm_eval")

import datasets
from lm_eval import evaluator
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from mobilemoe.evaluate import run
from mobilemoe.evaluate.models.harness import HarnessModel
from mobilemoe.evaluate.results.results import Results, read_results, save_results

WORDS = [f"{first}{last}" for first in ("ma", "ri", "to", "se") for last in ("ll", "ver", "wn", "a", "nd")]
BENCHMARKS = [
    SimpleNamespace(name="mills", metric="acc_norm", shots=0, published=True, chat=False, note=""),
    SimpleNamespace(name="places", metric="acc", shots=2, published=False, chat=False, note=""),
    SimpleNamespace(name="sands", metric="exact_match", shots=0, published=False, chat=False, note=""),
    SimpleNamespace(name="lost", metric="acc", shots=0, published=True, chat=False, note=""),
]


def make_task(name: str, count: int, **config) -> ConfigurableTask:
    def load(**_):
        draw = random.Random(name)
        documents = [
            {
                "question": " ".join(draw.choices(WORDS, k=8)),
                "choices": [" ".join(draw.choices(WORDS, k=draw.randint(1, 4))) for _ in range(3)],
                "gold": draw.randrange(3),
            }
            for _ in range(count)
        ]
        return {"test": datasets.Dataset.from_list(documents)}

    shared = {"task": name, "custom_dataset": load, "test_split": "test", "doc_to_text": "{{question}}"}
    return ConfigurableTask(config={**shared, "num_fewshot": 0, "metadata": {"version": 2.0}, **config})


def mean(metric: str) -> dict:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def choose(name: str, count: int, shots: int = 0) -> ConfigurableTask:
    config = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    few = {"num_fewshot": shots, "fewshot_split": "test"} if shots else {}
    return make_task(name, count, metric_list=[mean("acc"), mean("acc_norm")], **config, **few)


def write(name: str, count: int) -> ConfigurableTask:
    config = {"output_type": "generate_until", "doc_to_target": "ma", "generation_kwargs": {"max_gen_toks": 6}}
    filters = [{"name": "first", "filter": [{"function": "take_first"}]}]
    return make_task(name, count, metric_list=[mean("exact_match")], filter_list=filters, **config)


def our_tasks(*_):
    """Replaces a suite's tasks: one of choices, a group of two of unlike size, one of writing, one without data."""
    group = [choose("rivers", 30, shots=2), choose("towns", 5, shots=2)]
    return {"mills": choose("mills", 40), "places": group, "sands": write("sands", 9)}, {
        "lost": "there is no lost.jsonl"
    }


def evaluate(folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, **options) -> Results:
    """Our tasks on the model in `folder`; results, examples and what is kept go into `scratch`."""
    monkeypatch.setattr(run, "find_benchmarks", lambda *_: tuple(BENCHMARKS))
    monkeypatch.setattr(run, "build_tasks", our_tasks)
    model = HarnessModel(folder, threads=1, cache_dir=scratch / "kept")
    results, examples = run.evaluate(model, run.prepare("ours"), **options)
    save_results(results, examples, scratch, "results")
    return replace(results, examples="results.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("run") / "model", seed=3)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The folder of an evaluation that nothing disturbed, and its results."""
    scratch = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        return scratch, evaluate(folder, scratch, patch)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_are_those_of_lm_eval(folder, whole):
    tasks, _ = our_tasks()
    single = tasks["mills"]
    model, only_ours = HarnessModel(folder, threads=1), TaskManager(include_defaults=False)
    found = evaluator.simple_evaluate(model=model, tasks=[single], task_manager=only_ours)["results"]["mills"]
    row = whole[1].results["mills"]
    for metric in ("acc", "acc_norm"):
        assert row[metric] == found[f"{metric},none"]
        assert row[f"{metric}_stderr"] == found[f"{metric}_stderr,none"] > 0
    assert {key: row[key] for key in ("main_metric", "n", "shots", "version", "published")} == {
        "main_metric": "acc_norm",
        "n": 40,
        "shots": 0,
        "version": 2.0,
        "published": True,
    }


def test_a_group_is_scored_over_all_its_examples(whole):
    scratch, results = whole
    row = results.results["places"]
    scores = [line["correct"] for line in lines(scratch / "results.jsonl") if line["benchmark"] == "places"]
    assert len(scores) == row["n"] == 35
    assert row["acc"] == pytest.approx(np.mean(scores))
    assert row["acc"] == pytest.approx((30 * row["parts"]["rivers"]["acc"] + 5 * row["parts"]["towns"]["acc"]) / 35)
    assert row["acc_stderr"] == pytest.approx(np.std(scores, ddof=1) / 35**0.5, rel=0.1)
    assert row["parts"]["towns"]["n"] == 5


def test_a_metric_keeps_the_name_of_its_filter(whole):
    row = whole[1].results["sands"]
    assert row["main_metric"] == "exact_match,first"
    assert row["exact_match,first"] == 0.0
    assert row["exact_match,first_stderr"] == 0.0


def test_a_benchmark_without_data_is_named_and_has_no_score(whole):
    assert whole[1].missing == {"lost": "there is no lost.jsonl"}
    assert whole[1].results.keys() == {"mills", "places", "sands"}


def test_every_example_has_its_line(whole):
    scratch, results = whole
    found = lines(scratch / results.examples)
    assert len({(line["benchmark"], line["id"]) for line in found}) == len(found) == 40 + 35 + 9
    for name, row in results.results.items():
        scores = [line["correct"] for line in found if line["benchmark"] == name]
        assert np.mean(scores) == pytest.approx(row[row["main_metric"]])
    assert all(10 < line["tokens"] < 256 for line in found)
    assert {line["id"].split("/")[0] for line in found if line["benchmark"] == "places"} == {"rivers", "towns"}


def test_answers_cut_short_are_counted_and_the_facts_are_there(whole, folder):
    results = whole[1]
    assert results.counts == {"left_truncations": 0, "token_cap_hits": 9}
    assert results.model["name"] == str(folder)
    assert results.model["int4_bytes"] == (folder / "model.safetensors").stat().st_size
    assert results.model["quantization"] == "int4"
    assert results.engine["activations"] == "int8"
    assert results.engine["threads"] == 1


@pytest.mark.parametrize(("limit", "rivers", "towns"), [(6, 3, 3), (15, 10, 5), (1, 1, 0), (99, 30, 5)])
def test_a_limit_holds_for_a_benchmark_and_is_shared_by_its_tasks(folder, tmp_path, monkeypatch, limit, rivers, towns):
    results = evaluate(folder, tmp_path, monkeypatch, limit=limit)
    ids = [line["id"] for line in lines(tmp_path / "results.jsonl") if line["benchmark"] == "places"]
    assert sorted(ids) == sorted([*(f"rivers/{n}" for n in range(rivers)), *(f"towns/{n}" for n in range(towns))])
    assert results.limit == limit
    assert results.results["mills"]["n"] == min(limit, 40)
    if limit == 1:
        assert results.results["mills"]["acc_stderr"] is None


def test_prompts_are_put_as_conversations_if_asked(folder, whole, tmp_path, monkeypatch):
    plain = whole[1].results["mills"]
    chat = evaluate(folder, tmp_path, monkeypatch, chat=True, limit=5).results["mills"]
    assert chat["n"] == 5
    [first] = [line for line in lines(tmp_path / "results.jsonl") if (line["benchmark"], line["id"]) == ("mills", "0")]
    [same] = [line for line in lines(whole[0] / "results.jsonl") if (line["benchmark"], line["id"]) == ("mills", "0")]
    assert first["tokens"] > same["tokens"] + 5
    assert plain["n"] == 40


def test_only_benchmarks_for_instruct_models_are_put_as_conversations(folder, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(BENCHMARKS[2], "chat", True)
    results = evaluate(folder, tmp_path, monkeypatch).results
    assert {name: row["prompt"] for name, row in results.items()} == {
        "mills": "text",
        "places": "text",
        "sands": "conversation",
    }
    assert results["mills"] == whole[1].results["mills"]
    longer = [line["tokens"] for line in lines(tmp_path / "results.jsonl") if line["benchmark"] == "sands"]
    shorter = [line["tokens"] for line in lines(whole[0] / "results.jsonl") if line["benchmark"] == "sands"]
    assert min(longer) > max(shorter)


def test_standard_output_stays_ours(folder, tmp_path, monkeypatch, capsys):
    evaluate(folder, tmp_path, monkeypatch, limit=2)
    assert capsys.readouterr() == ("", "")


def test_nothing_to_run_is_an_error_that_says_why(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.our_tasks", lambda *_: ({}, {"lost": "there is no lost.jsonl"}))
    with pytest.raises(DataError, match="lost: there is no lost"):
        evaluate(folder, tmp_path, monkeypatch)


def test_results_are_read_as_they_were_written(whole):
    assert read_results(whole[0] / "results.json") == whole[1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda found: found.pop("counts"), "counts"),
        (lambda found: found.update(suite=3), "suite"),
        (lambda found: found["model"].pop("hash"), "hash"),
        (lambda found: found["model"].update(flops_per_token="many"), "flops_per_token"),
        (lambda found: found["speed"].update(ms_per_token=[]), "ms_per_token"),
        (lambda found: found["results"]["mills"].pop("n"), "mills"),
        (lambda found: found["results"]["mills"].update(acc_norm=None), "mills"),
        (lambda found: found["results"].update(mills=[]), "mills"),
        (lambda found: found["results"]["mills"].update(acc_norm=float("nan")), "mills"),
        (lambda found: found["results"]["mills"].update(acc_norm=True, acc=float("inf")), "acc of mills"),
        (lambda found: found["results"]["mills"].update(acc_norm=10**400), "mills"),
        (lambda found: found["results"]["mills"].update(acc=10**400), "acc of mills"),
        (lambda found: found["results"]["mills"].update(acc_norm_stderr="small"), "acc_norm_stderr of mills"),
        (lambda found: found["results"]["mills"].update(acc_norm_stderr=1e308), "acc_norm_stderr of mills"),
        (lambda found: found["results"]["mills"].update(acc_stderr=float("nan")), "acc_stderr of mills"),
        (lambda found: found["results"]["mills"].update(acc_stderr=-0.1), "acc_stderr of mills"),
        (lambda found: found["results"]["mills"].update(main_metric=["acc"]), "main_metric of mills"),
        (lambda found: found["results"]["mills"].update(n="40"), "n of mills"),
        (lambda found: found["results"]["mills"].update(note=None), "note of mills"),
        (lambda found: found["counts"].update(token_cap_hits="9"), "token_cap_hits"),
        (lambda found: found["speed"].update(ms_per_token=float("nan")), "ms_per_token"),
        (lambda found: found["model"].update(int4_bytes=float("inf")), "int4_bytes"),
        (lambda found: found["model"].update(name=None), "name"),
        (lambda found: found["missing"].update(lost=None), "lost"),
        (lambda found: found.update(seconds=float("nan")), "seconds"),
    ],
)
def test_another_file_is_no_results(whole, tmp_path, change, named):
    found = asdict(whole[1])
    found = json.loads(json.dumps(found))
    change(found)
    (tmp_path / "other.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match=named):
        read_results(tmp_path / "other.json")


KILLED = """
import sys
import time
from pathlib import Path

import pytest

sys.path[:0] = sys.argv[1:3]
import test_run
from mobilemoe.evaluate.models import harness
from mobilemoe.evaluate.models.request_cache import RequestCache
harness._TOGETHER = 8
put = RequestCache.put
def slowly(self, results):
    if test_run.kept_requests(scratch) >= most:
        time.sleep(600)  # until it is killed
    put(self, results)
RequestCache.put = slowly
folder, scratch, most = Path(sys.argv[3]), Path(sys.argv[4]), float(sys.argv[5])
with pytest.MonkeyPatch.context() as patch:
    test_run.evaluate(folder, scratch, patch)
"""


def kept_requests(scratch: Path) -> int:
    """How many requests are on disk."""
    return sum(path.read_bytes().count(b"\n") for path in scratch.glob("kept/*/requests.jsonl"))


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_digits(folder, whole, tmp_path):
    call = [sys.executable, "-c", KILLED, str(HELPERS), str(Path(__file__).parent), str(folder), str(tmp_path)]
    total = kept_requests(whole[0])
    for kept in sorted(random.Random(1).sample(range(total // 10, 9 * total // 10), 3)):
        process = subprocess.Popen([*call, str(kept)])
        while kept_requests(tmp_path) < kept and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert kept <= kept_requests(tmp_path) < total
    assert not (tmp_path / "results.json").exists()
    subprocess.run([*call, "inf"], check=True)
    assert kept_requests(tmp_path) == total
    names = ("model", "results", "counts", "missing")
    found = read_results(tmp_path / "results.json")
    assert [getattr(found, name) for name in names] == [getattr(whole[1], name) for name in names]
    assert (tmp_path / "results.jsonl").read_bytes() == (whole[0] / "results.jsonl").read_bytes()
