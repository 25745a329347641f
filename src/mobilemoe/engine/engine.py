"""The native engine: INT4 models, computed on the CPU without expanding their weights.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from mobilemoe.config import ModelConfig
from mobilemoe.engine.batch import CHUNK, Batch
from mobilemoe.engine.cache import check_source, open_model
from mobilemoe.engine.native import native, our_errors
from mobilemoe.engine.scoring import Pair, Result, loglikelihoods
from mobilemoe.engine.session import Session
from mobilemoe.errors import UsageError
from mobilemoe.ids import check_ids, common_prefix
from mobilemoe.sampling import Sampling

Activations = Literal["int8", "fp32"]
KvCache = Literal["int8", "fp16", "fp32"]
_NATIVE_KV: dict[KvCache, str] = {"int8": "int8", "fp16": "f16", "fp32": "f32"}
Score: TypeAlias = tuple[float, bool]
Floats: TypeAlias = npt.NDArray[np.float32]
Request: TypeAlias = tuple[Session, Sequence[int], int]  # tokens to append, and of how many last ones logits are wanted


class Engine:
    """An open model: `session` for one text, `batch` for several that run together, `loglikelihoods` to score.

    One call computes at a time, whichever thread it comes from; a session or batch is for one thread.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        threads: int | None = None,
        activations: Activations = "int8",
        kv: KvCache | None = None,
        context: int | None = None,
        quantize: Literal["int4"] | None = None,
    ) -> None:
        """Opens the INT4 model in `folder`, or rounds a BF16 one to INT4 with `quantize`.

        threads: by default one for each core that this process may use; of more only so many run. activations: "fp32"
        is exact and slow. kv: how keys and values are kept, by default as the activations are (with "fp32" always).
        context: the most tokens of one text, by default those of the model.
        Raises UsageError, ConfigError, CheckpointError.
        """
        kv = kv or activations
        for name, value, known in (
            ("activations", activations, get_args(Activations)),
            ("kv", kv, get_args(KvCache)),
            ("quantize", quantize, (None, "int4")),
        ):
            if value not in known:
                raise UsageError(f"{name} is {value!r}, but must be {' or '.join(map(repr, known))}")
        if activations == "fp32" and kv != "fp32":
            raise UsageError(f"kv is {kv!r}, but activations 'fp32' are exact: they keep keys and values in 'fp32'")
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= 1024):
            raise UsageError(f"threads is {threads!r}, but must be a whole number from 1 to 1024")
        self.folder = Path(folder)
        self.config = ModelConfig.load(self.folder)
        self.context = self._check_context(context)

        def open_path(path: Path) -> native.Engine:
            with our_errors():
                return native.Engine.open(
                    str(path), threads=threads or 0, kv=_NATIVE_KV[kv], fp32=activations == "fp32"
                )

        self.native = open_model(self.folder, self.config, open_path, round_weights=quantize is not None)
        self._lock = Lock()
        self._kept: Session | None = None  # of the last single text, and the batch that has it
        self._user: Batch | None = None

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def threads(self) -> int:
        return self.native.threads

    @property
    def isa(self) -> str:
        """The instruction set that computes."""
        return self.native.isa

    @property
    def fingerprint(self) -> str:
        """64 hex digits that stand for the config and the INT4 weights that compute, wherever they were read from."""
        return self.native.fingerprint.hex()

    def check_source(self) -> None:
        """Reads the model's files anew: CheckpointError unless what computes was made from what they hold now."""
        check_source(self.folder, self.native)

    # One text

    def session(self, context: int | None = None) -> Session:
        """An empty session that can hold `context` tokens (default: the engine's)."""
        context = self.context if context is None else self._check_context(context)
        with our_errors():
            return Session(self, self.native.new_sequence(context), context)

    def restore(self, path: Path | str) -> Session:
        """The session that `Session.save` wrote; CheckpointError if it is damaged or of another model."""
        session = self.session()
        with our_errors():
            session.native.load(str(path))
        return session

    def generate_ids(
        self,
        ids: Iterable[int],
        *,
        max_new_tokens: int = 256,
        stop_ids: Iterable[int] = (),
        session: Session | None = None,
        **sampling: Any,
    ) -> list[int]:
        """The ids that follow `ids`, up to one of `stop_ids`, which is given too; `sampling` are those of `Sampling`.

        No more than the context has room for. Of a `session` the common prefix is kept; it ends up holding everything
        but the last token.
        """
        batch, stops, made = self.batch(), frozenset(stop_ids), list[int]()
        prompt, session = self.check_ids(ids), self.session() if session is None else session
        batch.join(prompt, Sampling(**sampling), session=session)
        room = max(1, session.context - len(prompt) + 1)  # the last token is not computed any more
        while len(made) < min(max_new_tokens, room) and (not made or made[-1] not in stops):
            made += [choice.token for _, choice in batch.step()]
        return made

    # Several texts

    def batch(self) -> Batch:
        """An empty batch, to be joined by texts that then run together."""
        return Batch(self)

    def start(self, prompts: Sequence[list[int]], room: int, sampling: Sampling, logprobs: int | None = None) -> Batch:
        """A batch of `prompts`, to be continued by at most `room` tokens each.

        A single one goes on from where the last single one was, as far as the two agree: a conversation.
        """
        batch = self.batch()
        if len(prompts) == 1:
            with self._lock:
                self._kept = self._session_to_continue(prompts[0])
                batch.join(prompts[0], sampling, logprobs=logprobs, session=self._kept)
                self._user = batch
            return batch
        for prompt in prompts:
            session = self.session(min(self.context, len(prompt) + room))
            batch.join(prompt, sampling, logprobs=logprobs, session=session)
        return batch

    def _session_to_continue(self, prompt: Sequence[int]) -> Session:
        if self._kept is None:
            return self.session()
        if self._user is not None and len(self._user):  # its text may still go on
            return self._kept.fork(common_prefix(self._kept.tokens, prompt))
        return self._kept

    # Numbers

    def logits(self, ids: Iterable[int]) -> Floats:
        """logits_TV: after each of the T ids, what comes next."""
        checked = self.check_ids(ids)
        return self.forward([(self.session(len(checked)), checked, len(checked))])

    def forward(self, requests: Sequence[Request]) -> Floats:
        """Appends tokens to several sessions: logits of the positions asked for, by request, then by position.

        Long work is done in chunks, so that an interrupt need not wait for all of it. UsageError for ids outside the
        vocabulary, and for more tokens than a session takes.
        """
        passes = [_natively(chunk) for chunk in chunks(self._checked(requests))]
        with our_errors():
            if len(passes) == 1:  # one token of each text: no copy
                return self.native.forward(passes[0])
            logits = np.empty((sum(outputs for _, _, outputs in requests), self.vocab_size), np.float32)
            done = 0
            for each in passes:
                found = self.native.forward(each)
                logits[done : done + len(found)] = found
                done += len(found)
        return logits

    def score(self, requests: Sequence[tuple[Session, Sequence[int], Sequence[int]]]) -> list[list[Score]]:
        """As `forward`, with targets for the last positions of each: log-probability in nats of each target, and
        whether it is the greedy choice. No logits are kept."""
        targets = [check_ids(wanted, self.vocab_size, len(ids)) for _, ids, wanted in requests]
        scores: list[Score] = []
        flat = [token for wanted in targets for token in wanted]
        for chunk in chunks(self._checked([(session, ids, len(wanted)) for session, ids, wanted in requests])):
            count = sum(outputs for _, _, outputs in chunk)
            with our_errors():
                logprobs, greedy = self.native.score(_natively(chunk), flat[len(scores) : len(scores) + count])
            scores += zip(logprobs.tolist(), greedy.tolist(), strict=True)
        found = iter(scores)
        return [list(islice(found, len(wanted))) for wanted in targets]

    def loglikelihood(self, context: Sequence[int], continuation: Sequence[int]) -> Result:
        """log P(continuation | context) in nats, and whether greedy decoding would give just that."""
        return self.loglikelihoods([(context, continuation)])[0]

    def loglikelihoods(self, pairs: Sequence[Pair]) -> list[Result]:
        """`loglikelihood` of each (context, continuation), prefixes that they share computed once."""
        return loglikelihoods(self, pairs)

    def check_ids(self, ids: Iterable[int]) -> list[int]:
        """`ids` as plain ints; UsageError if there are none, too many or one that cannot be."""
        return check_ids(ids, self.vocab_size, self.context)

    def _checked(self, requests: Sequence[Request]) -> list[Request]:
        """Requests for no tokens are none."""
        for _, ids, outputs in requests:
            if not 0 <= outputs <= len(ids):
                raise UsageError(f"outputs is {outputs}, but must be from 0 to the {len(ids)} tokens")
        return [
            (session, check_ids(ids, self.vocab_size, session.context, behind=len(session)), outputs)
            for session, ids, outputs in requests
            if len(ids)
        ]

    def _check_context(self, context: int | None) -> int:
        longest = self.config.max_position_embeddings
        if context is None:
            return longest
        if not isinstance(context, int) or not 1 <= context <= longest:
            raise UsageError(f"context is {context!r}, but must be a whole number from 1 to {longest}")
        return context


def _natively(requests: Sequence[Request]) -> list[tuple[native.Sequence, Sequence[int], int]]:
    return [(session.native, ids, outputs) for session, ids, outputs in requests]


def chunks(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """The same work in forward passes of at most CHUNK tokens; a session is in each of them at most once."""
    chunk: list[Request] = []
    room = CHUNK
    for session, ids, outputs in requests:
        start = 0
        while start < len(ids):
            end = min(len(ids), start + room)
            chunk.append((session, ids[start:end], max(0, end - max(start, len(ids) - outputs))))
            room -= end - start
            start = end
            if room == 0:
                yield chunk
                chunk, room = [], CHUNK
    if chunk:
        yield chunk


def instruction_sets() -> list[str]:
    """Those that this build has and this machine can run, best first."""
    return native.available_kernels()
