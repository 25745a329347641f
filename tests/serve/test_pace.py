"""How long a client is told to wait."""

from mobilemoe.serve.pace import Pace


def test_the_wait_is_the_time_until_a_request_leaves_the_queue():
    pace = Pace()
    pace.ended(8)
    ages = [7, 1, 5, 3]
    assert pace.seconds_until([1, 1], ages, places=4) == 1, "the oldest text ends"
    assert pace.seconds_until([3, 1], ages, places=4) == 3, "the first in the queue has more texts left"
    assert pace.seconds_until([3, 3], ages, places=4) == 9, (
        "after two rounds of two; the fifth takes a second text's place"
    )
    assert pace.seconds_until([1], ages[:3], places=4) == 0, "a place is free"


def test_a_text_that_takes_longer_than_others_may_take_as_long_again():
    pace = Pace()
    assert pace.seconds_until([1], ages=[30, 10], places=2) == 10, "none has ended yet"
    pace.ended(8)
    assert pace.seconds_until([1], ages=[30, 10], places=2) == 10
    assert pace.seconds_until([1], ages=[30, 6], places=2) == 2


def test_recent_texts_count_more():
    pace = Pace()
    for seconds in [1] * 20 + [100] * 20:
        pace.ended(seconds)
    assert 98 < pace.seconds_until([1], ages=[0], places=1) < 100
