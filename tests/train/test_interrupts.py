"""Which signals ask a run to stop."""

import signal

import pytest

from mobilemoe.train.interrupts import interrupts

KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def _on_a_terminal():
    """These tests too may run under nohup, which ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("_on_a_terminal")
def test_a_signal_asks_once_and_insists_twice(kind):
    before = [signal.getsignal(each) for each in KINDS]
    with interrupts(insistent=True) as stop:
        assert not stop.made
        signal.raise_signal(kind)
        assert stop.made
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(kind)
    assert [signal.getsignal(each) for each in KINDS] == before


def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts(insistent=True) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.made
    finally:
        signal.signal(signal.SIGHUP, before)
