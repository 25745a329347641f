"""Numbers of a report as people read them."""

import pytest

from mobilemoe.scaling.optimum.optimum import Band
from mobilemoe.scaling.report.words import band, count, loss, number, size


@pytest.mark.parametrize(("billions", "said"), [(0.0123, "12.3 M"), (0.9994, "999 M"), (1.0, "1 B"), (14.06, "14.1 B")])
def test_counts_are_millions_below_a_billion(billions, said):
    assert count(billions) == said


@pytest.mark.parametrize(("bytes_", "said"), [(87.44e6, "87.4 MB"), (1e9, "1 GB"), (2.345e9, "2.35 GB")])
def test_sizes_are_megabytes_below_a_gigabyte(bytes_, said):
    assert size(bytes_) == said


def test_losses_have_four_digits_behind_the_point():
    assert (loss(2.3), number(123456.0)) == ("2.3000", "1.235e+05")


def test_a_band_has_its_ends_unless_they_are_the_value_itself_as_it_is_said():
    assert band(Band(1.0, 0.9, 1.1), count) == "1 B (900 M to 1.1 B)"
    assert band(Band(8, 8, 8), number) == "8"
    assert band(Band(1.0, 0.9999999, 1.0000001), number) == "1"
