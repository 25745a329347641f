"""Batched decoding on the PyTorch model: prefill with left padding, then one token a sequence and step.

B sequences, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from mobilemoe.model.cache import KVCache
from mobilemoe.model.transformer import MobileMoE

_TEXT, _PADDING = 0, 1  # segments: padding sees and is seen by padding only


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
            # Without padding no mask is needed, and plain causal attention is faster.
            segments_BT=segments_BT if bool(self._padding_B1.any()) else None,
            cache=self._cache,
        )
        logits_BV: npt.NDArray[np.float32] = self._model.logits(x_BTD[:, -1]).float().cpu().numpy()
        return logits_BV
