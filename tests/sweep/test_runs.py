"""The runs of a grid: the product of its axes, each by the stated rules, in the stated order, or a refusal by name."""

import pytest

from mobilemoe import accounting
from mobilemoe.errors import ConfigError, UsageError
from mobilemoe.sweep.grid import load_grid
from mobilemoe.sweep.runs import grid_runs
from mobilemoe.sweep.worker_pool import choose
from places import RECIPES

pytest_plugins = ["sweep_runs"]


def test_a_block_is_the_product_of_its_axes_and_each_run_is_there_once(grid):
    block = "{sizes=[{hidden_size=32}],tokens=[256],experts=[1,2,4],granularity=[1,2,4],shared=[0,1]}"
    runs = grid_runs(grid(f"blocks.all={block}", f"blocks.again={block}"))
    assert {(run.experts, run.granularity, run.shared) for run in runs} == {
        (1, 1, 0),
        *((e, g, s) for e in (2, 4) for g in (1, 2, 4) for s in (0, 1) if not (s and g % 2)),
    }
    assert len({run.id for run in runs}) == len(runs) == 11
    assert {run.blocks for run in runs} == {("all", "again")}


def test_the_architecture_is_the_familys_and_the_recipe_describes_it(grid):
    run = next(run for run in grid_runs(grid()) if run.experts == 2)
    config = run.config
    assert (config.num_local_experts, config.num_experts_per_tok) == (2 * 2 - 1, 1)
    assert (config.intermediate_size, config.intermediate_size_mlp) == (64, 64)
    assert run.columns["n_active_no_embedding"] == accounting.active_parameters(config) - 16_384 * 32
    assert run.columns["n_total"] == accounting.total_parameters(config)
    dense = next(run for run in grid_runs(grid()) if run.experts == 1)
    assert dense.config.ffn_type == "dense"
    assert dense.columns["n_total"] == dense.columns["n_active"]


def test_a_router_that_chooses_one_expert_is_weighted_by_its_own_score(grid):
    by_knobs = {(run.experts, run.granularity): run.config for run in grid_runs(grid("blocks.all.granularity=[2,4]"))}
    assert not by_knobs[2, 2].norm_topk_prob  # over its own sum it would be 1, and the router would never learn
    assert by_knobs[2, 4].norm_topk_prob


def test_a_size_in_parameters_gives_the_same_width_to_every_architecture(grid):
    sizes = "blocks.all.sizes=[{parameters=3e6}]"
    runs = grid_runs(grid(sizes, "blocks.all.experts=[1,8,32]", "blocks.all.granularity=[2,16]"))
    assert {run.config.hidden_size for run in runs} == {192}
    assert runs[0].columns["n_active_no_embedding"] == pytest.approx(3e6, rel=0.1)


def test_batch_and_learning_rate_follow_the_rules(grid):
    base = ("train.batch_size=32", "train.steps=100", "train.warmup_steps=10", "train.final_learning_rate=1e-3")
    reference = 32 * 100 * 32  # tokens
    wide = "blocks.all={sizes=[{hidden_size=64},{hidden_size=128}],tokens=[%d,%d],rates=[1,2]}"
    runs = grid_runs(grid(*base, wide % (reference, 4 * reference)))
    by = {(run.config.hidden_size, run.recipe.train.steps, run.rate): run.recipe.train for run in runs}
    same = by[64, 100, 1.0]  # preset micro is 64 wide: this is the reference run
    assert (same.batch_size, same.learning_rate, same.warmup_steps) == (32, 1e-2, 10)
    longer = by[64, 200, 1.0]
    assert (longer.batch_size, longer.warmup_steps) == (64, 20)
    assert longer.learning_rate == pytest.approx(1e-2 * 2**0.5, rel=1e-3)
    wider = by[128, 100, 2.0]
    assert wider.learning_rate == pytest.approx(2e-2 * 2**-0.75, rel=1e-3)
    assert wider.final_learning_rate == pytest.approx(2e-3 * 2**-0.75, rel=1e-3)
    for run in runs:
        assert run.tokens == pytest.approx(run.recipe.train.steps * run.recipe.train.batch_size * 32)


def test_a_seed_changes_weights_and_data_and_the_key(grid):
    one, two = grid_runs(grid("blocks.all={sizes=[{hidden_size=32}],tokens=[256],seeds=[0,3]}"))
    assert (one.recipe.train.seed + 3, one.recipe.data.seed + 3) == (two.recipe.train.seed, two.recipe.data.seed)
    assert one.key != two.key


def test_blocks_come_in_order_and_of_each_the_longest_training_first(grid):
    runs = grid_runs(grid("blocks.more={sizes=[{hidden_size=64}],tokens=[256,1024]}"))
    blocks = [run.blocks[0] for run in runs]
    assert blocks == sorted(blocks)
    for name in ("all", "more"):
        flops = [run.flops for run in runs if run.blocks[0] == name]
        assert flops == sorted(flops, reverse=True)


def test_runs_are_held_out_by_number_or_by_compute(grid):
    runs = grid_runs(grid())
    most = sorted(run.compute for run in runs)
    assert {run.compute for run in grid_runs(grid("scaling.held_out=2")) if run.held_out} == {*most[-2:]}
    by_limit = [run for run in grid_runs(grid(f"scaling.held_out_above={most[1]}")) if run.held_out]
    assert sorted(run.compute for run in by_limit) == most[2:]
    assert runs[0].compute == 6 * accounting.active_parameters(runs[0].config) * runs[0].tokens


def test_the_sweep_of_ours_is_what_was_registered():
    runs = grid_runs(load_grid(RECIPES / "sweep" / "grid.toml"))
    law = [run for run in runs if "trunks" in run.blocks]
    assert {(run.experts, run.granularity, run.shared) for run in law} == {(1, 1, 0), (8, 8, 0)}
    assert len(law) == 48
    fitted = [run.compute for run in law if not run.held_out]
    assert len(fitted) == 22
    assert max(fitted) <= 3.75e15 < min(run.compute for run in law if run.held_out)
    assert max(run.compute for run in law) == pytest.approx(3.7e16, rel=0.02)
    assert max(run.tokens for run in runs) < 101e6  # within one epoch
    for run in runs:
        config = run.config
        assert (config.head_dim, config.num_key_value_heads) == (64, config.num_attention_heads)
        assert run.batch_tokens == 16_384
        if config.is_moe:
            weight = config.routed_scaling_factor / config.num_experts_per_tok if config.norm_topk_prob else 1.0
            assert weight == 1.0
            assert config.norm_topk_prob == (config.num_experts_per_tok > 1)


def test_only_takes_ids_blocks_and_patterns(grid):
    both = grid("blocks.more={sizes=[{hidden_size=64}],tokens=[256]}")
    assert len(choose(both)) == 5
    assert {run.config.hidden_size for run in choose(both, ("more",))} == {64}
    assert {run.id for run in choose(both, ("d32x1-dense-t256", "*t512"))} == {
        *("d32x1-dense-t256", "d32x1-dense-t512", "d32x1-e2g2s1-t512")
    }
    with pytest.raises(UsageError, match="no run and no block 'less'"):
        choose(both, ("less",))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("blocks={}", "blocks is|blocks"),
        ("blocks.all.sizes=[{}]", "hidden_size or parameters"),
        ("blocks.all.tokens=[0]", r"blocks\.all\.tokens\.0 is 0"),
        ("blocks.all.shared=[2]", r"blocks\.all\.shared\.0 is 2"),
        ("blocks.all.width=[2]", r"blocks\.all\.width"),
        ("model={init='nano'}", "trains new models"),
        ("qat={}", "remove the tables"),
        ("train.schedule=wsd", "batch_exponent is 0.5, but runs of schedule 'wsd' share"),
        (
            "train={schedule='wsd',steps=4,batch_size=2,sequence_length=32,learning_rate=1,warmup_steps=4}",
            "warmup_steps",
        ),
        ("scaling.held_out=-1", r"scaling\.held_out is -1"),
    ],
)
def test_a_grid_that_cannot_be_says_which_entry_is_wrong(grid, override, message):
    with pytest.raises(ConfigError, match=message):
        grid(override)


def test_a_missing_or_broken_file_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_grid(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_grid(tmp_path / "bad.toml")


def test_a_run_of_its_own_rate_or_seed_has_a_name_of_its_own(grid):
    runs = grid_runs(grid("blocks.all={sizes=[{hidden_size=32}],tokens=[256],experts=[1],rates=[1,0.5],seeds=[0,3]}"))
    names = ("d32x1-dense-t256", "d32x1-dense-t256-rate0.5")
    assert {run.id for run in runs} == {*names, *(f"{name}-seed3" for name in names)}
    assert len({run.key for run in runs}) == 4
    assert all(run.recipe.name == run.columns["id"] == run.id for run in runs)


@pytest.mark.parametrize(
    "override",
    ["train.checkpoint_every=1", "train.threads=1", "train.keep_checkpoints=1", "train.validate_every=3"],
)
def test_what_changes_no_result_changes_no_key(grid, override):
    assert [run.key for run in grid_runs(grid(override))] == [run.key for run in grid_runs(grid())]


@pytest.mark.parametrize("override", ["train.learning_rate=2e-2", "heldout.tokens=512", "data.piece_chars=1000"])
def test_what_changes_results_changes_every_key(grid, override):
    keys = {run.key for run in grid_runs(grid())}
    assert keys.isdisjoint(run.key for run in grid_runs(grid(override)))


def test_a_head_width_is_every_models_own_and_must_divide_its_width(grid):
    sizes = "blocks.all={sizes=[{hidden_size=64},{hidden_size=128}],tokens=[256],experts=[1,4],granularity=[2]}"
    for run in grid_runs(grid(sizes, "scaling.head_dim=32")):
        heads = run.config.hidden_size // 32
        assert run.config.head_dim == 32
        assert run.config.num_attention_heads == run.config.num_key_value_heads == heads
    with pytest.raises(ConfigError, match=r"scaling\.head_dim is 48, but must divide every width, and one is 64"):
        grid_runs(grid(sizes, "scaling.head_dim=48"))


def test_with_equal_gates_the_weights_of_a_tokens_experts_have_mean_1(grid):
    block = "blocks.all={sizes=[{hidden_size=64}],tokens=[256],experts=[1,4],granularity=[1,4],shared=[0,1]}"
    plain = {run.id: run.config for run in grid_runs(grid(block))}
    for run in grid_runs(grid(block, "scaling.equal_gates=true")):
        if not run.config.is_moe:
            assert run.config == plain[run.id]
        elif run.config.num_experts_per_tok == 1:
            assert (run.config.routed_scaling_factor, run.config.norm_topk_prob) == (2.0, False)
        else:
            assert run.config.routed_scaling_factor / run.config.num_experts_per_tok == 1


def test_dense_models_may_have_a_learning_rate_and_an_exponent_of_their_own(grid):
    block = "blocks.all={sizes=[{hidden_size=64},{hidden_size=128}],tokens=[256],experts=[1,4],granularity=[2]}"
    own = ("scaling.dense_learning_rate=4e-2", "scaling.dense_width_exponent=0", "scaling.rate_exponent=0")
    rates = {
        (run.experts, run.config.hidden_size): run.recipe.train.learning_rate for run in grid_runs(grid(block, *own))
    }
    assert rates[1, 64] == rates[1, 128] == 4e-2
    assert rates[4, 64] == 1e-2  # the reference's width
    assert rates[4, 128] == pytest.approx(1e-2 * 2**-0.75, rel=1e-3)


def test_micro_batches_part_a_batch_evenly(grid):
    runs = grid_runs(grid("train.batch_size=8", "train.micro_batch_size=4", "blocks.all.tokens=[300,700,4000]"))
    assert all(run.recipe.train.batch_size % 4 == 0 for run in runs)
    assert all(run.recipe.train.steps >= 1 for run in runs)


def test_the_depth_is_the_familys_unless_a_size_says_another(grid):
    sizes = "blocks.all={sizes=[{hidden_size=128},{hidden_size=128,layers=9}],tokens=[256],experts=[1]}"
    assert {run.config.num_hidden_layers for run in grid_runs(grid(sizes))} == {4, 9}


def test_without_wsd_nothing_is_shared_and_a_trunk_is_the_run_itself(grid):
    for run in grid_runs(grid()):
        assert (run.shared_steps, run.trunk) == (0, run.id)
        assert run.flops == run.tokens * accounting.training_flops_per_token(run.config, 32)
