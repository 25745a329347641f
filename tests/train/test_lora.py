"""Adapters begin without effect, only they are trained, and merged into the weights they compute the same."""

import dataclasses

import pytest
import torch
from torch import Tensor

from mobilemoe.checkpoint import Checkpoint, save_checkpoint, weights
from mobilemoe.errors import ConfigError
from mobilemoe.model import MobileMoE
from mobilemoe.model.experts import Experts
from mobilemoe.presets import family_member
from mobilemoe.train.lora import Adapted, LoraExperts, LoraLinear, adapter_state, attach, base_fingerprint, merged
from mobilemoe.train.qat import prepare
from mobilemoe.train.recipe import LoraTable, QatTable
from model_configs import CONFIGS, DENSE, FAMILY, GROUPED_QUERIES
from random_models import assert_close, generator, random_choice, random_model, random_tokens

NAMES = ("family", "three-heads", "no-shared-expert", "one-of-many", "head-weight", "untied", "dense", "olmoe-like")
EACH_CONFIG = pytest.mark.parametrize("config", [CONFIGS[name] for name in NAMES], ids=NAMES)
TABLE = LoraTable(rank=5, alpha=7.0)
BLOCKS_OF_32 = family_member(64, expansion=2, granularity=4, layers=2, vocab_size=96)  # what INT4 groups need
DENSE_OF_32 = dataclasses.replace(DENSE, num_hidden_layers=2)


def adapted(config, table: LoraTable = TABLE, dtype: torch.dtype = torch.float64, learnt: bool = True) -> MobileMoE:
    """A random model with adapters, `learnt` ones far from zero."""
    model = random_model(config).to(dtype)
    attach(model, table, seed=3)
    if learnt:
        source = generator(11)
        for adapter in adapter_state(model).values():
            adapter.data.normal_(0.0, 0.2, generator=source)
    return model


def ordinary(config, weights: dict[str, Tensor]) -> MobileMoE:
    model = MobileMoE(config).to(next(iter(weights.values())).dtype).eval()
    model.load_state_dict(weights)
    return model


@EACH_CONFIG
def test_new_adapters_change_nothing_at_all(config):
    base, tokens = random_model(config), random_tokens(2, 9)
    want = base(tokens)
    attach(base, TABLE, seed=0)
    assert torch.equal(base(tokens), want)
    assert torch.equal(base.train()(tokens), want)


@EACH_CONFIG
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_merged_model_is_the_adapted_one(config, dtype, tolerance):
    model, tokens = adapted(config, dtype=dtype), random_tokens(2, 9)
    got, want = ordinary(config, merged(model))(tokens), model(tokens)
    assert_close(got, want, tolerance)
    assert (want - random_model(config).to(dtype)(tokens)).abs().max() > 0.01 * want.abs().max()


@EACH_CONFIG
def test_merged_weights_have_the_checkpoints_names_and_shapes(config):
    shapes = {name: tuple(weight.shape) for name, weight in merged(adapted(config)).items()}
    assert shapes == {name: weight.shape for name, weight in weights(config).items()}


@EACH_CONFIG
def test_only_adapters_learn_and_all_of_them(config):
    model = adapted(config, learnt=False)
    loss = model(random_tokens(2, 40)).square().mean()
    loss.backward()
    adapters = adapter_state(model)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in adapters), name
        if name in adapters:  # a moves only once b has
            assert parameter.grad.any() == name.endswith("_b"), name
    assert all(name.rpartition(".")[2].startswith("lora_") for name in adapters)


@pytest.mark.parametrize("alpha", [1.0, 32.0])
@pytest.mark.parametrize("config", [FAMILY, DENSE, CONFIGS["untied"]], ids=["family", "dense", "untied"])
def test_gradients_are_those_of_a_dense_difference(config, alpha):
    """d/dW of the merged model, taken through W + alpha / rank * a b by hand."""
    table = LoraTable(rank=3, alpha=alpha)
    model, tokens = adapted(config, table), random_tokens(2, 9)
    model(tokens).square().mean().backward()
    dense = ordinary(config, merged(model))
    dense(tokens).square().mean().backward()
    gradient = {name: parameter.grad for name, parameter in dense.named_parameters()}
    scale = alpha / 3
    for path, module in model.named_modules():
        if isinstance(module, LoraLinear):
            dw_OI = gradient[f"{path}.weight"]
            assert_close(module.lora_a.grad, scale * module.lora_b.t() @ dw_OI, 1e-11)
            assert_close(module.lora_b.grad, scale * dw_OI @ module.lora_a.t(), 1e-11)
        elif isinstance(module, LoraExperts):
            for kind in ("gate_up", "down"):
                a_EIR, b_ERO = getattr(module, f"lora_{kind}_a"), getattr(module, f"lora_{kind}_b")
                dw_EIO = gradient[f"{path}.{kind}_proj"]
                assert_close(a_EIR.grad, scale * dw_EIO @ b_ERO.mT, 1e-11)
                assert_close(b_ERO.grad, scale * a_EIR.mT @ dw_EIO, 1e-11)


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("tokens", [0, 1, 3, 64])
@pytest.mark.parametrize("busy", [1, 4, 12])
def test_experts_agree_with_merged_ones_for_any_load(tokens, busy, rank):
    """Only `busy` of the 12 experts are ever chosen."""
    config = dataclasses.replace(GROUPED_QUERIES, num_local_experts=12, num_experts_per_tok=min(busy, 3))
    base, source = Experts(config).double(), generator(4)
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=source)
    lora = LoraExperts(config, base, rank, 0.5, source)
    for parameter in (lora.lora_gate_up_b, lora.lora_down_b):
        torch.nn.init.normal_(parameter, std=0.3, generator=source)
    experts_NA = random_choice(tokens, busy, config.num_experts_per_tok, source)
    x_ND = torch.randn(tokens, config.hidden_size, generator=source, dtype=torch.float64)
    weights_NA = torch.rand(experts_NA.shape, generator=source, dtype=torch.float64)
    got_ND = lora(x_ND, experts_NA, weights_NA)
    with torch.no_grad():
        for name, weight in lora.merged_weights().items():
            getattr(base, name).copy_(weight)
    want_ND = base(x_ND, experts_NA, weights_NA)
    assert got_ND.shape == want_ND.shape
    if tokens:
        assert_close(got_ND, want_ND, 1e-12)


def test_drop_and_pad_does_not_apply_to_adapted_experts():
    model = random_model(GROUPED_QUERIES)
    for layer in model.moe_layers():
        layer.experts.capacity_factor = 0.1
    attach(model, TABLE, seed=0)
    tokens = random_tokens(2, 9)
    assert torch.equal(model.train()(tokens), model.eval()(tokens))


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        (("attention",), ("q_proj", "k_proj", "v_proj", "o_proj")),
        (("shared",), ("gate_proj", "up_proj", "down_proj")),
        (("experts",), ("experts",)),
    ],
)
def test_targets_say_where_adapters_are(targets, parts):
    model = adapted(FAMILY, LoraTable(rank=2, targets=targets))
    assert {name.split(".")[-2] for name in adapter_state(model)} == set(parts)
    assert len({name.split(".")[2] for name in adapter_state(model)}) == FAMILY.num_hidden_layers


@pytest.mark.parametrize(("config", "targets"), [(DENSE, ("experts",)), (CONFIGS["no-shared-expert"], ("shared",))])
def test_targets_that_the_model_does_not_have_are_refused(config, targets):
    with pytest.raises(ConfigError, match=r"lora\.targets is"):
        attach(random_model(config), LoraTable(targets=targets), seed=0)


def test_adapters_follow_from_the_seed_and_start_as_small_as_a_linear_layer():
    first, again, other = (random_model(FAMILY) for _ in range(3))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        torch.manual_seed(torch.seed())  # the global generator has no say
        attach(model, TABLE, seed)
    for name, adapter in adapter_state(first).items():
        assert torch.equal(adapter, adapter_state(again)[name]), name
        is_b = name.endswith("_b")
        assert torch.equal(adapter, adapter_state(other)[name]) == is_b, name
        assert adapter.any() != is_b, name
    a_EDR = first.moe_layers()[0].experts.lora_gate_up_a
    assert a_EDR.abs().max() <= FAMILY.hidden_size**-0.5
    assert a_EDR.std().item() == pytest.approx((3 * FAMILY.hidden_size) ** -0.5, rel=0.05)


def test_adapters_of_bf16_weights_are_fp32_and_merge_in_fp32():
    model = random_model(FAMILY).bfloat16()
    attach(model, TABLE, seed=0)
    adapters, whole = adapter_state(model), merged(model)
    assert {adapter.dtype for adapter in adapters.values()} == {torch.float32}
    assert whole["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float32
    assert model(random_tokens(1, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize("config", [BLOCKS_OF_32, FAMILY], ids=["aligned", "unaligned"])
def test_training_under_autocast_comes_close_to_fp32(config):
    model, tokens = adapted(config, LoraTable(rank=8), torch.float32), random_tokens(2, 9)
    want = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(tokens)
    got.float().square().mean().backward()
    assert (got - want).norm() < 0.1 * want.norm()
    assert all(adapter.grad.isfinite().all() for adapter in adapter_state(model).values())


def test_the_fingerprint_is_of_the_frozen_weights_alone():
    model = adapted(FAMILY)
    before = base_fingerprint(model)
    for adapter in adapter_state(model).values():
        adapter.data += 1
    assert base_fingerprint(model) == before
    model.moe_layers()[1].expert_bias[3] += 1e-9
    assert base_fingerprint(model) != before


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("config", [BLOCKS_OF_32, DENSE_OF_32], ids=["moe", "dense"])
def test_with_qat_what_is_trained_is_what_the_int4_file_holds(config, axis, tmp_path):
    model, tokens = adapted(config, dtype=torch.float32), random_tokens(2, 9)
    prepare(model, QatTable(group_axis=axis, activations="none"))
    whole = merged(model)
    save_checkpoint(tmp_path / "int4", config, lambda name: whole[name].numpy(), format="int4", group_axis=axis)
    exported = MobileMoE(config).eval()
    with Checkpoint.open(tmp_path / "int4") as file:
        exported.load_weights(file.weight)
    held = exported.state_dict()
    with torch.autocast("cpu", torch.bfloat16):  # which must not make the sum of weight and difference in bf16
        modules = {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}
        assert len(modules) >= 7
        for path, module in modules.items():
            for name, weight in module.merged_weights().items():
                assert torch.equal(module.quantize(weight), held[f"{path}.{name}"]), (path, name)
    assert_close(model(tokens), exported(tokens), 1e-5)


@pytest.mark.parametrize("activations", ["none", "int8"])
def test_with_qat_only_adapters_learn_and_all_of_them(activations):
    model = adapted(BLOCKS_OF_32, dtype=torch.float32)
    prepare(model, QatTable(activations=activations))
    model(random_tokens(2, 40)).square().mean().backward()
    adapters = adapter_state(model)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in adapters), name


def test_int8_activations_enter_every_product_of_an_adapted_model():
    model, tokens = adapted(BLOCKS_OF_32, dtype=torch.float32), random_tokens(2, 9)
    prepare(model, QatTable(activations="int8"))
    seen: dict[int, int] = {}
    for at, module in enumerate(module for module in model.modules() if isinstance(module, Adapted)):
        real = module.quantize_input
        module.quantize_input = lambda x, at=at, real=real: (seen.update({at: seen.get(at, 0) + 1}), real(x))[1]
    model(tokens)
    products = [2 if isinstance(module, Experts) else 1 for module in model.modules() if isinstance(module, Adapted)]
    assert [seen[at] for at in sorted(seen)] == products
