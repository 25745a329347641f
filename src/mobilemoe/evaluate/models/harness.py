"""Models of `mobilemoe.load`, and any other `Scorer`, as a model of lm-evaluation-harness.

Texts are encoded, cut and scored as in the harness's own Hugging Face model, so that scores can be compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilemoe.errors import DataError, MissingExtraError, UsageError
from mobilemoe.evaluate.models.request_cache import RequestCache, digest
from mobilemoe.evaluate.models.scorer import ModelScorer, Prompt, Scorer
from mobilemoe.load import Model, load
from mobilemoe.sampling import Sampling

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError:
    raise MissingExtraError("evaluation on benchmarks", "eval") from None

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MAX_NEW_TOKENS = 256  # of an answer where the task says nothing, as in the harness
_TOGETHER = 256  # requests scored between two writes to the cache, or encoded between two reports of progress
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

OnProgress = Callable[[int, int, str], None]
Encoded = tuple[Any, list[int], list[int]]  # the request as text (None for a window), its context, its continuation


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """Answers the three requests of lm_eval (log-likelihood, rolling log-likelihood, generation) with a model.

    `left_truncations` counts requests that lost their beginning, `token_cap_hits` answers that ended only because they
    reached their most tokens. A continuation of no token, or of more tokens than the context, is a DataError. If
    `unscorable` is a dictionary, such requests are kept there with their tokens instead, and get a log-likelihood of
    minus infinity; their items are to be left out.
    """

    def __init__(
        self,
        pretrained: str | Path | Model | Scorer,
        *,
        cache_dir: Path | str | None = None,
        on_progress: OnProgress | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
        **options: Any,
    ) -> None:
        """`pretrained` and `options` are those of `mobilemoe.load`; or `pretrained` is a loaded model, which takes no
        options.

        Finished requests are kept in `cache_dir` (default: the user's cache). `on_progress` is told how many different
        requests are done, of how many, and of which kind. Batch sizes and device, which lm_eval's command always
        passes, change nothing: the engine chooses its own.
        """
        super().__init__()
        if options and not isinstance(pretrained, str | Path):
            raise UsageError(f"{', '.join(options)}: a model that is loaded already takes no options")
        if isinstance(pretrained, str | Path):
            self.scorer: Scorer = ModelScorer(load(pretrained, **options), str(pretrained))
        elif isinstance(pretrained, Model):
            self.scorer = ModelScorer(pretrained, pretrained.folder.name)
        else:
            self.scorer = pretrained
        self.on_progress = on_progress
        self.left_truncations = self.token_cap_hits = 0
        self.unscorable: dict[tuple[str, ...], int] | None = None
        self._store = RequestCache(self.scorer.settings, None if cache_dir is None else Path(cache_dir))
        self._prefix = self.scorer.token_text(self.scorer.prefix_id)
        self._tokens: dict[tuple[str, ...], int] = {}
        self._encoded = self._to_encode = 0

    # What the harness asks about the model

    @property
    def eot_token_id(self) -> int:
        return self.scorer.prefix_id

    @property
    def max_length(self) -> int:
        return self.scorer.context

    @property
    def tokenizer_name(self) -> str:
        return str(self.scorer.model["name"]).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the template, if one is to be used; models of ours have at most one."""
        return self.scorer.template() if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text. Without the generation prompt it ends inside its last message, to be continued."""
        text = self.scorer.render(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, after BOS unless the text begins with it, as that of a chat template does."""
        bos = not string.startswith(self._prefix) if add_special_tokens is None else add_special_tokens
        return self.scorer.encode(string, bos=bos)

    def tokens_of(self, arguments: tuple[Any, ...]) -> int:
        """The number of tokens of an answered request, its answer included; `arguments` are the Instance's."""
        return self._tokens[_texts(arguments)]

    def unscorable_of(self, requests: Sequence[tuple[Any, ...]]) -> int | None:
        """The tokens of the first request, by its Instance's arguments, that cannot be scored; None if all can."""
        found = self.unscorable or {}
        return next((found[texts] for texts in map(_texts, requests) if texts in found), None)

    # Its three questions

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """log P(continuation | context) in nats of each request, and whether greedy decoding gives it."""
        self._encoded, self._to_encode = 0, len(requests)
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """log P(text) in nats of each request, in windows of the context's length with the least possible overlap.

        As in the Hugging Face model, a tokenizer's BOS is scored too, after another one.
        """
        counts: list[int] = []
        windows: list[Encoded] = []
        for request in requests:
            (text,) = request.args
            ids = self.tok_encode(text)
            found = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            pairs = list(map(make_disjoint_window, found))
            windows += [(None, context, continuation) for context, continuation in pairs]
            counts.append(len(pairs))
            self._tokens[_texts(request.args)] = len(ids)
        scores = iter(self._loglikelihood_tokens(windows, kind="rolling log-likelihood"))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The continuation of each request up to its stops, which are left out."""
        keys: list[str] = []
        prompts: dict[str, Prompt] = {}
        asked: Counter[str] = Counter()
        self._encoded, self._to_encode = 0, len(requests)
        for request in requests:
            context, settings = request.args
            ids, max_new_tokens, stop, sampling = self._read_generation(context, settings)
            self._tell_encoded()
            key = digest(["generate", ids, max_new_tokens, stop, sampling])
            if sampling["temperature"]:
                # A repeated request shall give another sample; with a seed for each, every sample can be reproduced.
                asked[key] += 1
                key = digest([key, asked[key]])
                sampling["seed"] = int(key[:16], 16)
            prompts[key] = Prompt(ids, max_new_tokens, tuple(stop), Sampling(**sampling))
            keys.append(key)
        waiting = sorted((key for key in prompts if key not in self._store), key=lambda key: prompts[key].ids)
        self._tell(len(prompts) - len(waiting), len(prompts), "generation")
        answers = self.scorer.generate([prompts[key] for key in waiting])
        for left, (place, answer) in zip(range(len(waiting) - 1, -1, -1), answers, strict=True):
            self._store.put({waiting[place]: [answer.text, answer.tokens, answer.capped]})
            self._tell(len(prompts) - left, len(prompts), "generation")
        texts: list[str] = []
        for key, request in zip(keys, requests, strict=True):
            text, tokens, capped = self._store[key]
            texts.append(text)
            self.token_cap_hits += capped
            self._tokens[_texts(request.args)] = len(prompts[key].ids) + tokens
        return texts

    # How they are answered

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
        self._tell_encoded()
        return pair

    def _tell_encoded(self) -> None:
        """Reports progress of encoding: a continued run encodes all requests again before it looks up their answers."""
        self._encoded += 1
        if self._encoded % _TOGETHER == 0:
            self._tell(self._encoded, self._to_encode, "encoding")

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = True, kind: str = "log-likelihood"
    ) -> list[tuple[float, bool]]:
        keys: list[str | None] = []
        pairs: dict[str, tuple[list[int], list[int]]] = {}
        for texts, context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                if self.unscorable is None:
                    raise DataError(
                        f"a continuation of {len(continuation)} tokens cannot be scored: it must have from 1 to the "
                        f"{self.max_length} of the model's context ({texts!r:.100})"
                    )
                self._tokens[texts] = self.unscorable[texts] = len(continuation)
                keys.append(None)
                continue
            # One token more than the context holds, because no logits are needed after the last one.
            cut = max(0, len(context) + len(continuation) - self.max_length - 1)
            self.left_truncations += cut > 0
            pair = context[cut:], continuation
            key = digest(["loglikelihood", *pair])
            keys.append(key)
            pairs[key] = pair
            if texts is not None:
                self._tokens[texts] = len(pair[0]) + len(continuation)
        # Sorted, so that texts with the same beginning are neighbours: the engine computes what they share once.
        waiting = sorted((key for key in pairs if key not in self._store), key=pairs.__getitem__)
        self._tell(len(pairs) - len(waiting), len(pairs), kind)
        for start in range(0, len(waiting), _TOGETHER):
            some = waiting[start : start + _TOGETHER]
            scores = self.scorer.loglikelihoods([pairs[key] for key in some])
            if any(math.isnan(logprob) for logprob, _ in scores):
                raise DataError(f"{self.scorer.model['name']} gives log-likelihoods that are no numbers")
            self._store.put({key: list(score) for key, score in zip(some, scores, strict=True)})
            self._tell(len(pairs) - len(waiting) + start + len(some), len(pairs), kind)
        return [(-math.inf, False) if key is None else tuple(self._store[key]) for key in keys]

    def _read_generation(
        self, context: str, settings: Mapping[str, Any]
    ) -> tuple[list[int], int, list[str], dict[str, Any]]:
        """What lm_eval asks for: the prompt's ids, the most new tokens, the stops and the fields of `Sampling`."""
        wanted = dict(normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS))
        stop = [text for text in wanted.pop("until") if text]
        max_new_tokens = wanted.pop("max_gen_toks")
        if max_new_tokens >= self.max_length:  # the harness refuses these tasks
            max_new_tokens = self.max_length // 2
        if not wanted.pop("do_sample"):
            wanted["temperature"] = 0.0
        if unknown := sorted(wanted.keys() - set(_SAMPLING)):
            raise UsageError(f"the task asks for generation with {', '.join(unknown)}, which is not supported here")
        ids = self.tok_encode(context) or [self.prefix_token_id]
        self.left_truncations += len(ids) > self.max_length - max_new_tokens
        return ids[-(self.max_length - max_new_tokens) :], max_new_tokens, stop, wanted

    def _tell(self, done: int, total: int, kind: str) -> None:
        if self.on_progress is not None:
            self.on_progress(done, total, kind)


def _texts(arguments: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(each for each in arguments if isinstance(each, str))
