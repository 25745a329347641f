"""Compares the logits of models with their parent's, token by token: log-probabilities, divergence and agreement.

C models, T tokens, V vocabulary, R rows: some of the T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mobilemoe.cores import allowed_cores
from mobilemoe.data.sources import Document
from mobilemoe.errors import UsageError
from mobilemoe.evaluate.compare.bits_per_byte import check_window, encode_document, targets_of
from mobilemoe.load import Model

_LOGITS = 2**27  # of each model at a time, half a GB: 1,046 tokens at 128,256 entries
_BLOCK = 2**18  # logits of each model that are worked on at a time: three arrays of 1 MB, which stay in the cache


def choose_window(models: Sequence[Model], window: int | None) -> int:
    """`window`, checked, or the longest that all `models` can take; UsageError if their tokenizers differ."""
    longest = min(model.config.max_position_embeddings for model in models)
    size = models[0].config.vocab_size
    for model in models:
        if model.config.vocab_size != size:
            raise UsageError(
                f"the vocabularies have {model.config.vocab_size} and {size} entries: "
                "only models of one tokenizer can be compared"
            )
    window = min(longest, max(2, _LOGITS // size)) if window is None else window
    check_window(window, longest)
    return window


def encode_for_all(models: Sequence[Model], place: str, document: Document) -> tuple[list[int], int]:
    """The document as ids, which must be the same for all `models`; else UsageError."""
    first, *others = (encode_document(model, place, document) for model in models)
    if any(ids != first[0] for ids, _ in others):
        raise UsageError(f"{place}: the models read this text as different tokens and cannot be compared")
    return first


def windows_of(ids: Sequence[int], window: int) -> Iterator[tuple[list[int], list[int]]]:
    """For each window of at most `window` ids: the ids that are computed, beginning with ids[0], and the targets."""
    for targets in targets_of(ids, window):
        yield [ids[0], *targets[:-1]], targets


def bits(logprobs: NDArray[np.float64]) -> float:
    """Converts nats to bits, summed over all tokens."""
    return -float(logprobs.sum()) / math.log(2)


class LogitsComparison(NamedTuple):
    """Log-probabilities of the targets, KL(parent || model) and whether the likeliest tokens are equal; in nats."""

    parent_logprobs_T: NDArray[np.float64]
    logprobs_CT: NDArray[np.float64]
    nats_CT: NDArray[np.float64]
    agreed_CT: NDArray[np.bool_]


def compare_logits(
    parent_TV: NDArray[np.float32], models: Sequence[NDArray[np.float32]], targets: Sequence[int]
) -> LogitsComparison:
    """Compares each of `models` (logits_TV) with the parent, whose distribution is computed once for all of them.

    With u = logits - largest logit and Z = sum exp(u): KL = sum exp(u_p) (u_p - u_q) / Z_p - log Z_p + log Z_q. What is
    done V times for a token is done in fp32, whose rounding errors are 1e-7 nats in a token and 1e-8 in a mean; the
    rest is done in float64. NumPy releases the interpreter's lock while it computes, so threads share the rows.
    """
    targets_T, count = np.asarray(targets), len(models)
    shape = count, len(targets_T)
    found = LogitsComparison(np.empty(shape[1]), np.empty(shape), np.empty(shape), np.empty(shape, bool))
    threads = max(1, min(allowed_cores(), shape[1] * parent_TV.shape[1] // _BLOCK))
    edges = np.linspace(0, shape[1], threads + 1).astype(int)

    def work(start: int, stop: int) -> None:
        rows = slice(start, stop)
        part = LogitsComparison(
            found.parent_logprobs_T[rows], found.logprobs_CT[:, rows], found.nats_CT[:, rows], found.agreed_CT[:, rows]
        )
        _compare_rows(parent_TV[rows], [model_TV[rows] for model_TV in models], targets_T[rows], part)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))
    return found


def _compare_rows(
    parent_TV: NDArray[np.float32],
    models: Sequence[NDArray[np.float32]],
    targets_T: NDArray[np.int64],
    found: LogitsComparison,
) -> None:
    size = parent_TV.shape[1]
    step = max(1, _BLOCK // size)
    u_p, exp_p, u_q, gap = np.empty((4, step, size), np.float32)
    for start in range(0, len(targets_T), step):
        rows = slice(start, start + step)
        targets_R = targets_T[rows]
        u_p_RV, exp_p_RV, u_q_RV, gap_RV = (array[: len(targets_R)] for array in (u_p, exp_p, u_q, gap))
        each_R = np.arange(len(targets_R))
        likeliest_R = _below_top(parent_TV[rows], u_p_RV)
        z_p_R = np.exp(u_p_RV, out=exp_p_RV).sum(axis=1).astype(np.float64)
        log_z_p_R = np.log(z_p_R)
        found.parent_logprobs_T[rows] = u_p_RV[each_R, targets_R] - log_z_p_R
        for number, model_TV in enumerate(models):
            found.agreed_CT[number, rows] = _below_top(model_TV[rows], u_q_RV) == likeliest_R
            np.subtract(u_p_RV, u_q_RV, out=gap_RV)
            np.multiply(gap_RV, exp_p_RV, out=gap_RV)
            chosen_R = u_q_RV[each_R, targets_R]
            log_z_q_R = np.log(np.exp(u_q_RV, out=u_q_RV).sum(axis=1).astype(np.float64))
            found.logprobs_CT[number, rows] = chosen_R - log_z_q_R
            found.nats_CT[number, rows] = gap_RV.sum(axis=1) / z_p_R - log_z_p_R + log_z_q_R


def _below_top(logits_RV: NDArray[np.float32], out_RV: NDArray[np.float32]) -> NDArray[np.int64]:
    """Writes the logits minus the largest of each row, and returns the indices of the largest."""
    top_R: NDArray[np.int64] = logits_RV.argmax(axis=1)
    np.subtract(logits_RV, np.take_along_axis(logits_RV, top_R[:, None], axis=1), out=out_RV)
    return top_R
