"""Attention sees what it should and nothing else: masks, packed documents, rows of a batch."""

import numpy as np
import pytest
import torch

from mobilemoe.model.attention import visible
from model_configs import FAMILY
from random_models import EACH_MODEL, SLIDING_MOE, assert_close, random_model, random_tokens

# Masks


@pytest.mark.parametrize("window", [None, 1, 2, 5, 100])
@pytest.mark.parametrize("queries", [1, 4, 12])
def test_visible_is_causal_within_segment_and_window(queries, window):
    segments_BS = torch.tensor([[0] * 12, [9, 9, 9, 1, 1, 1, 1, 2, 2, 3, 3, 3], [5] * 11 + [6]])
    mask = visible(segments_BS[:, 12 - queries :], segments_BS, window)
    assert mask.shape == (3, 1, queries, 12)
    assert mask.dtype == torch.bool
    for b, t, s in np.ndindex(3, queries, 12):
        at = 12 - queries + t
        want = s <= at and segments_BS[b, s] == segments_BS[b, at] and (window is None or at - s < window)
        assert bool(mask[b, 0, t, s]) == bool(want)
    assert mask.any(dim=-1).all()  # no query is left without a key


# Packing


@EACH_MODEL
@torch.no_grad()
def test_packed_documents_equal_documents_alone(config):
    model, lengths = random_model(config), (5, 1, 11, 7)
    tokens_BT = random_tokens(1, sum(lengths))
    segments_BT = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).unsqueeze(0)
    positions_BT = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    packed = model(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)
    alone = torch.cat([model(part) for part in tokens_BT.split(lengths, dim=1)], dim=1)
    assert_close(packed, alone)
    # RoPE sees distances only, so that counting positions on through the row changes nothing but rounding.
    assert_close(model(tokens_BT, segments_BT=segments_BT), alone, 1e-11)


@torch.no_grad()
def test_nothing_leaks_between_packed_documents_or_from_the_future():
    model, tokens_BT = random_model(SLIDING_MOE), random_tokens(1, 20)
    segments_BT = torch.tensor([[0] * 8 + [1] * 12])
    base = model(tokens_BT, segments_BT=segments_BT)
    for at in (0, 7, 8, 13, 19):
        changed_BT = tokens_BT.clone()
        changed_BT[0, at] = (changed_BT[0, at] + 1) % FAMILY.vocab_size
        # Beyond rounding: the number of tokens at an expert may change the last bit of the others.
        moved_T = ((model(changed_BT, segments_BT=segments_BT) - base).abs() > 1e-12).any(dim=-1)[0]
        last = 8 if at < 8 else 20
        assert moved_T[at]
        assert not moved_T[:at].any()
        assert not moved_T[last:].any()


@EACH_MODEL
def test_no_gradient_crosses_a_packed_document(config):
    model, tokens_BT = random_model(config), torch.arange(16).unsqueeze(0)
    segments_BT = torch.tensor([[0] * 6 + [1] * 10])
    x_BTD, _ = model.hidden(tokens_BT, segments_BT=segments_BT)
    x_BTD[:, 6:].square().sum().backward()
    moved_T = model.model.embed_tokens.weight.grad[:16].any(dim=-1)
    assert moved_T.tolist() == [False] * 6 + [True] * 10


@torch.no_grad()
def test_segments_may_be_an_array_of_the_host():
    model, tokens_BT = random_model(FAMILY), torch.arange(16).unsqueeze(0)
    segments_BT = torch.tensor([[0] * 6 + [1] * 10])
    as_tensor, as_array = (
        model.hidden(tokens_BT, segments_BT=given)[0] for given in (segments_BT, segments_BT.numpy())
    )
    assert torch.equal(as_tensor, as_array)


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other():
    model, tokens_BT = random_model(FAMILY), random_tokens(3, 9)
    assert_close(model(tokens_BT), torch.cat([model(row.unsqueeze(0)) for row in tokens_BT]))
