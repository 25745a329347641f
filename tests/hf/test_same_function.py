"""In transformers the checkpoints are the same function as in our own model, whichever implementations are chosen."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import StaticCache

from conversions import BF16, HF, INT4_IN, INT4_OUT, relative_rms
from hf_models import FAMILY_LIKE, FORMS, assert_near, opened, tokens, write
from mobilemoe.config import FULL, SLIDING
from mobilemoe.hf import MobileMoEForCausalLM
from mobilemoe.hub import ASSETS
from mobilemoe.tokenizer import Tokenizer
from model_configs import CONFIGS, loaded

INT4_CONFIGS = {name: CONFIGS[name] for name in ("family", "no-shared-expert", "untied", "blended-scaling", "pro-like")}
SLIDING_MOE = dataclasses.replace(FAMILY_LIKE, sliding_window=5, layer_types=(FULL, SLIDING))


def logits(model, tokens_BT, **inputs):
    with torch.no_grad():
        return model(tokens_BT, **inputs).logits


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bf16_checkpoints_give_our_own_logits(config, conversion, tmp_path):
    folder, tokens_BT = write(tmp_path / "model", config), tokens(2, 90)
    theirs = opened(folder)
    assert isinstance(theirs, MobileMoEForCausalLM)
    with torch.no_grad():
        ours_BTV = loaded(folder)(tokens_BT)
    theirs_BTV = logits(theirs, tokens_BT)
    assert_near(theirs_BTV, ours_BTV)
    conversion(BF16, HF, relative_rms(theirs_BTV, ours_BTV), "logits", "transformers")


@pytest.mark.parametrize("form", ["int4-in", "int4-out"])
@pytest.mark.parametrize("config", INT4_CONFIGS.values(), ids=INT4_CONFIGS)
def test_int4_checkpoints_give_our_own_logits(config, form, conversion, tmp_path):
    folder, tokens_BT = write(tmp_path / "model", config, form), tokens(2, 90)
    with torch.no_grad():
        ours_BTV = loaded(folder)(tokens_BT)
    theirs_BTV = logits(opened(folder), tokens_BT)
    assert_near(theirs_BTV, ours_BTV)
    source = INT4_IN if form == "int4-in" else INT4_OUT
    conversion(source, HF, relative_rms(theirs_BTV, ours_BTV), "logits", "transformers")


@pytest.fixture(scope="module", params=FORMS)
def folder(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("hf") / "model", SLIDING_MOE, request.param)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_each_attention_implementation_gives_the_same(attention, folder):
    tokens_BT = tokens(2, 20)
    model = opened(folder, attn_implementation=attention)
    assert model.config._attn_implementation == attention
    with torch.no_grad():
        assert_near(logits(model, tokens_BT), loaded(folder)(tokens_BT))


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_each_experts_implementation_gives_the_same(experts, folder):
    tokens_BT = tokens(2, 20)
    model = opened(folder, experts_implementation=experts)
    assert model.config._experts_implementation == experts
    with torch.no_grad():
        assert_near(logits(model, tokens_BT), loaded(folder)(tokens_BT))
    model.set_experts_implementation("eager")
    with torch.no_grad():
        assert_near(logits(model, tokens_BT), loaded(folder)(tokens_BT))


@pytest.mark.parametrize("cache_type", ["dynamic", "static"])
def test_a_cache_changes_nothing(cache_type, folder):
    model, tokens_BT = opened(folder), tokens(2, 20)
    cache = StaticCache(config=model.config, max_cache_len=24) if cache_type == "static" else None
    parts = []
    for start, end in ((0, 12), (12, 13), (13, 20)):
        places = torch.arange(start, end).unsqueeze(0)
        with torch.no_grad():
            out = model(tokens_BT[:, start:end], position_ids=places, cache=cache, use_cache=True)
        cache = out.cache
        parts.append(out.logits)
    assert_near(torch.cat(parts, dim=1), logits(model, tokens_BT))


def test_padding_on_the_left_changes_nothing(folder):
    model, text_BT = opened(folder), tokens(1, 11)
    padded_BT = torch.cat([tokens(1, 6, seed=9), text_BT], dim=1)
    mask_BT = torch.tensor([[0] * 6 + [1] * 11])
    places_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    padded = logits(model, padded_BT, attention_mask=mask_BT, position_ids=places_BT)
    assert_near(padded[:, 6:], logits(model, text_BT))


def test_documents_packed_into_a_row_do_not_see_each_other(folder):
    model, first, second = opened(folder), tokens(1, 9), tokens(1, 7, seed=5)
    places = torch.cat([torch.arange(9), torch.arange(7)]).unsqueeze(0)
    packed = logits(model, torch.cat([first, second], dim=1), position_ids=places, use_cache=False)
    assert_near(packed[:, :9], logits(model, first))
    assert_near(packed[:, 9:], logits(model, second))


def test_embeddings_may_stand_for_tokens(folder):
    model, tokens_BT = opened(folder), tokens(2, 8)
    with torch.no_grad():
        given = model(inputs_embeds=model.get_input_embeddings()(tokens_BT)).logits
    assert torch.equal(given, logits(model, tokens_BT))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


def test_only_the_last_logits_are_computed_where_only_they_are_asked_for(folder):
    model, tokens_BT = opened(folder), tokens(2, 8)
    last = logits(model, tokens_BT, logits_to_keep=1)
    assert last.shape[1] == 1
    assert_near(last, logits(model, tokens_BT)[:, -1:])


def test_router_logits_are_those_of_our_own_router(folder):
    model, tokens_BT = opened(folder), tokens(2, 8)
    with torch.no_grad():
        out = model(tokens_BT, output_router_logits=True)
        _, routings = loaded(folder).hidden(tokens_BT)
    assert len(out.router_logits) == len(routings) == 2
    for theirs, ours in zip(out.router_logits, routings, strict=True):
        assert theirs.dtype == torch.float32
        assert_near(theirs, ours.logits_NE)
    assert np.isfinite(out.aux_loss.item())
    assert model(tokens_BT).router_logits is None


def test_a_graph_compiled_without_breaks_gives_the_same(tmp_path):
    model, tokens_BT = opened(write(tmp_path / "model")), tokens(2, 9)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_near(logits(compiled, tokens_BT, use_cache=False), logits(model, tokens_BT))


def test_by_default_the_model_computes_in_the_dtype_of_its_file_and_routes_in_fp32():
    nano, text = ASSETS / "nano", "Once upon a time there was a little girl who lived in the woods and"
    tokens_BT = torch.tensor([Tokenizer.load(nano).encode(text, bos=True)])
    model = opened(nano, dtype="auto")
    out = model(tokens_BT, output_router_logits=True)
    assert out.logits.dtype == torch.bfloat16
    assert {router_logits.dtype for router_logits in out.router_logits} == {torch.float32}
    exact_BTV = logits(opened(nano), tokens_BT)
    # over all tokens: rounding to BF16 may send one of them to another expert
    assert (out.logits.float() - exact_BTV).norm() <= 0.03 * exact_BTV.norm()
