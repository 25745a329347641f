"""A GGUF file as a `Scorer`, run by llama.cpp through llama-cpp-python: the same suites for models of other runtimes.

T tokens, V vocabulary, C the tokens of a continuation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.chat import ChatTemplate
from mobilemoe.cores import default_threads
from mobilemoe.errors import CheckpointError, MissingExtraError, TokenizerError
from mobilemoe.evaluate.models.scorer import Answer, Prompt
from mobilemoe.files import sha256_file
from mobilemoe.ids import check_ids
from mobilemoe.sampling import Sampler

CONTEXT = 4096  # tokens that are computed together at most, where the file allows more
_BATCH = 512  # tokens of one call of the library


class GgufScorer:
    """A `Scorer` of a GGUF file. A context is computed once for all its continuations.

    Nothing else is shared: llama.cpp's logits depend on how tokens are cut into batches (by .2 nats with Q4_K weights),
    and a score must not depend on earlier requests. Raises CheckpointError for a file that llama.cpp cannot read,
    MissingExtraError without llama-cpp-python.
    """

    def __init__(self, path: Path | str, *, threads: int | None = None) -> None:
        try:
            import llama_cpp
            from gguf import GGUFReader
        except ModuleNotFoundError:
            raise MissingExtraError("running GGUF files", "gguf") from None
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"the GGUF file {path} does not exist")
        try:
            # swa_full: sliding windows keep all keys and values, so that a text may share any beginning.
            self._llama = llama_cpp.Llama(
                str(path),
                n_ctx=CONTEXT,
                n_batch=_BATCH,
                n_threads=threads or default_threads(),
                n_threads_batch=threads or default_threads(),
                swa_full=True,
                verbose=False,
            )
            shapes = {tensor.name: [int(n) for n in tensor.shape] for tensor in GGUFReader(path).tensors}
        except ValueError as fault:
            raise CheckpointError(f"llama.cpp cannot read {path}: {fault}") from None
        self._api, self._path = llama_cpp, path
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._context: list[int] | None = None  # whose keys and values the library holds
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._llama.model)
        self._vocab_size = self._llama.n_vocab()
        self._metadata: Mapping[str, str] = self._llama.metadata
        self.context = min(CONTEXT, int(llama_cpp.llama_model_n_ctx_train(self._llama.model)))
        bos = int(self._llama.token_bos())
        self.prefix_id = bos if bos >= 0 else int(self._llama.token_eos())
        self._has_bos = bos >= 0
        self.model: Mapping[str, Any] = {
            "name": path.stem,
            "hash": sha256_file(path),
            "int4_bytes": path.stat().st_size,
            "quantization": path.stem.rpartition("-")[2],
            "context": self.context,
            **_sizes(shapes, self._metadata),
        }
        self.engine: Mapping[str, Any] = {
            "backend": "gguf",
            "activations": None,
            "threads": self._llama.n_threads,
            "version": f"llama-cpp-python {version('llama-cpp-python')}",
        }
        self.settings: Mapping[str, Any] = {
            "model": self.model["hash"],
            "context": self.context,
            "batch": _BATCH,
            "version": self.engine["version"],
        }

    def encode(self, text: str, *, bos: bool) -> list[int]:
        return list(self._llama.tokenize(text.encode(), add_bos=bos and self._has_bos, special=True))

    def token_text(self, token: int) -> str:
        return str(self._llama.detokenize([token], special=True).decode(errors="replace"))

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        ends = {"bos_token": self.token_text(self.prefix_id), "eos_token": self.token_text(self._llama.token_eos())}
        template = ChatTemplate(self.template(), tokens=ends)
        return template.render([dict(message) for message in messages], add_generation_prompt=add_generation_prompt)

    def template(self) -> str:
        try:
            return self._metadata["tokenizer.chat_template"]
        except KeyError:
            raise TokenizerError(f"{self._path} has no chat template: prompt it with plain text instead") from None

    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        results = [(0.0, True)] * len(pairs)
        for place in sorted(range(len(pairs)), key=lambda place: list(pairs[place][0])):
            *context, last = pairs[place][0]
            continuation = pairs[place][1]
            if context != self._context:
                self._forward(context, 0, 0)
                self._context = context
            logits_CV = self._forward([last, *continuation[:-1]], len(context), len(continuation))
            results[place] = _score(logits_CV, np.array(continuation))
        return results

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        for place, prompt in enumerate(prompts):
            yield place, self._answer(prompt)

    def _answer(self, prompt: Prompt) -> Answer:
        self._context = None
        sampler = Sampler(prompt.sampling, prompt.ids)
        made: list[int] = []
        logits_1V = self._forward(prompt.ids, 0, 1)
        while len(made) < min(prompt.max_new_tokens, self.context + 1 - len(prompt.ids)):
            if made:
                logits_1V = self._forward(made[-1:], len(prompt.ids) + len(made) - 1, 1)
            made.append(sampler.choose(logits_1V[0]))
            ended = self._api.llama_vocab_is_eog(self._vocabulary, made[-1])
            text = self._llama.detokenize(made[:-1] if ended else made).decode(errors="ignore")
            stops = [at for at in map(text.find, prompt.stop) if at >= 0]
            if ended or stops:
                return Answer(text[: min(stops, default=None)], len(made), False)
        return Answer(text, len(made), True)

    def _forward(self, ids: Sequence[int], begin: int, last: int) -> NDArray[np.float32]:
        """logits_CV after each of the `last` tokens of `ids`, which follow the first `begin` tokens in the cache."""
        check_ids(ids, self._vocab_size, self.context - begin)
        api, context, wanted = self._api, self._llama.ctx, len(ids) - last
        api.llama_memory_seq_rm(api.llama_get_memory(context), 0, begin, -1)
        logits_CV = np.empty((last, self._vocab_size), np.float32)
        for start in range(0, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            for row, token in enumerate(part):
                self._batch.token[row], self._batch.pos[row] = token, begin + start + row
                self._batch.n_seq_id[row], self._batch.seq_id[row][0] = 1, 0
                self._batch.logits[row] = start + row >= wanted
            self._batch.n_tokens = len(part)
            if status := api.llama_decode(context, self._batch):
                raise CheckpointError(f"llama.cpp failed on {self._path} with status {status}")
            for row in range(max(0, wanted - start), len(part)):
                found = api.llama_get_logits_ith(context, row)
                logits_CV[start + row - wanted] = np.ctypeslib.as_array(found, (self._vocab_size,))
        return logits_CV


def _score(logits_CV: NDArray[np.float32], chosen_C: NDArray[np.int64]) -> tuple[float, bool]:
    largest_C = logits_CV.max(axis=1)
    log_total_C = largest_C + np.log(np.exp(logits_CV - largest_C[:, None]).sum(axis=1, dtype=np.float64))
    picked_C = logits_CV[np.arange(len(chosen_C)), chosen_C]
    return float((picked_C - log_total_C).sum()), bool((logits_CV.argmax(axis=1) == chosen_C).all())


def _sizes(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]) -> dict[str, int]:
    """Parameters, active parameters, and FLOPs of a decoded token, counted as in `accounting`."""
    architecture = metadata["general.architecture"]
    experts = int(metadata.get(f"{architecture}.expert_count", 0)) or 1
    used = int(metadata.get(f"{architecture}.expert_used_count", 0)) or 1
    active = {
        name: prod(shape) * used // experts if "_exps." in name else prod(shape) for name, shape in shapes.items()
    }
    # An embedding is multiplied with only where it is the output head too.
    lookups = active.get("token_embd.weight", 0) if "output.weight" in shapes else 0
    return {
        "parameters": sum(map(prod, shapes.values())),
        "active_parameters": sum(active.values()),
        "flops_per_token": 2 * (sum(active.values()) - lookups),
    }
