"""Promises of data.packing: nothing leaks between documents, nothing is lost."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mobilemoe.data.packing import NO_TARGET, Packer, make_row


def numbered(lengths):
    """Documents whose tokens are all different, so that a token tells its document and place."""
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 17))
def test_every_token_once_in_order_and_no_target_crosses_a_document(lengths, length):
    documents = numbered(lengths) if lengths else []
    owner = np.repeat(np.arange(len(lengths)), lengths)
    rows = list(Packer(iter(documents), length))
    assert len(rows) == sum(lengths) // length
    for number, row in enumerate(rows):
        start = number * length
        assert row.tokens_T.tolist() == list(range(start, start + length))
        for column in range(length):
            last = column == length - 1 or owner[start + column] != owner[start + column + 1]
            # Each pair of neighbours in a document is a target once, unless the row ends between them.
            assert row.targets_T[column] == (NO_TARGET if last else start + column + 1)
            begins = column == 0 or owner[start + column] != owner[start + column - 1]
            assert row.positions_T[column] == (0 if begins else row.positions_T[column - 1] + 1)
            step = 0 if column == 0 else row.segments_T[column] - row.segments_T[column - 1]
            assert step == (begins and column > 0)


def test_a_row_as_it_is_meant():
    row = make_row([np.array([7, 8, 9]), np.array([5]), np.array([3, 4])])
    assert row.tokens_T.tolist() == [7, 8, 9, 5, 3, 4]
    assert row.targets_T.tolist() == [8, 9, NO_TARGET, NO_TARGET, 4, NO_TARGET]
    assert row.positions_T.tolist() == [0, 1, 2, 0, 0, 1]
    assert row.segments_T.tolist() == [0, 0, 0, 1, 2, 2]
    assert row.segments_T.dtype == np.int32


def test_what_a_row_leaves_open_is_known():
    packer = Packer(iter(numbered([5, 4])), 3)
    next(packer)
    assert packer.rest.tolist() == [3, 4]
    next(packer)
    assert packer.rest.tolist() == [6, 7, 8]
