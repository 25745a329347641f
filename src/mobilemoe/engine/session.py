"""One text in progress on the native engine: its tokens with their keys and values.

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mobilemoe.engine.native import our_errors
from mobilemoe.ids import check_ids, common_prefix

if TYPE_CHECKING:
    from mobilemoe.engine._native import Sequence as NativeSequence
    from mobilemoe.engine.engine import Engine


class Session:
    """Made by `Engine.session`, `fork` or `Engine.restore`; for one thread at a time."""

    def __init__(self, engine: Engine, sequence: NativeSequence, context: int) -> None:
        self.engine, self.native, self.context = engine, sequence, context

    def __len__(self) -> int:
        return self.native.length

    @property
    def tokens(self) -> list[int]:
        """The ids whose keys and values are kept."""
        return list(self.native.tokens)

    def append(self, ids: Iterable[int]) -> npt.NDArray[np.float32]:
        """Computes `ids` behind what is there: logits_V of what comes next.

        Long texts are computed in chunks; an interrupt between two of them leaves a session of the tokens so far.
        UsageError for ids that cannot be, or more than the context takes.
        """
        checked = check_ids(ids, self.engine.vocab_size, self.context, behind=len(self))
        logits_V: npt.NDArray[np.float32] = self.engine.forward([(self, checked, 1)])[0]
        return logits_V

    def extend_to(self, ids: Iterable[int]) -> npt.NDArray[np.float32]:
        """Makes the session one of exactly `ids`, keeping the longest common prefix: logits_V behind the last."""
        checked = check_ids(ids, self.engine.vocab_size, self.context)
        self.truncate(min(common_prefix(self.tokens, checked), len(checked) - 1))
        return self.append(checked[len(self) :])

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens; UsageError if there are fewer."""
        with our_errors():
            self.native.truncate(length)

    def fork(self, length: int | None = None, *, context: int | None = None) -> Session:
        """A session of its own that begins with the first `length` tokens (default: all) of this one.

        `context` is how many tokens it can hold, by default as many as others of this engine.
        """
        copy = self.engine.session(context)
        with our_errors():
            copy.native.copy_from(self.native, len(self) if length is None else length)
        return copy

    def save(self, path: Path | str) -> None:
        """Writes the session to a file, in one step, for `Engine.restore` in another process."""
        with our_errors():
            self.native.save(str(path))
