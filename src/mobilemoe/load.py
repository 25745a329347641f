"""The two-line API: `load` a model, then `generate`, `stream` or ask for `logits`.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from mobilemoe.chat import ChatTemplate, Message, Tool, encode_chat
from mobilemoe.checkpoint import Checkpoint
from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.config import ModelConfig
from mobilemoe.errors import MissingExtraError, TokenizerError, UsageError
from mobilemoe.hub import find_model
from mobilemoe.ids import check_ids
from mobilemoe.routing import Routing
from mobilemoe.sampling import Sampling
from mobilemoe.tokenizer import Tokenizer
from mobilemoe.writer import Batch, Stream, Writer, write_all

if TYPE_CHECKING:
    from mobilemoe.engine import Activations, Engine, KvCache, Speculate


class Backend(Protocol):
    """What computes: the native engine or the PyTorch model."""

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]: ...

    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]: ...

    def start(
        self, prompts: Sequence[list[int]], max_new_tokens: int, sampling: Sampling, logprobs: int | None = None
    ) -> Batch: ...


def load(
    name: str | Path,
    *,
    backend: Literal["native", "torch"] = "native",
    activations: Activations | None = None,
    kv: KvCache | None = None,
    threads: int | None = None,
    quantize: Literal["int4"] | None = None,
    speculate: Speculate | None = None,
    max_memory: int | None = None,
    routing: Routing | None = None,
) -> Model:
    """Loads a Hub id, a folder, a training run's folder, or a bundled model ("nano").

    The native engine runs INT4 weights. `activations` are "int8" (its default) or "fp32" (exact, slow); keys and values
    are kept in `kv` "int8", "fp16" or "fp32" (default: as the activations). `threads` is by default one for each fast
    core of this process. `speculate` guesses tokens where a text repeats itself, or by the model's draft head,
    which changes nothing but its speed: "auto" (default) while it pays, "lookup" or "draft" always by one of them,
    "off" never. `max_memory`: bytes that this process may come to have; experts that do not fit are read from the disk
    when they are needed, with the same results. `routing` sends tokens to other experts than the model's router, for
    speed and at a cost in quality. BF16 weights need quantize="int4", which rounds them to nearest, or backend="torch",
    which needs the extra and computes in fp32, on a GPU if there is one. Raises ModelNotFoundError, UsageError,
    ConfigError, CheckpointError, MissingExtraError.
    """
    if backend not in ("native", "torch"):
        raise UsageError(f"backend is {backend!r}, but must be 'native' or 'torch'")
    folder = newest_model(find_model(name))
    if backend == "torch":
        if not (activations in (None, "fp32") and kv in (None, "fp32") and threads is None and quantize is None):
            raise UsageError(
                "`backend` 'torch' computes in fp32: `activations` and `kv` can only be 'fp32', `threads` and "
                "`quantize` not set"
            )
        if max_memory is not None:
            raise UsageError("`max_memory` is for the native engine: `backend` 'torch' needs all weights")
        if speculate not in (None, "auto", "off"):
            raise UsageError(f"speculate is {speculate!r}, but `backend` 'torch' guesses nothing")
        if routing not in (None, Routing()):
            raise UsageError(
                "routing can be changed in the native engine only: `backend` 'torch' computes the model as it is"
            )
        return _load_torch(folder)
    from mobilemoe.engine import Engine

    tokenizer = None
    if max_memory is not None:  # what it takes has to be there before the engine shares out the rest
        with suppress(TokenizerError):
            tokenizer = Tokenizer.load(folder)
    engine = Engine(
        folder,
        threads=threads,
        activations=activations or "int8",
        kv=kv,
        quantize=quantize,
        speculate=speculate or "auto",
        max_memory=max_memory,
        routing=routing,
    )
    return Model(folder, engine.config, engine, engine=engine, tokenizer=tokenizer)


def _load_torch(folder: Path) -> Model:
    try:
        import torch

        from mobilemoe.model import MobileMoE
        from mobilemoe.model.generate import TorchBackend
    except ModuleNotFoundError:
        raise MissingExtraError("computing with PyTorch", "torch") from None
    with Checkpoint.open(folder) as checkpoint:
        with torch.device("meta"):  # the weights are read from the file: allocate and initialise nothing
            torch_model = MobileMoE(checkpoint.config)
        torch_model.to_empty(device="cpu")
        torch_model.load_weights(checkpoint.weight)
    torch_model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Model(folder, checkpoint.config, TorchBackend(torch_model))


class Model:
    """A model that writes text. The tokenizer is read at first use, so that `logits` works without one.

    `engine` is the native engine, or None where PyTorch computes. `tokenizer`: the folder's, if it was read already.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        backend: Backend,
        *,
        engine: Engine | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.folder, self.config, self.backend, self.engine = folder, config, backend, engine
        self._conversation = None if engine is None else engine.conversation()
        self._tokenizer: Tokenizer | None = None
        self._read_tokenizer = tokenizer
        self._template: ChatTemplate | None = None

    @property
    def context(self) -> int:
        """The longest text in tokens: the model's own, unless the engine was limited to less."""
        return self.config.max_position_embeddings if self.engine is None else self.engine.context

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError if the folder has none that fits the model."""
        if self._tokenizer is None:
            tokenizer = self._read_tokenizer or Tokenizer.load(self.folder)
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

    @property
    def template(self) -> ChatTemplate:
        """Raises TokenizerError if the folder has none for conversations, or a damaged one."""
        if self._template is None:
            self._template = ChatTemplate.load(self.folder)
        return self._template

    def encode(
        self,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> list[int]:
        """The ids of a plain prompt (BOS before it) or of a conversation that the assistant is to continue.

        `tools` are handed to the chat template; with them, even with none, messages may hold calls and their results.
        """
        if (prompt is None) == (messages is None):
            raise UsageError("give either a prompt or messages")
        if prompt is not None:
            if not isinstance(prompt, str):
                raise UsageError(f"the prompt is a {type(prompt).__name__}, but must be text")
            ids = self.tokenizer.encode(prompt, bos=self.tokenizer.bos_id is not None)
            if not ids:
                raise UsageError("the prompt is empty, and the tokenizer has no begin-of-text token to start from")
            return ids
        return encode_chat(self.tokenizer, self.template, messages or (), tools=tools)

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """logits_TV of the next token, after each of the T ids. Raises UsageError for ids outside the vocabulary."""
        return self.backend.logits(ids)

    def loglikelihood(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """log P(continuation | context) in nats, and whether greedy decoding would give just that. Both are ids."""
        return self.loglikelihoods([(context, continuation)])[0]

    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """`loglikelihood` of each (context, continuation); the native engine computes shared prefixes once."""
        return self.backend.loglikelihoods(pairs)

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        **sampling: Any,
    ) -> Stream:
        """The continuation, piece by piece as it is generated; `sampling` are the fields of `Sampling`.

        With `logprobs`, the stream's `choices` have the log-probability of each token and of that many likeliest ones.
        """
        ids = self.encode(prompt, messages)
        fitting = self.fitting(ids, max_new_tokens)
        writer = self.writer(fitting, stop)
        rules = Sampling(**sampling)
        if self._conversation is not None:  # a chat's next turn computes only what is new
            batch: Batch = self._conversation.start(ids, rules, logprobs=logprobs)
        else:
            batch = self.backend.start([ids], fitting, rules, logprobs)
        return Stream(batch, writer, len(ids))

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> str:
        """The continuation as one text; the arguments are those of `stream`."""
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
        """The continuations of several prompts, computed together; each equals what `generate` gives for it alone."""
        if isinstance(prompts, str):
            raise UsageError("prompts is one text, but must be a list of them")
        if not prompts:
            return []
        encoded = [self.encode(prompt) for prompt in prompts]
        fitting = [self.fitting(ids, max_new_tokens) for ids in encoded]
        writers = [self.writer(count, stop) for count in fitting]
        return write_all(self.backend.start(encoded, max(fitting), Sampling(**sampling)), writers)

    def fitting(self, ids: Sequence[int], max_new_tokens: int) -> int:
        """How many of `max_new_tokens` the context takes after the prompt `ids`; at least one."""
        context = self.context
        check_ids(ids, self.config.vocab_size, self.config.max_position_embeddings)
        if len(ids) > context:
            raise UsageError(
                f"the prompt has {len(ids)} tokens, more than the context of {context} that there is memory for"
            )
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens!r}, but must be a whole number of at least 1")
        return max(1, min(max_new_tokens, context - len(ids) + 1))

    def writer(self, max_new_tokens: int, stop: str | Sequence[str] = ()) -> Writer:
        """Turns this model's tokens into text, up to `max_new_tokens` of them, a stop id or a text in `stop`."""
        return Writer(self.tokenizer, max_new_tokens=max_new_tokens, stop_ids=self.stop_ids, stop=stop)
