"""One text of a batch: its tokens so far, and what chooses the next ones.

R rows of a pass, L layers, A active experts, V vocabulary.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TypeAlias

from mobilemoe.engine.core import Experts, Floats, Session
from mobilemoe.engine.guides import Bits, Guide
from mobilemoe.engine.native import native, our_error, our_errors
from mobilemoe.sampling import Choice, Sampling

NativeText: TypeAlias = "tuple[native.Sampler, Floats, bool, int, Bits | None, native.Speculation | None]"


@dataclass(eq=False)
class Member:
    session: Session
    ids: list[int]  # the prompt and the tokens chosen so far; the session holds at least one fewer
    sampler: native.Sampler
    logprobs: int | None
    guide: Guide | None
    experts: bool
    speculation: native.Speculation | None
    reused: int  # tokens of the prompt that were not computed for this text
    leader: Member | None = None  # whose first `shared` tokens this text takes over as soon as they are computed
    shared: int = 0
    drafts: list[int] = field(default_factory=list)  # guesses of the next tokens, in the pass that computes now
    untold: int = 0  # the last tokens of `ids` that the batch's owner has not got yet

    def take_over(self) -> None:
        """Copies what the leader has computed of the shared tokens; the text goes on by itself."""
        if self.leader is not None and (length := min(self.shared, len(self.leader.session))) > len(self.session):
            self.session.copy_from(self.leader.session, length)
            self.reused = length
        self.leader = None

    def to_choose(self, logits_RV: Floats, allowed_V: Bits | None) -> NativeText:
        """What the native engine needs to choose the next tokens."""
        return (
            self.sampler,
            logits_RV,
            self.logprobs is not None,
            self.logprobs or 0,
            allowed_V,
            self.speculation,
        )

    def take(
        self, choice: tuple[int, float, list[tuple[int, float]]] | native.NativeError, experts_LA: Experts | None
    ) -> Choice:
        """Appends what was chosen. Raises the error of the sampler, if it is one, or of the guide."""
        if isinstance(choice, native.NativeError):
            raise our_error(choice)
        token, logprob, top = choice
        self.ids.append(token)
        if self.guide is not None:
            self.guide.take(token)
        used = () if experts_LA is None else tuple(map(tuple, experts_LA.tolist()))
        return Choice(token, experts=used) if self.logprobs is None else Choice(token, logprob, tuple(top), used)


def native_sampler(sampling: Sampling, vocab_size: int) -> native.Sampler:
    with our_errors():
        return native.Sampler(
            vocab_size,
            temperature=float(sampling.temperature),
            top_k=min(int(sampling.top_k), vocab_size),
            top_p=float(sampling.top_p),
            min_p=float(sampling.min_p),
            repetition_penalty=float(sampling.repetition_penalty),
            presence_penalty=float(sampling.presence_penalty),
            frequency_penalty=float(sampling.frequency_penalty),
            seed=secrets.randbits(64) if sampling.seed is None else int(sampling.seed),
            logit_bias={int(token): float(bias) for token, bias in sampling.logit_bias.items()},
        )
