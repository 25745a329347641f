"""Expert use counts what each prompt touches, as a slow loop over its tokens does, and what those experts weigh."""

import json

import numpy as np
import pytest
import torch

import mobilemoe
from drawn import colours, curve, labels
from mobilemoe import accounting
from mobilemoe.checkpoint import write_random
from mobilemoe.errors import DataError, UsageError
from mobilemoe.evaluate.experts import expert_use
from mobilemoe.evaluate.experts.expert_use import (
    HEADS,
    count_experts,
    draw_distinct,
    draw_load,
    section,
    table_rows,
    torch_model,
)
from mobilemoe.page import page
from mobilemoe.presets import family_member

LAYERS, EXPERTS, ACTIVE = 2, 6, 2  # of the tiny model


def random_prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 16_000, length).tolist() for length in lengths]


@pytest.fixture
def model(tiny_folder):
    return mobilemoe.load(tiny_folder, backend="torch")


def force(model, *experts_by_layer):
    """Makes each layer choose the experts named for it, whatever the token is."""
    for layer, experts in zip(torch_model(model).moe_layers(), experts_by_layer, strict=True):
        layer.expert_bias.zero_()
        layer.expert_bias[list(experts)] = 10.0


def test_forced_experts_are_the_ones_counted(model):
    force(model, (1, 4), (0, 5))
    use = count_experts(model, {"a": random_prompts(5, 70), "b": random_prompts(1)})
    a, b = use.benchmarks["a"], use.benchmarks["b"]
    assert a.load_LE.tolist() == [[0, 75, 0, 0, 75, 0], [75, 0, 0, 0, 0, 75]]
    assert b.load_LE.tolist() == [[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1]]
    assert a.tokens_P.tolist() == [5, 70]
    assert a.distinct_PL.tolist() == [[2, 2], [2, 2]]
    assert a.distinct_WL.tolist() == [[2, 2], [2, 2]]  # 70 tokens have two full windows of 32, 5 have none
    told = use.as_json()["benchmarks"]
    assert told["a"]["never_used"] == 8
    assert told["a"]["prompt"]["distinct"] == told["a"]["decode_window"]["distinct"] == 4
    assert told["b"]["decode_window"] is None


def test_the_counts_are_those_of_a_slow_loop_that_decodes(model, monkeypatch):
    monkeypatch.setattr(expert_use, "WINDOW", 4)
    prompts = random_prompts(3, 9, 16)
    load = np.zeros((LAYERS, EXPERTS), int)
    distinct, windows = [], []
    for ids in prompts:
        chosen = []  # of each token, of each layer, from a forward pass over what stands before it alone
        for end in range(1, len(ids) + 1):
            with torch.inference_mode():
                _, routings = torch_model(model).hidden(torch.tensor([ids[:end]]))
            chosen.append([set(routing.experts_NA[-1].tolist()) for routing in routings])
            for layer, experts in enumerate(chosen[-1]):
                for expert in experts:
                    load[layer][expert] += 1
        distinct.append([len(set.union(*(token[layer] for token in chosen))) for layer in range(LAYERS)])
        starts = range(0, len(ids) // 4 * 4, 4)
        windows += [
            [len(set.union(*(token[layer] for token in chosen[at : at + 4]))) for layer in range(LAYERS)]
            for at in starts
        ]
    use = count_experts(model, {"all": prompts}).benchmarks["all"]
    assert use.load_LE.tolist() == load.tolist()
    assert use.distinct_PL.tolist() == distinct
    assert use.distinct_WL.tolist() == windows
    assert len({tuple(each) for each in windows}) > 1  # the model does route


def test_the_native_engines_model_is_counted_from_its_file(model, tiny_folder):
    prompts = {"a": random_prompts(40)}
    native = count_experts(mobilemoe.load(tiny_folder, threads=1), prompts)
    assert native.as_json() == count_experts(model, prompts).as_json()


def test_of_a_prompt_beyond_the_context_the_end_counts(model):
    (ids,) = random_prompts(300)
    heard = []
    use = count_experts(model, {"long": [ids], "end": [ids[-256:]]}, on_prompt=heard.append).benchmarks
    assert heard == [1, 2]
    assert use["long"].tokens_P.tolist() == [256]
    assert np.array_equal(use["long"].load_LE, use["end"].load_LE)


def test_chance_is_what_even_draws_touch(model):
    use = count_experts(model, {"a": random_prompts(4)})
    rng = np.random.default_rng(0)
    for tokens in (1, 4, 9):
        drawn = [
            len({expert for _ in range(tokens) for expert in rng.choice(EXPERTS, ACTIVE, replace=False)})
            for _ in range(1500)
        ]
        assert use.chance(np.array([tokens]))[0] == pytest.approx(LAYERS * np.mean(drawn), rel=0.02)
    assert use.chance(np.array([1]))[0] == pytest.approx(LAYERS * ACTIVE)


def test_bytes_are_those_of_the_file(model):
    config = model.config
    use = count_experts(model, {"a": random_prompts(4)})
    gate_up, down = 2 * config.intermediate_size * config.hidden_size, config.hidden_size * config.intermediate_size
    assert use.expert_bytes == (gate_up + down) * 18 // 32  # 16 bytes of nibbles and a scale for 32 weights
    selection_bias = 2 * LAYERS * EXPERTS
    everything = use.always_bytes + LAYERS * EXPERTS * use.expert_bytes
    assert everything + selection_bias == accounting.int4_file_bytes(config)
    assert use.share_of_file(LAYERS * EXPERTS) == everything / accounting.int4_file_bytes(config)
    told = use.as_json()["benchmarks"]["a"]["prompt"]
    assert told["bytes"] == use.always_bytes + told["distinct"] * use.expert_bytes
    assert told["share_of_file"] == use.share_of_file(told["distinct"])


def test_models_whose_choices_cannot_be_told_are_refused(model, tmp_path):
    for prompts in ([], [[1], []]):
        with pytest.raises(DataError, match="piqa has no prompts"):
            count_experts(model, {"piqa": prompts})
    dense = family_member(32, expansion=1, layers=1, vocab_size=320)
    write_random(tmp_path / "dense", dense, seed=0, format="int4")
    with pytest.raises(UsageError, match="has no experts"):
        count_experts(mobilemoe.load(tmp_path / "dense", backend="torch"), {"a": [[1]]})
    sparse = family_member(32, expansion=2, granularity=4, layers=1, vocab_size=320)
    write_random(tmp_path / "bf16", sparse, seed=0, format="bf16")
    with pytest.raises(UsageError, match="mobilemoe quantize"):
        count_experts(mobilemoe.load(tmp_path / "bf16", threads=1, quantize="int4"), {"a": [[1]]})


def test_the_map_of_each_layer_shows_each_benchmarks_load_over_an_even_share_the_most_used_first(model, figures):
    force(model, (1, 4), (0, 5))
    use = count_experts(model, {"one": random_prompts(5), "two": random_prompts(3)})
    assert colours(draw_load(use)) > 50
    (figure,) = figures
    panels = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title() for axes in panels] == ["layer 0", "layer 1"]
    for axes in panels:
        level_GE = axes.get_images()[0].get_array()
        assert level_GE.shape == (2, EXPERTS)
        assert np.allclose(level_GE[:, :ACTIVE], np.log2(EXPERTS / ACTIVE))  # the two chosen: three times an even share
        assert level_GE.mask[:, ACTIVE:].all()  # the others are grey
        assert axes.get_images()[0].get_clim() == (-3, 3)  # 1/8 to 8
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["one", "two"]
    assert "6 experts of each layer" in figure.get_supxlabel()


def test_each_prompt_is_a_point_over_its_tokens_beside_the_line_of_chance(model, figures):
    use = count_experts(model, {"a": random_prompts(40, 50), "b": random_prompts(3)})
    assert colours(draw_distinct(use)) > 50
    axes, shares = figures[0].axes
    for name in ("a", "b"):
        each = use.benchmarks[name]
        assert curve(axes, name) == list(zip(each.tokens_P, each.distinct_PL.sum(axis=1), strict=True))
    assert labels(axes) == ["a", "b", "drawn evenly by chance"]
    chance = curve(axes, "drawn evenly by chance")
    assert chance[0] == (1, pytest.approx(LAYERS * ACTIVE))
    assert chance[-1] == (50, pytest.approx(use.chance(np.array([50]))[0]))
    assert axes.get_xlabel() == "tokens of the prompt"
    assert axes.get_ylabel() == f"different experts touched, of {LAYERS * EXPERTS}"
    assert shares.get_ylim()[0] == pytest.approx(100 * use.share_of_file(0))
    top = axes.get_ylim()[1]
    assert shares.get_ylim()[1] == pytest.approx(100 * use.share_of_file(top))


def test_table_and_section_show_every_benchmark(model, tmp_path):
    use = count_experts(model, {"gsm8k": random_prompts(40, 50), "<b>": random_prompts(3)})
    json.dumps(use.as_json())
    rows = table_rows(use)
    assert [row[0] for row in rows] == ["gsm8k", "<b>"]
    assert all(len(row) == len(HEADS) for row in rows)
    assert rows[0][1:3] == ["2", "45"]
    assert rows[1][7:10] == ["-", "-", "-"]  # 3 tokens are no window
    html = page("report", [section(use)])
    assert "gsm8k" in html
    assert "&lt;b&gt;" in html
    assert html.count("<img") == 2
