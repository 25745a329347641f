"""Decoding equals the full forward: through the KV cache, in chunks, and with left padding."""

import pytest
import torch
from torch import Tensor

from mobilemoe.errors import UsageError
from mobilemoe.model import KVCache
from model_configs import FAMILY
from random_models import EACH_MODEL, SLIDING_MOE, assert_close, random_model, random_tokens

# KV cache


@pytest.mark.parametrize("chunks", [(13,), (1,) * 13, (5, 8), (4, 1, 1, 7), (12, 1)], ids=str)
@EACH_MODEL
@torch.no_grad()
def test_chunks_through_the_cache_equal_the_full_forward(config, chunks):
    model, tokens_BT = random_model(config), random_tokens(2, 13)
    cache = KVCache(config, batch=2, slots=16, dtype=torch.float64)
    parts = [model(part, cache=cache) for part in tokens_BT.split(chunks, dim=1)]
    assert cache.length == 13
    assert_close(torch.cat(parts, dim=1), model(tokens_BT))


@torch.no_grad()
def test_documents_through_the_cache_stay_apart():
    model, tokens_BT = random_model(SLIDING_MOE), random_tokens(1, 14)
    segments_BT = torch.tensor([[0] * 5 + [1] * 9])
    cache = KVCache(SLIDING_MOE, batch=1, slots=14, dtype=torch.float64)
    parts = [
        model(tokens, segments_BT=segments, cache=cache)
        for tokens, segments in zip(tokens_BT.split(4, dim=1), segments_BT.split(4, dim=1), strict=True)
    ]
    assert_close(torch.cat(parts, dim=1), model(tokens_BT, segments_BT=segments_BT))


@pytest.mark.parametrize("chunk", [1, 3])
@torch.no_grad()
def test_a_full_cache_refuses_more(chunk):
    model, cache = random_model(FAMILY), KVCache(FAMILY, batch=1, slots=6, dtype=torch.float64)
    model(random_tokens(1, 6), cache=cache)
    with pytest.raises(UsageError, match="has 6 slots"):
        model(random_tokens(1, chunk), cache=cache)


# Left padding


PADDING, ROW = -1, 0


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """tokens, positions counted from the first real token, and segments with padding apart, each [B, T]."""
    width = max(map(len, rows))
    tokens_BT, positions_BT = torch.full((2, len(rows), width), 0).unbind()
    segments_BT = torch.full((len(rows), width), PADDING)
    for b, row in enumerate(rows):
        pad = width - len(row)
        tokens_BT[b, pad:], positions_BT[b, pad:] = row, torch.arange(len(row))
        segments_BT[b, pad:] = ROW
    return tokens_BT, positions_BT, segments_BT


@EACH_MODEL
@torch.no_grad()
def test_left_padded_rows_equal_rows_alone(config):
    model, rows = random_model(config), [random_tokens(length, seed=length) for length in (3, 11, 1, 8)]
    tokens_BT, positions_BT, segments_BT = left_padded(rows)
    logits_BTV = model(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)
    assert logits_BTV.isfinite().all()
    for row, logits_TV in zip(rows, logits_BTV, strict=True):
        assert_close(logits_TV[-len(row) :], model(row.unsqueeze(0))[0])


@EACH_MODEL
@torch.no_grad()
def test_left_padded_rows_decode_as_rows_alone(config):
    model, rows = random_model(config), [random_tokens(length, seed=length) for length in (2, 9, 5)]
    more_BT = random_tokens(3, 4, seed=99)
    tokens_BT, positions_BT, segments_BT = left_padded(rows)
    cache = KVCache(config, batch=3, slots=16, dtype=torch.float64)
    model(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT, cache=cache)
    lengths_B1 = torch.tensor([[len(row)] for row in rows])
    real_B1 = torch.full((3, 1), ROW)
    steps = [
        model(more_BT[:, at, None], positions_BT=lengths_B1 + at, segments_BT=real_B1, cache=cache) for at in range(4)
    ]
    for b, row in enumerate(rows):
        alone = model(torch.cat([row, more_BT[b]]).unsqueeze(0))[0, len(row) :]
        assert_close(torch.cat([step[b] for step in steps]), alone)
