"""Ctrl-C in the middle of a batch's steps."""

import pytest


def interrupted_steps(engine, batch, monkeypatch, turns: int) -> list[int]:
    """The tokens of `turns` steps of a batch with one text, every third of which is first interrupted."""
    forward, made = type(engine).forward, []

    def interrupted(self, *requests):
        forward(self, *requests)  # the work is done, but Ctrl-C comes before its result is taken
        raise KeyboardInterrupt

    for turn in range(turns):
        if turn % 3 == 1:
            with monkeypatch.context() as patch:
                patch.setattr(type(engine), "forward", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    batch.step()
        made += [choice.token for _, choice in batch.step()]
    return made
