"""How long a client is told to wait."""

from mobilemoe.serve.pace import Pace


def test_the_wait_is_the_time_until_a_request_leaves_the_queue():
    pace = Pace()
    pace.ended(8)
    assert pace.seconds_until([1, 1], ages=[1, 1], places=4) == 2, "every 2 seconds one of 4 places becomes free"
    assert pace.seconds_until([3, 1], ages=[1, 1], places=4) == 4, "the first in the queue has more texts left"
    assert pace.seconds_until([3, 3], ages=[1, 1], places=4) == 10, "after two rounds of two"


def test_without_an_ended_text_the_running_ones_are_what_is_known():
    assert Pace().seconds_until([1], ages=[10, 30], places=2) == 10
    assert Pace().seconds_until([1], ages=[], places=2) == 0


def test_recent_texts_count_more():
    pace = Pace()
    for seconds in [1] * 20 + [100] * 20:
        pace.ended(seconds)
    assert 98 < pace.seconds_until([1], ages=[], places=1) < 100
