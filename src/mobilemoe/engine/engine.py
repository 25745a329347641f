"""The native engine: INT4 models, computed on the CPU without expanding their weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mobilemoe.engine.batch import Batch
from mobilemoe.engine.conversation import Conversation
from mobilemoe.engine.core import Core, Score, Session
from mobilemoe.engine.native import native
from mobilemoe.engine.scoring import Pair, loglikelihoods
from mobilemoe.sampling import Sampling


class Engine(Core):
    """An open model: `session` for one text, `batch` for several that run together, `loglikelihoods` to score.

    One call computes at a time, whichever thread it comes from; a session or batch is for one thread.
    """

    def batch(self) -> Batch:
        """An empty batch. Texts that join it are computed together."""
        return Batch(self)

    def start(
        self, prompts: Sequence[list[int]], max_new_tokens: int, sampling: Sampling, logprobs: int | None = None
    ) -> Batch:
        """A batch of `prompts`, each to be continued by at most `max_new_tokens` tokens."""
        batch = self.batch()
        for prompt in prompts:
            session = self.session(min(self.context, len(prompt) + max_new_tokens))
            batch.join(prompt, sampling, logprobs=logprobs, session=session)
        return batch

    def conversation(self) -> Conversation:
        """An empty conversation: each of its texts computes only what it adds to the one before."""
        return Conversation(self)

    def generate_ids(
        self,
        ids: Iterable[int],
        *,
        max_new_tokens: int = 256,
        stop_ids: Iterable[int] = (),
        session: Session | None = None,
        **sampling: Any,
    ) -> list[int]:
        """The ids that follow `ids`, up to and including the first of `stop_ids`; `sampling` are fields of `Sampling`.

        There are at most as many as fit into the context. A given `session` keeps the prefix that it shares with `ids`,
        and in the end holds everything but the last token.
        """
        batch, stops, made = self.batch(), frozenset(stop_ids), list[int]()
        prompt, session = self.check_ids(ids), self.session() if session is None else session
        batch.join(prompt, Sampling(**sampling), session=session)
        fitting = max(1, session.context - len(prompt) + 1)  # the last token is chosen, but never computed with
        while len(batch) and max_new_tokens > 0:
            for number, choice in batch.step():
                made.append(choice.token)
                if len(made) == min(max_new_tokens, fitting) or choice.token in stops:
                    batch.leave(number)
        return made

    def loglikelihood(self, context: Sequence[int], continuation: Sequence[int]) -> Score:
        """log P(continuation | context) in nats, and whether greedy decoding would give just that."""
        return self.loglikelihoods([(context, continuation)])[0]

    def loglikelihoods(self, pairs: Sequence[Pair]) -> list[Score]:
        """`loglikelihood` of each (context, continuation); prefixes that they share are computed once."""
        return loglikelihoods(self, pairs)


def instruction_sets() -> list[str]:
    """Those that this build has and this machine can run, best first."""
    return native.available_kernels()
