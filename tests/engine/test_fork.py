"""A process that forks after it has opened a model: parent and child both compute, and both end."""

import os
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest

from engine_models import ids_for
from mobilemoe.engine import Engine


def exit_status_of_child(work: Callable[[], bool]) -> int:
    """0 if `work` holds in a child, which is killed after 30 s."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1]


@pytest.fixture
def engine(in_folder):
    return Engine(in_folder, threads=3)


def test_a_child_computes_the_same_and_lets_the_engine_go(engine):
    ids = ids_for(engine, 40)
    session = engine.session()
    expected = session.append(ids)

    def child() -> bool:
        nonlocal engine, session
        same = np.array_equal(engine.session().append(ids), expected) and len(session.append(ids[:3])) > 0
        del engine, session
        return same

    for _ in range(3):
        assert exit_status_of_child(child) == 0
    np.testing.assert_array_equal(engine.session().append(ids), expected)
    assert session.tokens == ids


def test_a_fork_while_another_thread_computes_leaves_a_child_that_can(engine):
    ids, stop = ids_for(engine, 200), threading.Event()
    expected = engine.logits(ids)

    def compute() -> None:
        while not stop.is_set():
            engine.logits(ids)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        for _ in range(5):
            assert exit_status_of_child(lambda: np.array_equal(engine.logits(ids), expected)) == 0
    finally:
        stop.set()
        thread.join()
