"""Router: which experts each token goes to, and with what weights (spec section 2, point 5).

N tokens, D hidden, E experts, A active experts per token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mobilemoe.config import ModelConfig
from mobilemoe.model import kernels
from mobilemoe.model.experts import load_of
from mobilemoe.model.norm import at_least_fp32
from mobilemoe.model.router_product import split_product


class Routing(NamedTuple):
    """The router's output: logits_NE, the chosen experts_NA (best first) and their weights_NA; in fp32."""

    logits_NE: Tensor
    experts_NA: Tensor
    weights_NA: Tensor

    def load_E(self) -> Tensor:
        """Tokens that chose each expert, [E]."""
        return load_of(self.experts_NA, self.logits_NE.shape[1])


def choose(scores_NE: Tensor, active: int) -> Tensor:
    """Indices of the `active` largest scores, ties to the lowest index; NaN ranks below everything."""
    if scores_NE.dtype == torch.float32 and kernels.usable(scores_NE):
        from mobilemoe.model.kernels import routing

        chosen_NA: Tensor = routing.choose(scores_NE, active)
        return chosen_NA
    ranked_NE = torch.where(scores_NE.isnan(), -torch.inf, scores_NE)
    return ranked_NE.sort(dim=-1, descending=True, stable=True).indices[:, :active]


class Router(nn.Module):
    """A linear map without bias, in fp32 whatever the model's dtype."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))

    def forward(self, x_ND: Tensor, expert_bias_E: Tensor | None) -> Routing:
        """The bias influences only which experts are chosen, never their weights."""
        with torch.autocast(x_ND.device.type, enabled=False):
            if x_ND.is_cuda and x_ND.dtype == torch.bfloat16:
                logits_NE = split_product(x_ND, self.weight)
            else:
                x_ND = at_least_fp32(x_ND)
                logits_NE = x_ND @ self.weight.to(x_ND.dtype).t()
        return self.route(logits_NE, expert_bias_E)

    def route(self, logits_NE: Tensor, expert_bias_E: Tensor | None) -> Routing:
        """What follows from the logits, in fp32."""
        with torch.autocast(logits_NE.device.type, enabled=False):
            if self.config.router_score == "sigmoid":
                scores_NE = logits_NE.sigmoid()
            else:
                scores_NE = logits_NE.softmax(dim=-1)
            ranked_NE = scores_NE.detach() if expert_bias_E is None else scores_NE.detach() + expert_bias_E
            experts_NA = choose(ranked_NE, self.config.num_experts_per_tok)
            weights_NA = scores_NE.gather(1, experts_NA)
            if self.config.norm_topk_prob:
                weights_NA = weights_NA / (weights_NA.sum(dim=-1, keepdim=True) + 1e-20)
            return Routing(logits_NE, experts_NA, weights_NA * self.config.routed_scaling_factor)
