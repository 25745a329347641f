"""Batches that a thread prepares are the same ones, and the state counts only those that were taken."""

import threading

import pytest

from mobilemoe.data.prefetch import Prefetcher
from mobilemoe.errors import DataError


class Counting:
    """Stands in for a loader: batches are numbers."""

    def __init__(self, fails_at=None, fault=None):
        self.made, self.fails_at = 0, fails_at
        self.fault = fault or DataError("the disk is gone")

    def __next__(self):
        if self.made == self.fails_at:
            raise self.fault
        self.made += 1
        return self.made

    def state_dict(self):
        return {"made": self.made}

    def load_state_dict(self, state):
        self.made = state["made"]


def test_the_batches_and_the_state_of_the_last_one_taken():
    batches = Prefetcher(Counting())
    assert batches.state_dict() == {"made": 0}
    assert [next(batches) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert batches.state_dict() == {"made": 5}
    batches.close()
    resumed = Prefetcher(Counting())
    resumed.load_state_dict(batches.state_dict())
    assert next(resumed) == 6
    resumed.close()


def test_a_fault_is_raised_where_its_batch_is_asked_for():
    batches = Prefetcher(Counting(fails_at=3))
    assert [next(batches) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(DataError, match="the disk is gone"):
        next(batches)
    batches.close()


@pytest.mark.parametrize("fault", [MemoryError("full"), BaseException("a panic"), SystemExit(3)])
def test_whatever_ends_the_thread_ends_the_wait(fault):
    batches = Prefetcher(Counting(fails_at=0, fault=fault))
    for _ in range(2):  # nobody makes another batch
        with pytest.raises(type(fault)):
            next(batches)
    batches.close()


def test_closing_ends_the_thread_whatever_it_waits_for():
    before = {*threading.enumerate()}
    batches = Prefetcher(Counting())
    next(batches)
    batches.close()
    Prefetcher(Counting()).close()
    assert {*threading.enumerate()} <= before, "others' threads may have ended meanwhile"
