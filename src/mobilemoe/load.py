"""The two-line API: `load` a model, then `generate`, `stream` or ask for `logits`.

T tokens, V vocabulary.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mobilemoe.chat import ChatTemplate, encode_chat
from mobilemoe.checkpoint import Checkpoint
from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.errors import MissingExtraError, TokenizerError, UsageError
from mobilemoe.hub import find_model
from mobilemoe.sampling import Sampling
from mobilemoe.tokenizer import Tokenizer
from mobilemoe.writer import Writer

if TYPE_CHECKING:
    from mobilemoe.model import MobileMoE

Activations = Literal["fp32", "int8"]
Message = dict[str, str]


def load(name: str | Path, *, activations: Activations = "fp32") -> Model:
    """Loads a Hub id, a folder, a training run's folder, or a bundled model ("nano").

    activations: only "fp32" until the native engine is there. Raises ModelNotFoundError, ConfigError, CheckpointError.
    """
    if activations != "fp32":
        raise UsageError(f"activations is {activations!r}, but this version computes with 'fp32' only")
    folder = newest_model(find_model(name))
    try:
        import torch

        from mobilemoe.model import MobileMoE
    except ImportError:
        raise MissingExtraError("computing with PyTorch", "torch") from None
    with Checkpoint.open(folder) as checkpoint:
        with torch.device("meta"):  # no memory and no random numbers for weights that are read anyway
            torch_model = MobileMoE(checkpoint.config)
        torch_model.to_empty(device="cpu")
        torch_model.load_weights(checkpoint.weight)
    return Model(folder, torch_model.eval())


class Model:
    """A model that writes text. The tokenizer is read when it is first needed: `logits` works without one."""

    def __init__(self, folder: Path, torch_model: MobileMoE) -> None:
        self.folder, self.config, self._torch_model = folder, torch_model.config, torch_model
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError if the folder has none that fits the model."""
        if self._tokenizer is None:
            tokenizer = Tokenizer.load(self.folder)
            if tokenizer.vocab_size > self.config.vocab_size:
                raise TokenizerError(
                    f"the tokenizer in {self.folder} has {tokenizer.vocab_size} ids, "
                    f"but the model only {self.config.vocab_size}"
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text: those of config.json and those that the tokenizer names."""
        return frozenset(self.config.eos_token_id) | frozenset(self.tokenizer.stop_ids)

    def encode(self, prompt: str | None = None, messages: Sequence[Message] | None = None) -> list[int]:
        """The ids of a plain prompt (BOS before it) or of a conversation that the assistant is to continue."""
        if (prompt is None) == (messages is None):
            raise UsageError("give either a prompt or messages")
        if prompt is not None:
            if not isinstance(prompt, str):
                raise UsageError(f"the prompt is a {type(prompt).__name__}, but must be text")
            ids = self.tokenizer.encode(prompt, bos=self.tokenizer.bos_id is not None)
            if not ids:
                raise UsageError("the prompt is empty, and the tokenizer has no begin-of-text token to start from")
            return ids
        if self._template is None:
            self._template = ChatTemplate.load(self.folder)
        return encode_chat(self.tokenizer, self._template, messages or (), add_generation_prompt=True)

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """logits_TV: after each of the T ids, what comes next. Raises UsageError for ids that cannot be."""
        import torch

        self._check(ids)
        with torch.inference_mode():
            logits_BTV = self._torch_model(torch.tensor([list(ids)]))
        result: npt.NDArray[np.float32] = logits_BTV[0].float().numpy()
        return result

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> Stream:
        """The continuation, piece by piece as it is made; `sampling` are the fields of `Sampling`."""
        return Stream(self, self.encode(prompt, messages), max_new_tokens, stop, Sampling(**sampling))

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> str:
        """The continuation alone, as one text; arguments as for `stream`."""
        stream = self.stream(prompt, messages=messages, max_new_tokens=max_new_tokens, stop=stop, **sampling)
        return "".join(stream)

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> list[str]:
        """The continuations of several prompts, computed together; each as `generate` gives it."""
        from mobilemoe.model.generate import Decoder

        if isinstance(prompts, str):
            raise UsageError("prompts is one text, but must be a list of them")
        if not prompts:
            return []
        encoded = [self.encode(prompt) for prompt in prompts]
        rooms = [self.room(ids, max_new_tokens) for ids in encoded]
        settings = Sampling(**sampling)
        writers = [self.writer(ids, room, stop, settings) for ids, room in zip(encoded, rooms, strict=True)]
        decoder = Decoder(self._torch_model, encoded, max(rooms))
        texts = [""] * len(prompts)
        logits_BV = decoder.prefill()
        while True:
            for row, writer in enumerate(writers):
                if not writer.finished:
                    texts[row] += writer.push(logits_BV[row])
            if all(writer.finished for writer in writers):
                return texts
            logits_BV = decoder.step([writer.last for writer in writers])

    def room(self, ids: Sequence[int], max_new_tokens: int) -> int:
        """How many of `max_new_tokens` fit behind the prompt `ids` into the context."""
        self._check(ids)
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens!r}, but must be a whole number of at least 1")
        return max(1, min(max_new_tokens, self.config.max_position_embeddings - len(ids) + 1))

    def writer(self, ids: Sequence[int], room: int, stop: str | Sequence[str], sampling: Sampling) -> Writer:
        """What turns this model's logits behind `ids` into text."""
        return Writer(self.tokenizer, ids, room=room, stop_ids=self.stop_ids, stop=stop, sampling=sampling)

    def _check(self, ids: Sequence[int]) -> None:
        if len(ids) == 0:
            raise UsageError("there are no token ids: give at least one")
        if len(ids) > self.config.max_position_embeddings:
            raise UsageError(
                f"the prompt has {len(ids)} tokens, more than the context of {self.config.max_position_embeddings}"
            )
        for token in ids:
            try:
                known = 0 <= operator.index(token) < self.config.vocab_size
            except TypeError:
                raise UsageError(f"token id {token!r} is not a whole number") from None
            if not known:
                raise UsageError(f"token id {token} is outside the vocabulary of {self.config.vocab_size}")


class Stream(Iterator[str]):
    """Pieces of a continuation; beside them what it took.

    `finished` is None while it goes on, then "stop" (a stop token or string) or "length". `prefill_seconds` and
    `decode_seconds` are wall-clock time in the model, without the caller's.
    """

    def __init__(
        self, model: Model, ids: list[int], max_new_tokens: int, stop: str | Sequence[str], sampling: Sampling
    ) -> None:
        from mobilemoe.model.generate import Decoder

        room = model.room(ids, max_new_tokens)
        self._writer = model.writer(ids, room, stop, sampling)
        self._decoder = Decoder(model._torch_model, [ids], room)
        self.prompt_tokens = len(ids)
        self.prefill_seconds = self.decode_seconds = 0.0

    @property
    def new_tokens(self) -> int:
        return self._writer.new_tokens

    @property
    def finished(self) -> str | None:
        return self._writer.finished

    def __next__(self) -> str:
        while not self._writer.finished:
            began = time.perf_counter()
            if self._writer.new_tokens == 0:
                logits_BV = self._decoder.prefill()
                self.prefill_seconds = time.perf_counter() - began
            else:
                logits_BV = self._decoder.step([self._writer.last])
                self.decode_seconds += time.perf_counter() - began
            if piece := self._writer.push(logits_BV[0]):
                return piece
        raise StopIteration
