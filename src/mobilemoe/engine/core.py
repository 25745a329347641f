"""An open INT4 model and the texts in progress on it; batches, scoring and the public `Engine` are built on these.

T tokens, L layers, A active experts, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint.draft import DRAFT
from mobilemoe.config import ModelConfig
from mobilemoe.engine.engine_file_cache import check_source, open_model
from mobilemoe.engine.expert_use import ExpertUse
from mobilemoe.engine.native import native, our_errors
from mobilemoe.engine.watch import Watch
from mobilemoe.errors import UsageError
from mobilemoe.ids import check_ids, common_prefix
from mobilemoe.routing import Routing, RoutingUse

Activations = Literal["int8", "fp32"]
KvCache = Literal["int8", "fp16", "fp32"]
Speculate = Literal["auto", "off", "lookup", "draft"]
_NATIVE_KV: dict[KvCache, str] = {"int8": "int8", "fp16": "f16", "fp32": "f32"}

Floats: TypeAlias = npt.NDArray[np.float32]
Experts: TypeAlias = npt.NDArray[np.int32]
Score: TypeAlias = tuple[float, bool]  # the log-probability of a token or a text in nats, and whether it is greedy
# A session, the tokens to append to it, and for how many of the last of these the output is wanted.
Request: TypeAlias = "tuple[Session, Sequence[int], int]"

LEAST_TEXT = 64  # tokens: under max_memory there is room for these at least
CHUNK = 512  # tokens of one forward pass; between two of them an interrupt is seen, and texts may join or leave


class Drafts(NamedTuple):
    """Counts of guessed tokens: the passes of one text that held some, those computed, those that were right."""

    passes: int
    proposed: int
    accepted: int


class Core:
    """An open model that appends tokens to sessions and gives logits, or the log-probabilities of given tokens.

    One call computes at a time, whichever thread it comes from; a session is for one thread. `text_bytes` is how much
    memory all texts together should take under `max_memory`: what the experts leave, a quarter of what both share, or
    that of 64 tokens, whichever is most.
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
        speculate: Speculate = "auto",
        max_memory: int | None = None,
        routing: Routing | None = None,
    ) -> None:
        """Opens the INT4 model in `folder`; with `quantize` a BF16 model, which is rounded to INT4.

        threads: by default one for each fast core of this process, and never more than its cores. activations: "fp32"
        is exact and slow. kv: the format of cached keys and values, by default that of the activations, and "fp32"
        wherever these are "fp32". context: the longest text in tokens, by default the model's. speculate: "auto"
        guesses tokens where a text repeats itself, or by the model's draft head, and where that makes it faster;
        "lookup" and "draft" do one of them whether it does or not. No guess changes what is written. max_memory: bytes
        that this whole process may come to have. Routed experts that do not fit are then read from the engine file
        whenever they are needed, which changes no result, the context is what there is room for, and there is no head.
        routing: by default the model's own.
        Raises UsageError, ConfigError, CheckpointError.
        """
        kv = kv or activations
        for name, value, known in (
            ("activations", activations, get_args(Activations)),
            ("kv", kv, get_args(KvCache)),
            ("quantize", quantize, (None, "int4")),
            ("speculate", speculate, get_args(Speculate)),
        ):
            if value not in known:
                raise UsageError(f"{name} is {value!r}, but must be {' or '.join(map(repr, known))}")
        if activations == "fp32" and kv != "fp32":
            raise UsageError(f"kv is {kv!r}, but `activations` 'fp32' are exact: they keep keys and values in 'fp32'")
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= 1024):
            raise UsageError(f"threads is {threads!r}, but must be a whole number from 1 to 1024")
        if max_memory is not None and not (isinstance(max_memory, int) and 0 < max_memory < 2**63):
            raise UsageError(f"max_memory is {max_memory!r}, but must be a whole number of bytes from 1 to 2**63 - 1")
        if max_memory is not None and speculate == "draft":
            raise UsageError(
                "speculate is 'draft', but with max_memory there is no draft head: take 'auto' or 'lookup'"
            )
        self.folder = Path(folder)
        self.config = config = ModelConfig.load(self.folder)
        self.routing = routing or Routing()
        self.routing.check_for(config, max_memory=max_memory, speculate=speculate)
        self.speculate: Speculate = "off" if self.routing.depends_on_others else speculate
        self.context = self._check_context(context)

        self._mapped: Watch | None = None

        def open_path(path: Path) -> native.Engine:
            self._mapped = Watch(path) if path.is_file() else None  # the weights of a folder are read into memory
            with our_errors():
                return native.Engine.open(
                    str(path),
                    threads=threads or 0,
                    kv=_NATIVE_KV[kv],
                    fp32=activations == "fp32",
                    max_memory=max_memory or 0,
                    **self.routing.native_options(),
                )

        self.native = open_model(self.folder, config, open_path, round_weights=quantize is not None)
        if (fewer := self.routing.experts_per_token) is not None:
            self.config = dataclasses.replace(config, num_experts_per_tok=fewer)
        self.text_bytes: int | None = None
        if max_memory is not None:
            room, use = self.native.room, self.native.expert_use
            least = self.kv_bytes(min(LEAST_TEXT, self.context))
            self.text_bytes = max(room - use["experts"] * use["expert_bytes"], room // 4, least)
            self.context = bisect_right(range(1, self.context + 1), room, key=self.native.kv_bytes)
        else:
            self._load_draft()

    def _load_draft(self) -> None:
        """Takes the model's draft head where it is of use. CheckpointError if it is damaged or does not fit."""
        path = self.folder / DRAFT
        if self.speculate == "draft" and not path.exists():
            raise UsageError(f"speculate is 'draft', but {self.folder} has no draft head ({DRAFT})")
        if self.speculate in ("auto", "draft") and path.exists():
            with our_errors():
                self.native.load_draft(str(path))

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
        """64 hex digits that identify the config and the INT4 weights in use, whichever file they were read from."""
        return self.native.fingerprint.hex()

    @property
    def expert_use(self) -> ExpertUse | None:
        """How the routed experts came into memory so far; None where all of them are there from the start."""
        use = self.native.expert_use
        return ExpertUse(**use) if use["experts"] else None

    @property
    def routing_use(self) -> RoutingUse:
        """What came of `routing` so far."""
        return RoutingUse(**self.native.routing_use)

    @property
    def drafts(self) -> Drafts:
        """What became of the guesses so far."""
        return Drafts(*self.native.drafts)

    def speculation(self) -> native.Speculation | None:
        """For one text; None where nothing is guessed."""
        return None if self.speculate == "off" else self.native.new_speculation(self.speculate)

    def kv_bytes(self, tokens: int) -> int:
        """The memory that the keys and values of one session with `tokens` tokens fill."""
        return self.native.kv_bytes(tokens)

    def saved_tokens(self, path: Path | str) -> list[int]:
        """The tokens of a session that `Session.save` wrote, without a look at the rest of the file.

        CheckpointError if that is no session of this model; only `restore` can tell whether the file is whole.
        """
        with our_errors():
            return self.native.session_tokens(str(path))

    def check_source(self) -> None:
        """Reads the model's files again: CheckpointError unless the open model was made from their present contents."""
        check_source(self.folder, self.native)

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

    def logits(self, ids: Iterable[int]) -> Floats:
        """logits_TV of the next token, after each of the T ids."""
        checked = self.check_ids(ids)
        return self.forward([(self.session(len(checked)), checked, len(checked))])

    def forward(self, requests: Sequence[Request], experts: Mapping[Session, Experts] | None = None) -> Floats:
        """Appends tokens to several sessions: logits of the positions asked for, by request, then by position.

        `experts` are arrays chosen_TLA for some of the sessions, into which the experts of their tokens are written,
        best first. Long work is done in chunks, so that an interrupt need not wait for all of it. UsageError for ids
        outside the vocabulary, and for more tokens than a session takes; CheckpointError if the engine file was changed
        meanwhile.
        """
        plan = list(chunks(self._checked(requests)))
        places = _places(plan, experts) if experts else [None] * len(plan)
        passes = list(zip(map(_natively, plan), places, strict=True))
        with our_errors():
            if len(passes) == 1:  # the usual case, one token of each text: the logits need not be copied
                self._check_mapped()
                return self.native.forward(passes[0][0], chosen_experts=passes[0][1])
            logits = np.empty((sum(outputs for _, _, outputs in requests), self.vocab_size), np.float32)
            done = 0
            for each, chosen in passes:
                self._check_mapped()
                found = self.native.forward(each, chosen_experts=chosen)
                logits[done : done + len(found)] = found
                done += len(found)
        return logits

    def score(self, requests: Sequence[tuple[Session, Sequence[int], Sequence[int]]]) -> list[list[Score]]:
        """Appends tokens as `forward` does, and scores the targets given for the last positions of each request.

        No logits are kept: memory does not grow with the number of positions.
        """
        targets = [check_ids(wanted, self.vocab_size, len(ids)) for _, ids, wanted in requests]
        scores: list[Score] = []
        flat = [token for wanted in targets for token in wanted]
        for chunk in chunks(self._checked([(session, ids, len(wanted)) for session, ids, wanted in requests])):
            count = sum(outputs for _, _, outputs in chunk)
            self._check_mapped()
            with our_errors():
                logprobs, greedy = self.native.score(_natively(chunk), flat[len(scores) : len(scores) + count])
            scores += zip(logprobs.tolist(), greedy.tolist(), strict=True)
        found = iter(scores)
        return [list(islice(found, len(wanted))) for wanted in targets]

    def check_ids(self, ids: Iterable[int]) -> list[int]:
        """`ids` as plain ints; UsageError if there are none, too many, or one outside the vocabulary."""
        return check_ids(ids, self.vocab_size, self.context)

    def _check_mapped(self) -> None:
        if self._mapped is not None:
            self._mapped.check()

    def _checked(self, requests: Sequence[Request]) -> list[Request]:
        """The requests with checked ids, without those that append nothing."""
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


class Session:
    """One text in progress: its tokens, with their keys and values. For one thread at a time.

    Made by `Engine.session`, `Engine.restore` or `fork`.
    """

    def __init__(self, engine: Core, sequence: native.Sequence, context: int) -> None:
        self.engine, self.native, self.context = engine, sequence, context

    def __len__(self) -> int:
        return self.native.length

    @property
    def tokens(self) -> list[int]:
        """The ids whose keys and values are kept."""
        return list(self.native.tokens)

    def append(self, ids: Iterable[int]) -> Floats:
        """Appends `ids` to the text: logits_V of the token that follows.

        Long texts are computed in chunks; an interrupt between two of them leaves a session of the tokens so far.
        UsageError for ids outside the vocabulary, or more than the context takes.
        """
        checked = check_ids(ids, self.engine.vocab_size, self.context, behind=len(self))
        logits_V: Floats = self.engine.forward([(self, checked, 1)])[0]
        return logits_V

    def extend_to(self, ids: Iterable[int]) -> Floats:
        """Makes `ids` the text, keeping the longest common prefix: logits_V of the token that follows."""
        checked = check_ids(ids, self.engine.vocab_size, self.context)
        self.truncate(min(common_prefix(self.tokens, checked), len(checked) - 1))
        return self.append(checked[len(self) :])

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens; UsageError if there are fewer."""
        with our_errors():
            self.native.truncate(length)

    def copy_from(self, other: Session, length: int) -> None:
        """Becomes a copy of the first `length` tokens of another session; UsageError if they are not there."""
        with our_errors():
            self.native.copy_from(other.native, length)

    def fork(self, length: int | None = None, *, context: int | None = None) -> Session:
        """A new session with a copy of the first `length` tokens (default: all) of this one.

        `context` is how many tokens the new one can hold, by default as many as others of this engine.
        """
        copy = self.engine.session(context)
        copy.copy_from(self, len(self) if length is None else length)
        return copy

    def save(self, path: Path | str) -> None:
        """Writes the session to a file, in one step, for `Engine.restore` in another process."""
        with our_errors():
            self.native.save(str(path))


def chunks(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """The same work in forward passes of at most CHUNK tokens; a session is in each of them at most once."""
    if 0 < sum(len(ids) for _, ids, _ in requests) <= CHUNK:  # the usual case
        yield [*requests]
        return
    chunk: list[Request] = []
    budget = CHUNK
    for session, ids, outputs in requests:
        start = 0
        while start < len(ids):
            end = min(len(ids), start + budget)
            chunk.append((session, ids[start:end], max(0, end - max(start, len(ids) - outputs))))
            budget -= end - start
            start = end
            if budget == 0:
                yield chunk
                chunk, budget = [], CHUNK
    if chunk:
        yield chunk


def _places(plan: Sequence[Sequence[Request]], experts: Mapping[Session, Experts]) -> Iterator[list[Experts | None]]:
    """For each pass of `plan` the parts of the arrays in `experts` that its requests fill."""
    done: Counter[Session] = Counter()
    for requests in plan:
        places: list[Experts | None] = []
        for session, ids, _ in requests:
            start = done[session]
            done[session] += len(ids)
            places.append(experts[session][start : done[session]] if session in experts else None)
        yield places


def _natively(requests: Sequence[Request]) -> list[tuple[native.Sequence, Sequence[int], int]]:
    return [(session.native, ids, outputs) for session, ids, outputs in requests]
