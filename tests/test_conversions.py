"""The table of conversions says what the tests measured."""

import re

import pytest

from conversions import key_of, load, shown, table
from places import ROOT


def test_the_page_shows_the_measured_rows():
    assert shown() == table(load()), "run `make matrix`"


def test_every_row_comes_from_a_test_that_is_there():
    rows = load()
    assert len({key_of(row) for row in rows}) == len(rows)
    for row in rows:
        path, _, name = row["test"].partition("::")
        assert re.search(rf"^def {name}\(.*\bconversion\b", (ROOT / path).read_text(), re.MULTILINE), row["test"]


def test_an_error_beyond_the_kept_one_and_an_unknown_conversion_are_refused(conversion):
    row = next(row for row in load() if row["error"] > 0 and not row["runtime"])
    conversion(row["from"], row["to"], row["error"])
    with pytest.raises(AssertionError):
        conversion(row["from"], row["to"], 2 * row["error"])
    with pytest.raises(AssertionError, match="run `make matrix`"):
        conversion("BF16", "a format that nobody has", 0)
