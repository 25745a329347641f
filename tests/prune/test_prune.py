"""A pruned model is the source without some of its experts: the same function, byte for byte the same weights, in a
layout that every reader knows; and the experts are chosen by what they do for the text."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

import mobilemoe
from checkpoint_models import split_experts
from mobilemoe.checkpoint import Checkpoint, int4, save_checkpoint, weights, write_random
from mobilemoe.config import FULL, SLIDING
from mobilemoe.errors import MissingExtraError
from mobilemoe.export.gguf import write_gguf
from mobilemoe.export.glm4moe import write_glm4moe
from mobilemoe.model import MobileMoE
from mobilemoe.prune.choice import Merge, best_experts, merge_into_nearest
from mobilemoe.prune.prune import HELD_OUT, prune
from mobilemoe.prune.use import Use, measure_use
from mobilemoe.prune.write import align_units, write_pruned
from mobilemoe.tokenizer import Tokenizer
from model_configs import GROUPED_QUERIES

SMALL = dataclasses.replace(GROUPED_QUERIES, sliding_window=9, layer_types=(FULL, SLIDING))
KEPT_LN = np.array([[0, 2, 5], [1, 2, 3]])  # an odd number of SMALL's 6 experts a layer
FORMS = {"bf16": {"format": "bf16"}, "in": {"format": "int4"}, "out": {"format": "int4", "group_axis": "out"}}
WORDS = ("branch", "tree", "where", "bird", "sat", "and", "sang", "itself", "day", "long", "all", "the")


def source(folder, form="bf16", config=SMALL):
    write_random(folder, config, seed=5, **FORMS[form])
    return folder


def ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, SMALL.vocab_size, shape).tolist()


def torch_model(folder) -> MobileMoE:
    with Checkpoint.open(folder) as checkpoint:
        model = MobileMoE(checkpoint.config).eval()
        model.load_weights(checkpoint.weight)
    return model


def logits(model, tokens_BT) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens_BT)).numpy()


def pruned(folder, target, kept_LN=KEPT_LN, merge=None):
    with Checkpoint.open(folder) as checkpoint:
        write_pruned(checkpoint, target, kept_LN, merge)
    return target


def sentences(path, count, seed=0):
    rng = np.random.default_rng(seed)
    rows = [{"text": " ".join(rng.choice(WORDS, 60)), "domain": "birds"} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_pruned_model_is_the_source_whose_router_chooses_none_of_the_others(form, tmp_path):
    whole = torch_model(source(tmp_path / "whole", form))
    for layer, moe in enumerate(whole.moe_layers()):
        gone = np.setdiff1d(np.arange(SMALL.num_local_experts), KEPT_LN[layer])
        moe.expert_bias[gone] = -1e9
    few = torch_model(pruned(tmp_path / "whole", tmp_path / "few"))
    assert few.config.num_local_experts == 3
    tokens_BT = ids(2, 40)
    assert np.abs(logits(few, tokens_BT) - logits(whole, tokens_BT)).max() < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_what_stays_is_moved_byte_for_byte(form, tmp_path):
    source(tmp_path / "whole", form)
    pruned(tmp_path / "whole", tmp_path / "few")
    with Checkpoint.open(tmp_path / "whole") as before, Checkpoint.open(tmp_path / "few") as after:
        assert after.verify() == {"model.safetensors": True, "config.json": True}
        assert before.tensors.keys() == after.tensors.keys()
        for name in before.tensors:
            was = before.array(name)
            if "router" in name or "expert_bias" in name or ".experts." in name:
                was = was[KEPT_LN[int(name.split(".")[2])]]
            assert after.array(name).tobytes() == was.tobytes(), name
    assert (tmp_path / "few/model.safetensors").stat().st_size < (tmp_path / "whole/model.safetensors").stat().st_size


def test_a_checkpoint_with_one_tensor_for_each_expert_is_pruned_to_the_same_weights(tmp_path):
    from checkpoint_models import MICRO, logical, rewrite

    given = logical(MICRO)
    for name in ("fused", "apart"):
        save_checkpoint(tmp_path / name, MICRO, given.__getitem__, format="bf16")
    rewrite(tmp_path / "apart", split_experts(given))
    kept_LN = np.tile([0, 3, 4], (MICRO.num_hidden_layers, 1))
    few = [pruned(tmp_path / name, tmp_path / f"few-{name}", kept_LN) for name in ("fused", "apart")]
    assert (few[0] / "model.safetensors").read_bytes() == (few[1] / "model.safetensors").read_bytes()


@torch.no_grad()
def test_use_counts_what_the_whole_model_does(tmp_path):
    whole = torch_model(source(tmp_path / "whole"))
    windows = [ids(30, seed=1), ids(7, seed=2), ids(1, seed=3)]
    with Checkpoint.open(tmp_path / "whole") as checkpoint:
        use = measure_use(checkpoint, windows)
    assert use.tokens == 38
    chosen_LE, weight_LE, added_LE = np.zeros((3, *use.chosen_LE.shape))
    for window in windows:
        inputs = []

        def keep(_, given, __, inputs=inputs):
            inputs.append(given)

        hooks = [moe.experts.register_forward_hook(keep) for moe in whole.moe_layers()]
        logits(whole, [window])
        for hook in hooks:
            hook.remove()
        for layer, (x_ND, experts_NA, weights_NA) in enumerate(inputs):
            experts = whole.moe_layers()[layer].experts
            for x_D, experts_A, weights_A in zip(x_ND, experts_NA, weights_NA, strict=True):
                for expert, weight in zip(experts_A, weights_A, strict=True):
                    gate_F, up_F = (x_D @ experts.gate_up_proj[expert]).chunk(2)
                    out_D = (torch.nn.functional.silu(gate_F) * up_F) @ experts.down_proj[expert]
                    chosen_LE[layer, expert] += 1
                    weight_LE[layer, expert] += weight.item()
                    added_LE[layer, expert] += (weight * out_D).norm().item()
    assert np.array_equal(use.chosen_LE, chosen_LE)
    np.testing.assert_allclose(use.weight_LE, weight_LE, rtol=1e-5)
    np.testing.assert_allclose(use.added_LE, added_LE, rtol=1e-4)


def test_the_experts_with_the_largest_score_stay_and_ties_go_to_the_lowest_index():
    score_LE = np.array([[1.0, 4.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert best_experts(score_LE, 2).tolist() == [[1, 2], [0, 1]]
    assert best_experts(score_LE, 3).tolist() == [[1, 2, 3], [0, 1, 2]]


def test_an_expert_is_merged_into_the_nearest_that_stays(tmp_path):
    distance_EE = np.array([[0, 5, 3, 9], [5, 0, 8, 2], [3, 8, 0, 4], [9, 2, 4, 0]], float)
    chosen_LE = np.array([[10.0, 20.0, 1.0, 2.0]])
    use = Use(33, chosen_LE, chosen_LE, chosen_LE, distance_EE[None])
    merge = merge_into_nearest(use, np.array([[0, 1]]))
    assert merge.into_LE.tolist() == [[0, 1, 0, 1]]
    assert merge.weight_LE is chosen_LE


def test_units_that_were_put_in_another_order_are_found_again():
    rng = np.random.default_rng(0)
    gate_up_D2F, down_FD = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 48), (24, 16)))
    order_F = rng.permutation(24)
    gate_DF, up_DF = np.split(gate_up_D2F, 2, axis=1)
    moved = np.concatenate((gate_DF[:, order_F], up_DF[:, order_F]), axis=1), down_FD[order_F]
    again = align_units((gate_up_D2F, down_FD), moved)
    assert np.array_equal(again[0], gate_up_D2F)
    assert np.array_equal(again[1], down_FD)


@pytest.mark.parametrize("form", FORMS)
def test_merging_averages_by_use_and_leaves_the_other_experts_as_they_were(form, tmp_path):
    source(tmp_path / "whole", form)
    into_LE, weight_LE = np.array([[0, 0, 2, 2, 2, 5], [1, 1, 2, 3, 3, 3]]), np.ones((2, 6))
    weight_LE[0, :2], weight_LE[1, :2] = (3, 1), 0  # an expert that was never chosen takes nothing up
    pruned(tmp_path / "whole", tmp_path / "few", merge=Merge(into_LE, weight_LE))
    with Checkpoint.open(tmp_path / "whole") as before, Checkpoint.open(tmp_path / "few") as after:
        for part in ("gate_up_proj", "down_proj"):
            stem = "model.layers.{}.feed_forward.experts." + part
            was, now = (each.weight(stem.format(0)) for each in (before, after))
            assert np.array_equal(now[2], was[5])
            assert not np.array_equal(now[0], was[0])
            assert np.array_equal(after.weight(stem.format(1))[0], before.weight(stem.format(1))[1])
        pair = [before.weight(f"model.layers.0.feed_forward.experts.{part}_proj") for part in ("gate_up", "down")]
        aligned = align_units((pair[0][0], pair[1][0]), (pair[0][1], pair[1][1]))
        want = 0.75 * pair[1][0] + 0.25 * aligned[1]
        got = after.weight("model.layers.0.feed_forward.experts.down_proj")[0]
        tolerance = 0.01 if form == "bf16" else 0.15
        assert np.abs(got - want).max() < tolerance * np.abs(want).max()


@pytest.mark.parametrize("form", ["in", "out"])
def test_the_native_engine_computes_what_pytorch_does(form, tmp_path):
    pruned(source(tmp_path / "whole", form), tmp_path / "few")
    tokens_T = ids(50)
    ours = mobilemoe.load(tmp_path / "few", activations="fp32").logits(tokens_T)
    theirs = logits(torch_model(tmp_path / "few"), [tokens_T])[0]
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("form", FORMS)
def test_transformers_reads_it_through_our_classes_and_without_them(form, tmp_path):
    transformers = pytest.importorskip("transformers")
    import mobilemoe.hf  # noqa: F401 (registers the classes)

    plain = dataclasses.replace(SMALL, sliding_window=None, layer_types=())
    pruned(source(tmp_path / "whole", form, plain), tmp_path / "few")
    folders = [tmp_path / "few"]
    if form == "bf16":
        write_glm4moe(tmp_path / "few", tmp_path / "glm")
        folders.append(tmp_path / "glm")
    want = logits(torch_model(tmp_path / "few"), [ids(30)])
    for folder in folders:
        theirs, notes = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        assert {kind: names for kind, names in notes.items() if names} == {}
        with torch.no_grad():
            got = theirs(torch.tensor([ids(30)])).logits.numpy()
        assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


def test_a_gguf_file_of_it_says_how_many_experts_there_are(tiny_folder, tmp_path):
    gguf = pytest.importorskip("gguf")
    pruned(tiny_folder, tmp_path / "few", np.array([[0, 1, 4], [2, 3, 5]]))
    write_gguf(tmp_path / "few", tmp_path / "few.gguf")
    reader = gguf.GGUFReader(tmp_path / "few.gguf")
    counts = [field.contents() for name, field in reader.fields.items() if name.endswith(".expert_count")]
    assert counts == [3]
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes["blk.1.ffn_gate_inp.weight"] == [32, 3]
    assert shapes["blk.1.ffn_down_exps.weight"][2] == 3


def test_the_report_measures_on_text_that_did_not_choose(tiny_folder, tmp_path):
    """Held-out documents are none of those that chose, and both models read the same bytes."""
    text, other = sentences(tmp_path / "text.jsonl", 20), tmp_path / "other.txt"
    other.write_text("def branch(tree):\n    return tree.birds\n")
    found = prune(tiny_folder, tmp_path / "few", [text], 4, others=[other])
    assert found.kept_LN.shape == (2, 4)
    assert np.array_equal(found.kept_LN, best_experts(found.use.added_LE, 4))
    lines = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    tokenizer = Tokenizer.load(tiny_folder)
    held_out = found.before.scores[HELD_OUT]
    assert held_out.texts == 2
    assert held_out.tokens + found.use.tokens - 18 == sum(len(tokenizer.encode(line)) for line in lines)
    for measured in (found.before, found.after):
        assert list(measured.scores) == [HELD_OUT, "other.txt"]
        assert measured.scores["other.txt"].bytes == other.stat().st_size
    assert found.after.bytes == (tmp_path / "few/model.safetensors").stat().st_size < found.before.bytes
    assert ((found.share_L > 0) & (found.share_L < 1)).all()
    again = prune(tiny_folder, tmp_path / "again", [text], 4)
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "few/model.safetensors").read_bytes()
    assert again.as_json()["before"]["bits_per_byte"][HELD_OUT] == held_out.bits_per_byte


def test_without_scipy_merging_is_refused_before_the_long_work(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match=r"merging experts needs .*\[scaling\]"):
        prune(tiny_folder, tmp_path / "few", [tmp_path / "not read"], 4, merge=True)


def test_of_a_long_text_of_another_domain_only_a_part_is_measured(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("mobilemoe.prune.prune.MOST_MEASURED", 500)
    (tmp_path / "long.txt").write_text("the bird sang all day\n" * 2000)
    found = prune(
        tiny_folder, tmp_path / "few", [sentences(tmp_path / "a.jsonl", 20)], 4, others=[tmp_path / "long.txt"]
    )
    assert 500 <= found.after.scores["long.txt"].tokens < 3000


def test_pruning_by_use_costs_less_than_at_random_where_one_text_needs_few_experts(tmp_path):
    """A router that sends half of its vocabulary to the first half of the experts: for a text of these tokens the
    others are of no use, and dropping them changes nothing at all."""
    config = dataclasses.replace(SMALL, layer_types=(), sliding_window=None)
    rng = np.random.default_rng(1)
    given = {name: rng.normal(0, 0.1, weight.shape).astype(np.float32) for name, weight in weights(config).items()}
    given["model.embed_tokens.weight"][:48, 0], given["model.embed_tokens.weight"][48:, 0] = 4, -4
    for name, weight in given.items():
        if name.endswith("norm.weight"):
            weight[:] = 1
        elif name.endswith("router.weight"):
            weight[:3, 0], weight[3:, 0] = 2, -2
        elif name.endswith("expert_bias"):
            weight[:] = 0
    given = {name: int4.from_bf16(int4.to_bf16(weight)) for name, weight in given.items()}
    save_checkpoint(tmp_path / "whole", config, given.__getitem__, format="bf16")
    tokens_T = (np.array(ids(40)) % 48).tolist()
    with Checkpoint.open(tmp_path / "whole") as checkpoint:
        use = measure_use(checkpoint, [tokens_T])
    kept_LN = best_experts(use.added_LE, 3)
    assert kept_LN.tolist() == [[0, 1, 2], [0, 1, 2]]
    pruned(tmp_path / "whole", tmp_path / "few", kept_LN)
    want = logits(torch_model(tmp_path / "whole"), [tokens_T])
    assert np.abs(logits(torch_model(tmp_path / "few"), [tokens_T]) - want).max() < 1e-5
