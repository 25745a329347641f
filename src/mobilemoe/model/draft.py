"""The draft head: one small layer that guesses next tokens for the model to check (docs/guide.md, Draft heads).

D hidden, F width, K tokens of the shortlist, X = (1 + layers) D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilemoe.model.norm import rms_norm


class Draft(nn.Module):
    """Guesses what follows a text from the model's state after it and one token more; its own state then goes on.

    It has no attention, so nothing is kept but one vector of D, and nothing has to be undone where a guess was wrong.
    Norms have no weights: the matrix after each of them would absorb one. The output covers the `shortlist_K`, ids in
    ascending order, the most frequent tokens. `layers` are those of the model, from 0, whose outputs it also reads.
    """

    shortlist_K: Tensor

    def __init__(self, hidden_size: int, width: int, shortlist: int, eps: float, layers: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.eps, self.layers = eps, layers
        self.first_proj = nn.Linear((2 + len(layers)) * hidden_size, hidden_size, bias=False)
        self.in_proj = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)
        self.head = nn.Linear(hidden_size, shortlist, bias=False)
        self.register_buffer("shortlist_K", torch.arange(shortlist))

    def begin(self, states_X: Tensor, embedding_D: Tensor) -> tuple[Tensor, Tensor]:
        """The head's state [..., D] after a token, and the logits [..., K] of the one that follows it.

        `states_X` are the outputs of the model's last norm and of `layers` at the token before, side by side, and
        `embedding_D` is the token's row of the model's embedding.
        """
        inputs = (*states_X.split(embedding_D.shape[-1], dim=-1), embedding_D)
        return self._finish(self.first_proj(torch.cat([self._norm(input_D) for input_D in inputs], dim=-1)))

    def forward(self, state_D: Tensor, embedding_D: Tensor) -> tuple[Tensor, Tensor]:
        """The same after one token more, from the head's own state."""
        return self._finish(self.in_proj(torch.cat((self._norm(state_D), self._norm(embedding_D)), dim=-1)))

    def _finish(self, x_D: Tensor) -> tuple[Tensor, Tensor]:
        normed_D = self._norm(x_D)
        x_D = x_D + self.down_proj(nn.functional.silu(self.gate_proj(normed_D)) * self.up_proj(normed_D))
        return x_D, self.head(self._norm(x_D))

    def _norm(self, x_D: Tensor) -> Tensor:
        return rms_norm(x_D, None, self.eps)
