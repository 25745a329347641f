"""What compression costs: every model beside one parent, and the experts in common."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import mobilemoe
from mobilemoe.checkpoint import write_random
from mobilemoe.errors import UsageError
from mobilemoe.evaluate.compare.compression import compression_table, overlap
from mobilemoe.evaluate.compare.paired import paired, read_examples, unlike
from mobilemoe.evaluate.experts.expert_use import torch_model
from mobilemoe.evaluate.results.results import Results, read_results, save_results
from mobilemoe.presets import family_member
from tiny_model import write_model

ENTRIES = (
    {"text": "The quick brown fox, 東京 and 12345.", "domain": "a"},
    {"text": "one two three four", "domain": "b"},
    {"text": "a longer line of words that goes over two windows", "domain": "b"},
)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return mobilemoe.load(write_model(tmp_path_factory.mktemp("models") / "parent", seed=2), backend="torch")


@pytest.fixture(scope="module")
def models(tiny_folder, tmp_path_factory):
    third = write_model(tmp_path_factory.mktemp("models") / "third", seed=3)
    return {"native": mobilemoe.load(tiny_folder, threads=1), "torch": mobilemoe.load(third, backend="torch")}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "t.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in ENTRIES))
    return path


@pytest.fixture(scope="module")
def found(parent, models, path):
    return compression_table(parent, models, path, window=8, experts=True)


def test_each_model_costs_what_it_does_alone(found, parent, models, path):
    assert found.costs.keys() == models.keys()
    for name, model in models.items():
        alone = compression_table(parent, {name: model}, path, window=8)
        assert alone.without_experts == {name: "they were not asked for"}
        assert found.costs[name].keys() == alone.costs[name].keys() == {"a", "b", "all"}
        assert alone.tokens == found.tokens
        for domain, each in alone.costs[name].items():
            cost = found.costs[name][domain]
            assert cost.bits_per_byte == pytest.approx(each.bits_per_byte, rel=1e-6)
            assert cost.divergence == pytest.approx(each.divergence, rel=1e-5)
            assert cost.agreement == each.agreement
            assert found.parent_bits_per_byte[domain] == pytest.approx(alone.parent_bits_per_byte[domain], rel=1e-6)


def chosen_sets(model, ids):
    """The experts of each layer and token, as sets."""
    with torch.inference_mode():
        _, routings = torch_model(model).hidden(torch.tensor([ids]))
    return [[set(experts) for experts in routing.experts_NA.tolist()] for routing in routings]


@pytest.mark.parametrize("name", ["native", "torch"])
def test_experts_in_common_are_those_of_a_slow_count(found, parent, models, name):
    shared, jaccard = [[], []], [[], []]
    for entry in ENTRIES[1:]:
        ids = parent.encode(entry["text"])
        for at in range(1, len(ids), 7):
            before = [ids[0], *ids[at : at + 7][:-1]]
            for layer, (ours, theirs) in enumerate(
                zip(chosen_sets(models[name], before), chosen_sets(parent, before), strict=True)
            ):
                shared[layer] += [len(a & b) / len(a) for a, b in zip(ours, theirs, strict=True)]
                jaccard[layer] += [len(a & b) / len(a | b) for a, b in zip(ours, theirs, strict=True)]
    cost = found.costs[name]["b"]
    assert cost.shared_L == pytest.approx([np.mean(each) for each in shared])
    assert cost.jaccard_L == pytest.approx([np.mean(each) for each in jaccard])
    assert cost.shared == pytest.approx(np.mean(shared))
    assert 0 < cost.shared < 1


def test_overlap_does_not_depend_on_the_order_of_the_experts():
    ours = np.array([[[0, 1, 2, 3], [0, 1, 2, 3]], [[0, 1, 2, 3], [4, 5, 6, 7]]])
    theirs = np.array([[[3, 2, 1, 0], [7, 0, 9, 1]], [[4, 5, 6, 7], [0, 1, 2, 3]]])
    assert overlap(ours, theirs).tolist() == [[1 + 2 / 4, 0], [1 + 2 / 6, 0]]


def test_the_parent_is_computed_once_for_all(parent, models, path, monkeypatch):
    passes = []
    form = torch_model(parent)
    monkeypatch.setattr(form, "hidden", lambda ids, real=form.hidden: passes.append(ids) or real(ids))
    compression_table(parent, models, path, experts=True)
    assert len(passes) == len(ENTRIES)


def test_a_model_beside_itself_costs_nothing(parent, path):
    cost = compression_table(parent, {"itself": parent}, path, experts=True).costs["itself"]["all"]
    assert (cost.divergence, cost.agreement, cost.shared) == (0, 1, 1)
    assert set(cost.jaccard_L) == {1}


def test_experts_of_another_shape_are_not_compared_and_the_reason_is_told(parent, models, path, tmp_path):
    wide = write_model(tmp_path / "wide")
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 1}))
    found = compression_table(
        parent, {"wide": mobilemoe.load(wide, threads=1), "torch": models["torch"]}, path, experts=True
    )
    assert "2 layers of 6 experts, 1 a token, not 2, 6, 2" in found.without_experts["wide"]
    assert found.costs["wide"]["all"].shared is None
    assert found.costs["torch"]["all"].shared is not None
    alone = compression_table(parent, {"wide": mobilemoe.load(wide, threads=1)}, path, experts=True)
    assert alone.costs["wide"]["all"].divergence == pytest.approx(found.costs["wide"]["all"].divergence)
    assert not [row for row in alone.rows() if "experts" in row[0]]


def test_weights_rounded_while_loading_have_no_choices_to_compare(parent, path, tmp_path):
    config = family_member(32, expansion=2, granularity=4, layers=2, vocab_size=16_384)
    write_random(tmp_path / "bf16", config, seed=0, format="bf16")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bf16" / name).write_bytes((parent.folder / name).read_bytes())
    rounded = mobilemoe.load(tmp_path / "bf16", threads=1, quantize="int4")
    found = compression_table(mobilemoe.load(tmp_path / "bf16", backend="torch"), {"ptq": rounded}, path, experts=True)
    assert "mobilemoe quantize" in found.without_experts["ptq"]
    assert found.costs["ptq"]["all"].divergence > 0


def test_no_model_and_another_vocabulary_are_refused(parent, path, tmp_path):
    with pytest.raises(UsageError, match="at least one"):
        compression_table(parent, {}, path)
    write_random(tmp_path / "narrow", family_member(32, expansion=1, layers=1, vocab_size=320), seed=0, format="int4")
    with pytest.raises(UsageError, match="320 and 16384 entries"):
        compression_table(parent, {"narrow": mobilemoe.load(tmp_path / "narrow", threads=1)}, path)


def test_the_table_and_the_json_have_everything_side_by_side(found):
    rows = {row[0]: row[1:] for row in found.rows()}
    assert found.heads == ["", "parent", "native", "torch"]
    assert all(len(row) == 3 for row in rows.values())
    cost = found.costs["torch"]["b"]
    assert rows["bits per byte, b"] == [
        f"{found.parent_bits_per_byte['b']:.4f}",
        f"{found.costs['native']['b'].bits_per_byte:.4f}",
        f"{cost.bits_per_byte:.4f}",
    ]
    assert rows["same greedy token, b"][2] == f"{cost.agreement:.2%}"
    assert rows["experts in common in fp32, layer 1"][2] == f"{found.costs['torch']['all'].shared_L[1]:.2%}"
    told = json.loads(json.dumps(found.as_json()))
    assert told["models"]["torch"]["b"]["experts_jaccard_by_layer"] == list(cost.jaccard_L)
    assert told["models"]["native"]["all"]["divergence"] == found.costs["native"]["all"].divergence


def write_scores(folder, name, examples):
    """A file of results with these examples' scores beside it."""
    lines = [
        {"benchmark": benchmark, "id": key, "correct": score, "tokens": 1}
        for benchmark, scores in examples.items()
        for key, score in scores.items()
    ]
    row = {"main_metric": "acc", "shots": 0, "version": 1, "published": True}
    results = Results(
        model={"name": name, "quantization": None}
        | dict.fromkeys(("hash", "parameters", "active_parameters", "int4_bytes", "flops_per_token", "context"), 1),
        engine=dict.fromkeys(("backend", "activations", "threads", "version")),
        suite="quick",
        limit=None,
        results={
            benchmark: row | {"n": len(scores), "acc": sum(scores.values()) / len(scores)}
            for benchmark, scores in examples.items()
        },
        missing={},
        counts={"left_truncations": 0, "token_cap_hits": 0},
        speed={"ms_per_token": None},
        examples="",
        seconds=1.0,
    )
    return save_results(results, lines, folder, name)


def test_benchmarks_stand_in_the_same_table(found, tmp_path):
    scored = {"gsm8k": {str(n): float(n % 2) for n in range(40)}, "piqa": {"0": 1.0}}
    worse = {"gsm8k": {str(n): 0.0 if n < 20 else float(n % 2) for n in range(40)}}
    parent, child = write_scores(tmp_path, "parent", scored), write_scores(tmp_path, "torch", worse)
    examples = [read_examples(path.with_suffix(".jsonl")) for path in (child, parent)]
    less = paired(*examples, left_out=unlike(read_results(child), read_results(parent)))
    both = found.with_benchmarks({"torch": less})
    rows = {row[0]: row[1:] for row in both.rows()}
    of_parent, of_native, ours = rows["gsm8k"]
    assert (of_parent, of_native) == ("50.00%", "-")
    assert ours.startswith("25.00% (-25.00%, -")
    told = json.loads(json.dumps(both.as_json()))["benchmarks"]["torch"]
    assert told["differences"]["gsm8k"]["low"] < -0.25 < told["differences"]["gsm8k"]["high"] < 0
    assert "piqa" in told["left_out"]
    assert not found.benchmarks
    with pytest.raises(UsageError, match="'other' has results, but is none of the models: native, torch"):
        found.with_benchmarks({"other": less})


def test_importing_it_loads_no_torch():
    code = "import sys, mobilemoe.evaluate.compare.compression; print({'torch', 'matplotlib'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
