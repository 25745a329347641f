"""Training a draft head (`mobilemoe.model.draft`): the frozen model's states go in, its distributions are the aim.

The head is unrolled as it will be used, `steps` tokens ahead of each place, and computes with INT4 weights and INT8
inputs from the first step on, so that the file that is written is what was trained.

B rows, T tokens, N = B T, D hidden, V vocabulary, K tokens of the shortlist, C tokens of a chunk, S steps.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mobilemoe.checkpoint.draft import DraftShape
from mobilemoe.config import ModelConfig
from mobilemoe.data.loader import Batch
from mobilemoe.data.packing import NO_TARGET, Ids
from mobilemoe.errors import ConfigError
from mobilemoe.model import MobileMoE
from mobilemoe.model.draft import Draft
from mobilemoe.train.loss import CHUNK
from mobilemoe.train.qat import round_linears
from mobilemoe.train.recipe import DraftTable

COUNTED = 2**20  # tokens of the training text from which the shortlist is chosen
_GPU_CHUNK = 2**13


def attach(model: MobileMoE, table: DraftTable, seed: int) -> None:
    """Freezes `model` and gives it an untrained draft head, its module `draft`. ConfigError if the sizes do not fit."""
    config = model.config
    if table.shortlist > config.vocab_size:
        raise ConfigError(f"draft.shortlist is {table.shortlist}, but the vocabulary has {config.vocab_size} entries")
    if config.hidden_size % 32:
        raise ConfigError(f"hidden_size is {config.hidden_size}, but the INT4 of a draft head needs a multiple of 32")
    if any(layer >= config.num_hidden_layers for layer in table.layers):
        raise ConfigError(
            f"draft.layers is {list(table.layers)}, but the model's are 0 to {config.num_hidden_layers - 1}"
        )
    model.requires_grad_(False)
    draft = Draft(config.hidden_size, table.width, table.shortlist, config.rms_norm_eps, table.layers)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, (_, inputs) in _shape(config, table).matrices.items():
            cast(nn.Linear, draft.get_submodule(name)).weight.normal_(0.0, inputs**-0.5, generator=generator)
        draft.down_proj.weight.mul_(0.1)  # the layer begins near its input
    round_linears(draft)
    model.draft = draft


def _shape(config: ModelConfig, table: DraftTable) -> DraftShape:
    return DraftShape(config.hidden_size, table.width, table.shortlist, table.layers)


def head_of(model: MobileMoE) -> Draft:
    """The draft head that `attach` gave to `model`."""
    return cast(Draft, model.draft)


@torch.no_grad()
def choose_shortlist(model: MobileMoE, counts_V: Tensor) -> None:
    """Takes the most frequent tokens, of equals the lowest ids; the head begins as the model's own for these."""
    draft = head_of(model)
    order_V = torch.argsort(counts_V.cpu(), descending=True, stable=True)
    shortlist_K = order_V[: len(draft.shortlist_K)].sort().values
    draft.shortlist_K.copy_(shortlist_K)
    rows_KD = model.head_VD[shortlist_K.to(model.head_VD.device)].float()
    draft.head.weight.copy_(rows_KD * model.model.norm.weight.float())


def places(batch: Batch, steps: int) -> npt.NDArray[np.int64]:
    """How many places of `batch` learn each of the 1 .. S tokens ahead, [S]."""
    return np.array([int(_learnt(batch, ahead).sum()) for ahead in range(1, steps + 1)])


def _learnt(batch: Batch, ahead: int) -> npt.NDArray[np.bool_]:
    """Of the places 0 .. T - ahead - 1: whether the token `ahead` is in the same document and has a target."""
    same_BT = batch.segments_BT[:, ahead:] == batch.segments_BT[:, :-ahead]
    return np.asarray(same_BT & (batch.targets_BT[:, ahead:] != NO_TARGET))


@torch.no_grad()
def states(
    model: MobileMoE, tokens_BT: Tensor, positions_BT: Tensor | None = None, segments_BT: Ids | None = None
) -> Tensor:
    """What the head of `model` begins with at each token, states_BTX: the last norm's output, then those of layers."""
    found: list[Tensor] = []
    layers = [model.model.layers[layer] for layer in head_of(model).layers]
    hooks = [layer.register_forward_hook(lambda _, inputs, output: found.append(output[0])) for layer in layers]
    try:
        x_BTD, _ = model.hidden(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat((x_BTD, *(output_BTD.to(x_BTD.dtype) for output_BTD in found)), dim=-1)


def divergences(model: MobileMoE, states_BTX: Tensor, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
    """For each of 1 .. S steps ahead, summed over places: the divergence in nats of the head's distribution from the
    model's over the shortlist, [S]; and how often both find the same token of the whole vocabulary likeliest, [S].

    `states_BTX` are the model's for the tokens of `batch`. A place counts by the model's probability of the
    shortlist, since a guess elsewhere is in vain.
    """
    draft = head_of(model)
    device, tokens = states_BTX.device, states_BTX.shape[1]
    with torch.no_grad():
        embedding_BTD = model.model.embed_tokens(torch.from_numpy(batch.tokens_BT).to(device))
        x_BTD = states_BTX[..., : model.config.hidden_size]
        log_p_BTK, likeliest_BT = _aims(model, x_BTD, draft.shortlist_K)
    state_BTD, nats, agreed = states_BTX, [], []
    for ahead in range(1, steps + 1):
        learnt_BT = torch.from_numpy(_learnt(batch, ahead)).to(device)
        step = draft.begin if ahead == 1 else draft
        state_BTD, logits_BTK = step(state_BTD[:, : tokens - ahead], embedding_BTD[:, ahead:])
        log_q_NK = logits_BTK[learnt_BT].float().log_softmax(dim=-1)
        log_p_NK = log_p_BTK[:, ahead:][learnt_BT]
        log_p_N1 = log_p_NK.logsumexp(dim=-1, keepdim=True)
        nats.append((log_p_NK.exp() * (log_p_NK - log_p_N1 - log_q_NK)).sum())
        guesses_N = draft.shortlist_K[log_q_NK.detach().argmax(dim=-1)]
        agreed.append((guesses_N == likeliest_BT[:, ahead:][learnt_BT]).sum())
    return torch.stack(nats), torch.stack(agreed)


def _aims(model: MobileMoE, x_BTD: Tensor, shortlist_K: Tensor) -> tuple[Tensor, Tensor]:
    """After each token: the model's log-probabilities of the shortlist, log_p_BTK, and its likeliest token."""
    rows, tokens, _ = x_BTD.shape
    head_DV = model.head_VD.to(x_BTD.dtype).t()
    log_p, likeliest = [], []
    for x_CD in x_BTD.flatten(0, 1).split(_GPU_CHUNK if x_BTD.is_cuda else CHUNK):
        logits_CV = (x_CD @ head_DV).float()
        log_p.append(logits_CV[:, shortlist_K] - logits_CV.logsumexp(dim=-1, keepdim=True))
        likeliest.append(logits_CV.argmax(dim=-1))
    return torch.cat(log_p).view(rows, tokens, -1), torch.cat(likeliest).view(rows, tokens)
