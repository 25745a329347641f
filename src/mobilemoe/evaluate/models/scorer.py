"""`Scorer`: what evaluation asks of a model; and `ModelScorer`, the models of `mobilemoe.load` in that form."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mobilemoe import accounting
from mobilemoe.chat import ChatTemplate
from mobilemoe.errors import UsageError
from mobilemoe.evaluate.models.request_cache import digest
from mobilemoe.files import sha256_file
from mobilemoe.ids import common_prefix
from mobilemoe.load import Model
from mobilemoe.routing import Routing
from mobilemoe.sampling import Sampling

if TYPE_CHECKING:
    from mobilemoe.engine import Engine, Session
    from mobilemoe.writer import Batch, Writer

WIDTH = 16  # texts that are continued together
_TIMED = 65  # tokens of a trial
_FILES = ("config.json", "tokenizer.json", "tokenizer.model", "model.mobilemoe", "*.safetensors*")


@dataclass(frozen=True)
class Prompt:
    """A text to continue: by at most `max_new_tokens` tokens, up to a text in `stop` or a stop token of the model."""

    ids: list[int]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Answer:
    """The continuation without its stop; `capped` if it ended only because it had `max_new_tokens` tokens."""

    text: str
    tokens: int
    capped: bool


class Scorer(Protocol):
    """What `HarnessModel` needs of a model. Results must depend on `settings` and the arguments alone.

    context: the most tokens of one text. prefix_id: the token before a text without context, which is BOS, or the
    end-of-text id of a model without one. settings: JSON values by name; kept results are found by their hash. model,
    engine: the facts that `results.Results` gives under these names; None for those not known.
    """

    context: int
    prefix_id: int
    settings: Mapping[str, Any]
    model: Mapping[str, Any]
    engine: Mapping[str, Any]

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Ids of a text, after BOS if `bos` and the model has one. Names of control tokens, as chat templates write
        them, become control ids.
        """
        ...

    def token_text(self, token: int) -> str:
        """The text of the id, also of a control id."""
        ...

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """A conversation as the chat template writes it. TokenizerError if there is none."""
        ...

    def template(self) -> str:
        """The source of the chat template. TokenizerError if there is none."""
        ...

    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """log P(continuation | context) in nats of each (context, continuation), and whether it is the greedy one.

        The two together have at most `context` + 1 ids, and neither is empty.
        """
        ...

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """The answers with the indices of their prompts, each as soon as it is complete."""
        ...


class ModelScorer:
    """A model of `mobilemoe.load`, `loaded`, as a `Scorer`: the native engine or PyTorch."""

    def __init__(self, model: Model, name: str) -> None:
        """`name` is what people call it. Raises TokenizerError if the model has no tokenizer."""
        prefix = model.tokenizer.bos_id if model.tokenizer.bos_id is not None else model.tokenizer.end_of_text_id
        if prefix is None:
            raise UsageError(f"{name} has neither a begin-of-text nor an end-of-text token to start a text from")
        if model.engine is not None:
            model.engine.check_source()  # scores are kept under a hash of the files that lie there
        self.loaded = model
        self._engine = model.engine
        self._base: Session | None = None
        self.prefix_id, self.context = prefix, model.config.max_position_embeddings
        self.model: Mapping[str, Any] = _model_facts(model, name)
        self.engine: Mapping[str, Any] = _engine_facts(self._engine)
        self.settings: Mapping[str, Any] = {
            "model": self.model["hash"],
            "quantization": self.model["quantization"],
            **{key: value for key, value in self.engine.items() if key != "threads"},
            **(_library_facts(self._engine) if self._engine else {}),
        }

    def encode(self, text: str, *, bos: bool) -> list[int]:
        tokenizer = self.loaded.tokenizer
        return tokenizer.encode(text, bos=bos and tokenizer.bos_id is not None, special=True)

    def token_text(self, token: int) -> str:
        return self.loaded.tokenizer.decode([token], skip_special=False)

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        return ChatTemplate.load(self.loaded.folder).render(messages, add_generation_prompt=add_generation_prompt)

    def template(self) -> str:
        return ChatTemplate.load(self.loaded.folder).source

    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        return self.loaded.loglikelihoods(pairs)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        if self._engine is not None:
            yield from self._generate_natively(self._engine, prompts)
            return
        for start in range(0, len(prompts), WIDTH):
            some = prompts[start : start + WIDTH]
            for sampling in dict.fromkeys(map(_sampling_key, some)):  # a batch has one sampling for all
                places = [place for place, prompt in enumerate(some) if _sampling_key(prompt) == sampling]
                alike = [some[place] for place in places]
                batch = self.loaded.backend.start(
                    [prompt.ids for prompt in alike], max(prompt.max_new_tokens for prompt in alike), alike[0].sampling
                )
                running = {
                    number: _Running(start + place, self._writer(prompt))
                    for number, (place, prompt) in enumerate(zip(places, alike, strict=True))
                }
                while running:
                    yield from _step(batch, running)

    def _generate_natively(self, engine: Engine, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """A text joins the batch as soon as another has ended, so that the engine always has enough to do."""
        batch, running = engine.batch(), dict[int, _Running]()
        waiting = enumerate(prompts)
        while True:
            for place, prompt in islice(waiting, WIDTH - len(running)):
                session = self._session(engine, prompt)
                number = batch.join(prompt.ids, prompt.sampling, session=session)
                running[number] = _Running(place, self._writer(prompt))
            if not running:
                return
            yield from _step(batch, running)

    def _session(self, engine: Engine, prompt: Prompt) -> Session:
        """A session with the prefix that the prompt shares with the one before it, such as the same examples."""
        base = self._base = engine.session() if self._base is None else self._base
        shared = min(common_prefix(base.tokens, prompt.ids), len(prompt.ids) - 1)
        base.truncate(shared)
        engine.forward([(base, prompt.ids[shared:-1], 0)])
        return base.fork(context=min(engine.context, len(prompt.ids) + prompt.max_new_tokens))

    def _writer(self, prompt: Prompt) -> Writer:
        return self.loaded.writer(self.loaded.fitting(prompt.ids, prompt.max_new_tokens), prompt.stop)


def decode_ms(scorer: Scorer) -> float | None:
    """Milliseconds for one more token after a short prompt: the median of three trials, one text at a time.

    None if the model ends its text at once.
    """
    ids = scorer.encode("The history of the city begins with", bos=True)
    trials = []
    for _ in range(3):
        began = time.perf_counter()
        ((_, first),) = scorer.generate([Prompt(ids, 1)])
        between = time.perf_counter()
        ((_, answer),) = scorer.generate([Prompt(ids, _TIMED)])
        if answer.tokens > first.tokens:
            seconds = (time.perf_counter() - between) - (between - began)
            trials.append(1000 * seconds / (answer.tokens - first.tokens))
    return sorted(trials)[len(trials) // 2] if trials else None


@dataclass
class _Running:
    place: int
    writer: Writer
    text: str = ""


def _step(batch: Batch, running: dict[int, _Running]) -> Iterator[tuple[int, Answer]]:
    """Computes one more token of each text; those that end leave `running`."""
    for number, choice in batch.step():
        one = running[number]
        one.text += one.writer.push(choice.token)
        if one.writer.finished:
            batch.leave(number)
            del running[number]
            yield one.place, Answer(one.text, one.writer.new_tokens, one.writer.finished == "length")


def _sampling_key(prompt: Prompt) -> str:
    return repr(prompt.sampling)


def _model_facts(model: Model, name: str) -> dict[str, Any]:
    config = model.config
    files = sorted({path for pattern in _FILES for path in model.folder.glob(pattern)})
    weights = sum(path.stat().st_size for path in files if path.suffix in (".safetensors", ".mobilemoe"))
    return {
        "name": name,
        "hash": _hash(files),
        "parameters": accounting.total_parameters(config),
        "active_parameters": accounting.active_parameters(config),
        "int4_bytes": weights if config.is_quantized else accounting.int4_file_bytes(config),
        "flops_per_token": accounting.decode_flops(config),
        "quantization": "int4" if config.is_quantized else "int4 (rounded)" if model.engine else "bf16",
        "context": config.max_position_embeddings,
    }


def _hash(files: Sequence[Path]) -> str:
    """One hash of the contents of several files, names included."""
    return digest({path.name: sha256_file(path) for path in files})


def _library_facts(engine: Engine) -> dict[str, Any]:
    from mobilemoe.engine.native import native  # PyTorch scores without it

    return {"isa": engine.isa, "library": sha256_file(native.__file__), "weights": engine.fingerprint}


def _engine_facts(engine: Engine | None) -> dict[str, Any]:
    if engine is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        facts = {"backend": "torch", "activations": "fp32", "kv": "fp32", "threads": torch.get_num_threads()}
        return {**facts, "device": device, "version": f"mobilemoe {version('mobilemoe')}"}
    activations = "fp32" if engine.native.fp32 else "int8"
    facts = {"backend": "native", "activations": activations, "kv": engine.native.kv, "threads": engine.threads}
    if engine.routing != Routing():
        facts["routing"] = asdict(engine.routing)
    return {**facts, "version": f"mobilemoe {version('mobilemoe')}"}
