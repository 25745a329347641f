"""Texts that follow one another, as the turns of a chat do: the keys and values of the latest are used again."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from mobilemoe.engine.batch import Batch
from mobilemoe.engine.core import Core, Session
from mobilemoe.ids import common_prefix
from mobilemoe.sampling import Sampling


class Conversation:
    """Made by `Engine.conversation`. Any thread may start a text; each text is then for one thread."""

    def __init__(self, engine: Core) -> None:
        self._engine = engine
        self._lock = Lock()
        self._latest: Session | None = None
        self._batch: Batch | None = None  # the one that computes with the latest session

    def start(self, ids: Sequence[int], sampling: Sampling, *, logprobs: int | None = None) -> Batch:
        """A batch of one text, which continues `ids`; what these share with the latest text is not computed again.

        An earlier text that has not left its batch is not disturbed. Raises as `Batch.join` does.
        """
        batch = Batch(self._engine)
        with self._lock:
            session = self._session_for(ids)
            batch.join(ids, sampling, logprobs=logprobs, session=session)
            self._latest, self._batch = session, batch
        return batch

    def _session_for(self, ids: Sequence[int]) -> Session:
        if self._latest is None:
            return self._engine.session()
        if self._batch is not None and len(self._batch):  # more text of it may follow
            return self._latest.fork(common_prefix(self._latest.tokens, ids))
        return self._latest
