"""Each dtype is kept where it must be: float64 throughout, router and residual in fp32."""

import pytest
import torch

from mobilemoe.checkpoint import write_random
from mobilemoe.model import KVCache, MobileMoE
from model_configs import CONFIGS, FAMILY, loaded
from random_models import EACH_MODEL, assert_close, random_model, random_tokens
from reference import reference_logits


@pytest.mark.parametrize("through_cache", [False, True])
@pytest.mark.parametrize("name", ["family", "blended-scaling", "pro-like", "olmoe-like", "head-weight"])
@torch.no_grad()
def test_float64_stays_float64_everywhere(name, through_cache, tmp_path):
    """A single step in fp32 would leave an error near 1e-7."""
    config, ids = CONFIGS[name], random_tokens(15, seed=4).tolist()
    write_random(tmp_path / "model", config, seed=11, format="bf16")
    model = loaded(tmp_path / "model").double()
    cache = KVCache(config, batch=1, slots=15, dtype=torch.float64) if through_cache else None
    segments_BT = None if through_cache else torch.zeros(1, 15, dtype=torch.long)
    logits_BTV = model(torch.tensor([ids]), segments_BT=segments_BT, cache=cache)
    assert_close(logits_BTV[0], torch.from_numpy(reference_logits(tmp_path / "model", ids)), 1e-10)
    hidden_BTD, routings = model.hidden(torch.tensor([ids]))
    assert hidden_BTD.dtype == torch.float64
    for routing in routings:
        assert routing.logits_NE.dtype == routing.weights_NA.dtype == torch.float64


@torch.no_grad()
def test_bf16_routes_in_fp32_and_stays_near_float64():
    model = random_model(FAMILY)
    half = MobileMoE(FAMILY).bfloat16().eval()
    half.load_state_dict(model.state_dict())
    model.load_state_dict(half.state_dict())
    tokens_BT = random_tokens(1, 24)
    x_BTD, routings = half.hidden(tokens_BT)
    assert x_BTD.dtype == torch.bfloat16
    assert all(routing.logits_NE.dtype == torch.float32 for routing in routings)
    cosine_BT = torch.cosine_similarity(x_BTD.double(), model.hidden(tokens_BT)[0], dim=-1)
    assert cosine_BT.median() > 0.999  # a token whose choice flips may differ more


@EACH_MODEL
def test_autocast_keeps_router_and_residual_in_fp32(config):
    model, tokens_BT = random_model(config).float(), random_tokens(1, 24)
    seen = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _layer, _inputs, outputs: seen.append(outputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        x_BTD, routings = model.hidden(tokens_BT)
    assert seen == [torch.float32] * config.num_hidden_layers
    assert all(routing.logits_NE.dtype == routing.weights_NA.dtype == torch.float32 for routing in routings)
    exact_BTD, _ = model.hidden(tokens_BT)
    cosine_BT = torch.cosine_similarity(x_BTD.float(), exact_BTD, dim=-1)
    assert cosine_BT.median() > 0.999  # a token whose choice flips may differ more
    x_BTD.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        if name != "lm_head.weight":
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all(), name
