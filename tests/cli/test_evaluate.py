"""`mobilemoe eval --suite` and what follows it, as people call them: scores, differences, experts, a report."""

import json

import pytest

from mobilemoe.load import Model
from tiny_model import write_model

pytest.importorskip("lm_eval")

FOLDER_OF_TWO = ("hellaswag,boolq", "--data")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve items of each of two benchmarks, in the layout that --data reads."""
    folder = tmp_path_factory.mktemp("data")
    hellaswag = [
        {"query": f"The fox number {n} runs to the", "choices": ["river.", "moon.", "wood.", "town."], "gold": n % 4}
        for n in range(12)
    ]
    passage = "Foxes that live near the river like to eat berries in the summer and small fish in the winter."
    boolq = [
        {"query": f"Passage: {passage}\nQuestion: does fox {n} eat berries?", "choices": ["no", "yes"], "gold": n % 2}
        for n in range(12)
    ]
    for name, items in (("hellaswag", hellaswag), ("boolq", boolq)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "other", seed=7)


@pytest.fixture
def evaluate(mobilemoe_cli, data, tmp_path):
    def call(*arguments):
        suite, option = FOLDER_OF_TWO
        options = ("--suite", suite, option, data, "--out", tmp_path / "results", "--cache", tmp_path / "cache")
        return mobilemoe_cli("eval", *arguments, *options, "--threads", "1")

    return call


def test_a_suite_is_scored_written_and_reported(evaluate, mobilemoe_cli, tiny_folder, tmp_path):
    values = evaluate(tiny_folder, "--json").json
    found = values["suites"][str(tiny_folder)]
    assert {name: row["n"] for name, row in found["results"].items()} == {"hellaswag": 12, "boolq": 12}
    assert found["results"]["hellaswag"]["main_metric"] == "acc_norm"
    path = tmp_path / "results" / f"{tiny_folder.name}-hellaswag-boolq.json"
    assert json.loads(path.read_text())["results"] == found["results"]
    examples = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert len(examples) == 24
    right = [each["correct"] for each in examples if each["benchmark"] == "boolq"]
    assert sum(right) / 12 == pytest.approx(found["results"]["boolq"]["acc"])
    page, card = tmp_path / "page.html", tmp_path / "card.md"
    assert mobilemoe_cli("report", path, "--out", page, "--card", card).status == 0
    assert "hellaswag" in page.read_text()
    assert "hellaswag" in card.read_text()


def test_what_was_computed_is_not_computed_again(evaluate, tiny_folder, monkeypatch):
    first = evaluate(tiny_folder, "--json").json["suites"][str(tiny_folder)]
    monkeypatch.setattr(Model, "loglikelihoods", lambda *_: pytest.fail("it was known"))
    second = evaluate(tiny_folder, "--json").json["suites"][str(tiny_folder)]
    assert second["results"] == first["results"]


def test_results_of_other_settings_stand_beside_the_first(evaluate, tiny_folder, data, tmp_path):
    stem = f"{tiny_folder.name}-hellaswag-boolq"

    def written(*options, folder=tiny_folder):
        found = evaluate(folder, *options, "--json").json["written"]
        return [path.removeprefix(f"{tmp_path}/results/") for path in found]

    assert written() == [f"{stem}.json"]
    kept = (tmp_path / "results" / f"{stem}.json").read_bytes()
    assert written("--limit", "3") == [f"{stem}-limit-3.json"]
    assert written("--limit", "3", "--no-chat") == [f"{stem}-no-chat-limit-3.json"]
    assert written("--activations", "fp32") == [f"{stem}-activations-fp32.json"]
    assert written("--experts-per-token", "1") == [f"{stem}-experts-per-token-1.json"]
    namesake = write_model(tmp_path / "elsewhere" / tiny_folder.name, seed=5)
    assert written(folder=namesake) == [f"{stem}-2.json"]
    boolq = data / "boolq.jsonl"
    whole = boolq.read_text()
    boolq.write_text("".join(whole.splitlines(keepends=True)[:7]))
    assert written() == [f"{stem}-3.json"]
    shown = " ".join(evaluate(tiny_folder).out.split())
    assert f"{stem}-3.json, since {tmp_path}/results/{stem}.json holds other results" in shown
    boolq.write_text(whole)
    assert (tmp_path / "results" / f"{stem}.json").read_bytes() == kept
    assert written() == [f"{stem}.json"]
    assert len([*(tmp_path / "results").glob("*.json")]) == 7


def test_the_first_results_have_the_plain_name_whatever_their_settings(evaluate, tiny_folder, tmp_path):
    plain = str(tmp_path / "results" / f"{tiny_folder.name}-hellaswag-boolq.json")
    for _ in range(2):
        assert evaluate(tiny_folder, "--limit", "3", "--json").json["written"] == [plain]


def test_missing_data_are_named_and_not_scored(mobilemoe_cli, tiny_folder, data, tmp_path):
    options = ("--suite", "boolq,drop", "--data", data, "--out", tmp_path, "--cache", tmp_path)
    shown = mobilemoe_cli("eval", tiny_folder, *options)
    assert shown.status == 0
    assert "missing: drop: " in shown.out
    assert "drop.jsonl" in shown.out


def test_two_models_are_compared_example_by_example(evaluate, tiny_folder, other_folder):
    shown = evaluate(tiny_folder, "--against", other_folder)
    assert shown.status == 0
    assert "95% interval" in shown.out
    values = evaluate(tiny_folder, "--against", other_folder, "--json").json
    both = values["suites"]
    difference = values["against"][str(tiny_folder)]["differences"]["hellaswag"]
    ours, theirs = (both[str(folder)]["results"]["hellaswag"]["acc_norm"] for folder in (tiny_folder, other_folder))
    assert difference["difference"] == pytest.approx(ours - theirs)
    assert difference["low"] <= difference["difference"] <= difference["high"]


def test_examples_that_stand_in_training_are_counted(evaluate, tiny_folder, tmp_path):
    seen = "Foxes that live near the river like to eat berries in the summer and small fish in the winter."
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": f"Once more: {seen}"}) + "\n")
    values = evaluate(tiny_folder, "--training", tmp_path / "train.jsonl", "--json").json
    assert len(values["contamination"]["boolq"]["found"]) == 12
    assert values["contamination"]["hellaswag"]["found"] == []
    assert "12 of 12" in evaluate(tiny_folder, "--training", tmp_path / "train.jsonl").out


def test_experts_of_a_suite_become_a_page(evaluate, tiny_folder, tmp_path):
    shown = evaluate(tiny_folder, "--experts")
    assert shown.status == 0
    (page,) = (tmp_path / "results").glob("*-experts.html")
    assert "boolq" in page.read_text()
    assert str(page) in shown.out


def test_text_and_benchmarks_stand_in_one_table(evaluate, tiny_folder, other_folder, tmp_path):
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "Once upon a time there was a fox."}) + "\n")
    shown = evaluate(tiny_folder, "--against", other_folder, "--text", tmp_path / "text.jsonl")
    assert shown.status == 0
    assert "KL, nats a token" in shown.out
    assert shown.out.count("boolq") >= 4  # both models' scores, the difference, and the line of the one table


def test_without_the_hub_the_mend_is_named(fails, tiny_folder):
    told = fails(1, "eval", tiny_folder, "--suite", "piqa,drop")
    assert "the Hub cannot be reached: give the data sets as JSONL files with --data DIR" in told


def test_ctrl_c_says_that_nothing_is_lost(evaluate, tiny_folder, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "loglikelihoods", stop)
    ended = evaluate(tiny_folder)
    assert ended.status == 130
    assert "continues from there" in ended.err


def test_a_folder_that_is_named_by_dots_is_called_by_its_name(evaluate, tmp_path, monkeypatch):
    folder = write_model(tmp_path / "model")
    (folder / "inner").mkdir()
    written = tmp_path / "results" / "model-hellaswag-boolq.json"
    for place, name in ((".", "."), (".", "../model/"), (".", "../model/."), ("inner", ".."), ("inner", "../../model")):
        monkeypatch.chdir(folder / place)
        values = evaluate(name, "--limit", "1", "--json").json
        assert values["written"] == [str(written)]
        assert json.loads(written.read_text())["model"]["name"].endswith("model")
        written.unlink()
        written.with_suffix(".jsonl").unlink()


def test_a_damaged_benchmark_is_missing_and_the_other_scored(evaluate, data, tiny_folder):
    path = data / "boolq.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"query": "no passage"}\n')
    done = evaluate(tiny_folder)
    path.write_text(whole)
    assert done.status == 0
    assert f"missing: boolq: {path}, line 13, is no item of boolq" in " ".join(done.out.split())
