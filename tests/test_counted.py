"""Counts agree with their nouns, and large ones have commas."""

from mobilemoe.counted import counted


def test_one_is_singular_and_all_other_counts_are_plural():
    assert [counted(number, "run") for number in (0, 1, 2, 1000)] == ["0 runs", "1 run", "2 runs", "1,000 runs"]
    assert [counted(number, "memory", "memories") for number in (1, 2)] == ["1 memory", "2 memories"]
