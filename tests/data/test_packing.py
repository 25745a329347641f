"""Promises of data.packing: nothing leaks between documents, nothing is lost."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mobilemoe.data.packing import NO_TARGET, Packer, Passage, make_row


def passage(ids, domain=0, whole=False):
    ids = np.array(ids)
    return Passage(ids, np.ones(len(ids), dtype=bool), domain, whole)


def numbered(lengths):
    """Documents whose tokens are all different, so that a token tells its document and place."""
    ends = np.cumsum(lengths)
    return [passage(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]


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
    row = make_row([passage([7, 8, 9], 2), passage([5], 0), passage([3, 4], 1)])
    assert row.tokens_T.tolist() == [7, 8, 9, 5, 3, 4]
    assert row.targets_T.tolist() == [8, 9, NO_TARGET, NO_TARGET, 4, NO_TARGET]
    assert row.positions_T.tolist() == [0, 1, 2, 0, 0, 1]
    assert row.segments_T.tolist() == [0, 0, 0, 1, 2, 2]
    assert row.domains_T.tolist() == [2, 2, 2, 0, 1, 1]
    assert all(field_T.dtype == np.int64 for field_T in row)


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=30), st.integers(1, 17))
def test_what_stays_whole_is_taught_in_one_row_and_everything_is_taught_once(sizes, length):
    passages = numbered([size for size, _ in sizes])
    passages = [passage._replace(whole=whole) for passage, (_, whole) in zip(passages, sizes, strict=True)]
    owner = np.repeat(np.arange(len(sizes)), [size for size, _ in sizes])
    packer = Packer(iter(passages), length)
    rows = list(packer)
    taught = [(number, token) for number, row in enumerate(rows) for token in row.targets_T if token != NO_TARGET]
    tokens = [token for _, token in taught]
    assert len(tokens) == len(set(tokens))
    shown = [token for row in rows for token in row.tokens_T]
    for row in rows:
        assert len(row.tokens_T) == length
        said = row.targets_T != NO_TARGET
        np.testing.assert_array_equal(row.targets_T[said], row.tokens_T[said] + 1)
        np.testing.assert_array_equal(owner[row.targets_T[said]], owner[row.tokens_T[said]])
        same = np.diff(row.segments_T) == 0
        np.testing.assert_array_equal(np.diff(row.tokens_T)[same], 1)
        np.testing.assert_array_equal(np.diff(row.positions_T)[same], 1)
    for passage in passages:
        ids = passage.ids_N.tolist()
        if not ids or ids[-1] not in tokens:
            continue  # of one token, or the packer never came to its end
        at = [number for number, token in taught if token in ids]
        if passage.whole and len(ids) <= length:
            assert len(at) == len(ids) - 1
            assert len(set(at)) == 1
        else:
            assert all(shown.count(token) == 1 for token in ids)


def test_the_room_before_a_whole_passage_shows_its_beginning_and_teaches_nothing():
    packer = Packer(iter([passage([1, 2]), passage([5, 6, 7], 1, whole=True), passage([8])]), 4)
    row = next(packer)
    assert row.tokens_T.tolist() == [1, 2, 5, 6]
    assert row.targets_T.tolist() == [2, NO_TARGET, NO_TARGET, NO_TARGET]
    assert packer.rest.ids_N.tolist() == [5, 6, 7]
    row = next(packer)
    assert row.tokens_T.tolist() == [5, 6, 7, 8]
    assert row.targets_T.tolist() == [6, 7, NO_TARGET, NO_TARGET]
    assert row.domains_T.tolist() == [1, 1, 1, 0]


def test_only_what_is_taught_is_a_target():
    some = Passage(np.array([7, 8, 9, 4], dtype=np.uint16), np.array([False, False, True, False]), 0)
    row = make_row([some, passage([2, 3])])
    assert row.tokens_T.tolist() == [7, 8, 9, 4, 2, 3]
    assert row.targets_T.tolist() == [NO_TARGET, 9, NO_TARGET, NO_TARGET, 3, NO_TARGET]


def test_what_a_row_leaves_open_is_known():
    packer = Packer(iter(numbered([5, 4])), 3)
    next(packer)
    assert packer.rest.ids_N.tolist() == [3, 4]
    next(packer)
    assert packer.rest.ids_N.tolist() == [6, 7, 8]
