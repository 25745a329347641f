"""The text that a sweep scores its runs on: the same whole rows for each, and losses that add up."""

import numpy as np
import pytest

from mobilemoe.data.encoding import open_tokenizer
from mobilemoe.data.mixture import build_sources
from mobilemoe.data.sources import is_held_out
from mobilemoe.errors import DataError
from mobilemoe.sweep.grid import HeldOut
from mobilemoe.sweep.heldout import read_held_out

pytest_plugins = ["sweep_runs"]


def test_held_out_rows_are_whole_limited_and_weighted(grid):
    loaded = grid()
    tokenizer, template = open_tokenizer("nano")
    text = read_held_out(loaded.heldout, loaded.data, tokenizer, template, 32)
    assert {name: domain.share for name, domain in text.domains.items()} == pytest.approx({"books": 0.6, "code": 0.4})
    for domain in text.domains.values():
        assert domain.rows.tokens_T.shape == (8, 32)  # 256 tokens
        assert 1 < domain.bytes_per_target < 8
    again = read_held_out(loaded.heldout, loaded.data, tokenizer, template, 32)
    assert again.fingerprint == text.fingerprint
    longer = read_held_out(HeldOut(path=loaded.heldout.path, tokens=512), loaded.data, tokenizer, template, 32)
    assert longer.fingerprint != text.fingerprint
    np.testing.assert_array_equal(longer.domains["code"].rows.tokens_T[:8], text.domains["code"].rows.tokens_T)


def test_without_a_file_the_held_out_split_is_taken(grid):
    data = grid("data.holdout=0.3").data
    tokenizer, template = open_tokenizer("nano")
    text = read_held_out(HeldOut(tokens=64), data, tokenizer, template, 32)
    assert {domain.rows.tokens_T.shape for domain in text.domains.values()} == {(2, 32)}
    for name, domain in text.domains.items():  # each source's own first text
        source = build_sources(data, ".")[name]
        first = next(document for document in source.documents(0) if is_held_out(document, 0.3))
        shown = tokenizer.decode(domain.rows.tokens_T[0][1:].tolist())
        assert first.text.startswith(shown[:20]), name
    with pytest.raises(DataError, match="does not fill a row"):
        read_held_out(HeldOut(), data.model_copy(update={"holdout": 0.0}), tokenizer, template, 32)
