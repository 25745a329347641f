"""The PyTorch model as a backend: scoring, and decoding in batches, with prompts padded on the left.

B sequences, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from mobilemoe.ids import check_ids
from mobilemoe.model.kv_cache import KVCache
from mobilemoe.model.transformer import MobileMoE
from mobilemoe.sampling import Choice, Sampler, Sampling, with_logprobs

_TOGETHER = 8192  # tokens that are scored together, padding included
_ROWS = 512  # tokens whose logits are looked at together: half a GB of float64 at 128,256 entries
_TEXT, _PADDING = 0, 1  # segments: text and padding do not attend to each other


class TorchBackend:
    """What `mobilemoe.load` computes with where PyTorch is asked for."""

    def __init__(self, model: MobileMoE) -> None:
        self.model = model.eval()

    def logits(self, ids: Iterable[int]) -> npt.NDArray[np.float32]:
        """logits_TV: after each of the T ids, what comes next."""
        config = self.model.config
        checked = check_ids(ids, config.vocab_size, config.max_position_embeddings)
        with torch.inference_mode():
            logits_BTV = self.model(torch.tensor([checked], device=next(self.model.parameters()).device))
        result: npt.NDArray[np.float32] = logits_BTV[0].float().cpu().numpy()
        return result

    def loglikelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): its log-probability in nats, and whether greedy decoding would write it.

        Texts of similar length are computed together. Texts that differ in their last token only are computed once.
        """
        vocab_size, context_size = self.model.config.vocab_size, self.model.config.max_position_embeddings
        results = [(0.0, True)] * len(pairs)
        asked: dict[tuple[int, ...], list[tuple[int, list[int]]]] = defaultdict(list)
        for place, (context, continuation) in enumerate(pairs):
            before = check_ids(context, vocab_size, context_size)
            if len(continuation):
                after = check_ids(continuation, vocab_size, context_size + 1, behind=len(before))
                asked[(*before, *after[:-1])].append((place, after))
        texts = sorted(asked, key=len)
        while texts:
            width = max(1, _TOGETHER // len(texts[-1]))
            some, texts = texts[-width:], texts[:-width]
            for text, x_TD in zip(some, self._hidden(some), strict=True):
                for place, after in asked[text]:
                    results[place] = self._score(x_TD[len(text) - len(after) : len(text)], after)
        return results

    @torch.inference_mode()
    def _hidden(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """x_BTD of texts that are padded on the right, where attention is causal and does not see the padding."""
        longest = max(map(len, texts))
        padded = [[*text, *[0] * (longest - len(text))] for text in texts]
        return self.model.hidden(torch.tensor(padded, device=self.model.head_VD.device))[0]

    @torch.inference_mode()
    def _score(self, x_TD: torch.Tensor, targets: list[int]) -> tuple[float, bool]:
        total, greedy = 0.0, True
        for start in range(0, len(targets), _ROWS):
            logits_TV = self.model.logits(x_TD[start : start + _ROWS]).double()
            chosen_T = torch.tensor(targets[start : start + _ROWS], device=x_TD.device)
            total += float((logits_TV.gather(1, chosen_T[:, None])[:, 0] - logits_TV.logsumexp(dim=1)).sum())
            greedy &= bool((logits_TV.argmax(dim=1) == chosen_T).all())
        return total, greedy

    def start(
        self, prompts: Sequence[list[int]], max_new_tokens: int, sampling: Sampling, logprobs: int | None = None
    ) -> TorchBatch:
        """The continuations of `prompts`, of at most `max_new_tokens` tokens each, computed together."""
        sampling.check_for(self.model.config.vocab_size, logprobs)
        return TorchBatch(Decoder(self.model, list(prompts), max_new_tokens), prompts, sampling, logprobs)


class TorchBatch:
    """Texts that are continued together; all begin at the first step.

    A text that has left keeps its place in the batch: it is still computed, and its token is thrown away.
    """

    def __init__(
        self, decoder: Decoder, prompts: Sequence[list[int]], sampling: Sampling, logprobs: int | None
    ) -> None:
        self._decoder, self._logprobs = decoder, logprobs
        self._samplers = [Sampler(sampling, seen=prompt) for prompt in prompts]
        self._last = [0] * len(prompts)
        self._running = set(range(len(prompts)))
        self._started = False

    def step(self) -> list[tuple[int, Choice]]:
        """The next token of every text that has not left."""
        logits_BV = self._decoder.step(self._last) if self._started else self._decoder.prefill()
        self._started = True
        return [(number, self._choose(number, logits_BV[number])) for number in sorted(self._running)]

    def leave(self, number: int) -> None:
        """Ends a text."""
        self._running.remove(number)

    def _choose(self, number: int, logits_V: npt.NDArray[np.float32]) -> Choice:
        token = self._last[number] = self._samplers[number].choose(logits_V)
        return Choice(token) if self._logprobs is None else with_logprobs(token, logits_V, self._logprobs)


class Decoder:
    """`prompts` (none empty) and what follows them, with a KV cache for at most `new_tokens` more each."""

    def __init__(self, model: MobileMoE, prompts: list[list[int]], new_tokens: int) -> None:
        self._model = model.eval()
        self._prompts = prompts
        self._longest = max(map(len, prompts))
        parameter = next(model.parameters())
        self._device = parameter.device
        self._cache = KVCache(model.config, len(prompts), self._longest + new_tokens, parameter.dtype, self._device)
        self._padding_B1 = torch.tensor([[self._longest - len(prompt)] for prompt in prompts], device=self._device)

    def prefill(self) -> npt.NDArray[np.float32]:
        """logits_BV after each prompt."""
        padded = [[0] * (self._longest - len(prompt)) + prompt for prompt in self._prompts]
        return self._forward(torch.tensor(padded, device=self._device))

    def step(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """logits_BV after one more token of each sequence."""
        return self._forward(torch.tensor(tokens, device=self._device).unsqueeze(1))

    @torch.inference_mode()
    def _forward(self, tokens_BT: torch.Tensor) -> npt.NDArray[np.float32]:
        places_T = torch.arange(self._cache.length, self._cache.length + tokens_BT.shape[1], device=self._device)
        positions_BT = places_T - self._padding_B1
        segments_BT = torch.where(positions_BT < 0, _PADDING, _TEXT)
        x_BTD, _ = self._model.hidden(
            tokens_BT,
            positions_BT=positions_BT.clamp(min=0),
            # Where no prompt is padded no mask is needed, and plain causal attention is faster.
            segments_BT=segments_BT if bool(self._padding_B1.any()) else None,
            cache=self._cache,
        )
        logits_BV: npt.NDArray[np.float32] = self._model.logits(x_BTD[:, -1]).float().cpu().numpy()
        return logits_BV
