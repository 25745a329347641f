"""What a plan assumes and what its law does not know, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mobilemoe.counted import counted
from mobilemoe.profile.device import Device
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.runs import few
from mobilemoe.scaling.plan.candidates import FINEST, FINEST_PRIOR, WEIGHT_BITS_PRIOR, Candidate
from mobilemoe.scaling.plan.choice import digits, law_error
from mobilemoe.scaling.plan.explain import amount
from mobilemoe.scaling.plan.flash import ASSUMED_BANDWIDTH, NANO_HITS
from mobilemoe.scaling.plan.limits import DEFAULT_TOKENS, Constraints
from mobilemoe.scaling.plan.space import RATIO, Space
from mobilemoe.scaling.plan.vocabulary import BYTES_PER_TOKEN, text_of_tokens

UNUSUAL = 0.3  # smaller departures from the family's depth and heads (in doublings) are not mentioned


def notes(
    space: Space,
    law: Law,
    device: Device | None,
    constraints: Constraints,
    candidates: Sequence[Candidate],
    dense: Candidate | None,
) -> Iterator[str]:
    """Everything that is assumed or unknown to the law; `dense` is the best model without experts."""
    error, error_of = law_error(law)
    places = digits(error)
    if outside := sorted({sentence for candidate in candidates[:1] for sentence in candidate.outside}):
        yield f"OUTSIDE THE LAW'S DOMAIN, the first candidate: {'; '.join(outside)}"
    if any(candidate.outside for candidate in candidates[1:]):
        yield "OUTSIDE THE LAW'S DOMAIN too: every candidate marked with !"
    if candidates and not constraints.limit_active and len(space.experts) > 1:
        yield (
            "NOTHING LIMITS ACTIVE PARAMETERS: memory alone makes the law prefer few experts, unlike the paper; add "
            "--decode or --ttft with a --device, --flops or --train-flops"
        )
    if dense is not None and dense is not candidates[0]:
        yield (
            f"the best dense model within the limits: {dense.config.hidden_size} x {dense.config.num_hidden_layers}, "
            f"loss {dense.loss:.{places}f}, {dense.loss - candidates[0].loss:+.{places}f} nats, "
            f"{amount('memory', dense.memory)}"
        )
    yield f"law: {law.source}; the losses' interval is the {law.interval_kind}"
    if law.left_out:
        yield f"the law was fitted without {counted(len(law.left_out), 'run')} far from it ({few(law.left_out)})"
    over = f" over {law.forecast_split}" if law.forecast_split else ""
    yield (
        f"the law's error is the {error_of}{over}, {error:.2g} nats: models whose losses differ by less count as "
        "equivalent, and losses have no more digits than that"
    )
    if law.prior:
        yield f"prior in the law: {law.prior}"
    if law.counts_embedding is None:
        yield "whether the law's N counts the embedding is unknown: N_act counts it here, so that F_inf = 2 N_act"
    if constraints.train_flops is None and constraints.tokens is None:
        yield f"no training budget was given: {DEFAULT_TOKENS / 1e9:.0f} B tokens are assumed"
    yield (
        "score = loss + priors + preference: depth, heads and KV heads are unknown to the law, and the family's are "
        f"preferred (width / layers {RATIO}) by as much as the law's error for each doubling away from them, at most "
        f"once; width / layers may be {min(space.ratios):.0f} to {max(space.ratios):.0f}; among equal scores "
        "the cheapest in the tightest limit is taken"
    )
    if candidates and candidates[0].departure > UNUSUAL:
        c = candidates[0].config
        yield (
            f"the first candidate's depth or heads are not the family's ({c.hidden_size} / {c.num_hidden_layers} = "
            f"{c.hidden_size / c.num_hidden_layers:.0f}; {c.num_attention_heads} heads of {c.head_dim}, "
            f"{c.num_key_value_heads} for keys and values): the limits made them so, and the law does not know at what "
            "cost"
        )
    if len(space.vocabularies) > 1:
        yield from _vocabularies(space)
    if len(space.tied) > 1:
        yield "the law does not know tying: tied and untied models are ranked apart, in the order given"
    cost = WEIGHT_BITS_PRIOR[4]
    if len(space.weight_bits) > 1:
        yield f"prior: INT4 weights are ranked as {cost} nats worse than 8 or 16 bits (2.3 to 2.8 points of the paper)"
    elif space.weight_bits == (4,):
        yield f"losses are those before quantisation; scores add a prior of {cost} nats for INT4 after QAT"
    if len(space.kv_bits) > 1:
        yield "prior: an int8 KV cache is taken to cost no loss, so that 16 bits only take memory"
    if FINEST in space.granularities:
        yield (
            f"prior: g = {FINEST} is ranked as {FINEST_PRIOR} nats worse: the paper finds ~50% more wall-clock for "
            "less than that"
        )
    yield from _memory(device, constraints)
    if constraints.max_memory is not None:
        yield from _flash(device)
    if device is not None:
        margin = "its error is not known, so that limits on speed have no margin"
        if device.error is not None:
            margin = (
                f"rows that its fit had not seen are up to {device.error:.1%} off: a limit on decode or ttft "
                "counts as met only with that margin"
            )
        yield (
            f"device {device.name}: {device.source}; decode speed after {constraints.context:,} tokens, first token "
            f"after a prompt of {constraints.prompt:,}; {margin}"
        )
        if space.weight_bits != (4,) or space.kv_bits != (8,):
            yield (
                "the device was measured with INT4 weights and its own KV cache: other weights take longer by their "
                "bytes in decoding, all else is taken to be the same"
            )
    if candidates and candidates[0].config.hidden_size == max(space.widths):
        yield "the first candidate is as wide as the space goes: the limits given do not keep the loss from falling"


def _flash(device: Device | None) -> Iterator[str]:
    known = None if device is None else device.flash_bandwidth
    source = "as the device or --flash says" if known else "ASSUMED, since nobody measured it: say --flash"
    yield (
        "a model may be larger than --max-memory: what does not fit of its routed experts is read from flash at "
        f"{(known or ASSUMED_BANDWIDTH) / 1e9:.3g} GB/s ({source}), while the rest computes, so that the slower of the "
        "two sets the speed; where both take long they get in each other's way, and it is less"
    )
    points = ", ".join(f"{held:.0%} of them in memory {hits:.0%}" for held, hits in NANO_HITS[1:-1])
    yield (
        f"ASSUMED: experts are found in memory as often as those of nano, 18 a layer and top-4, were ({points}); the "
        "routing of a larger model may be less or more even"
    )


def _vocabularies(space: Space) -> Iterator[str]:
    first = space.vocabularies[0]
    if text_of_tokens(space.vocabularies) is None:
        low, high = min(BYTES_PER_TOKEN), max(BYTES_PER_TOKEN)
        yield (
            "losses a token of different vocabularies cannot be compared: each is ranked apart, in the order given, "
            f"since bytes per token are known for sizes from {low:,} to {high:,} alone"
        )
        return
    yield (
        f"prior: the law is taken to hold for tokens of the first vocabulary ({first:,}), and models with the same "
        "layers and the same text to be equally good byte for byte whatever their vocabulary; losses, speeds, prompt, "
        f"context and --tokens are for the text of so many tokens of {first:,}, D in each model's own; bytes "
        "per token are those of our own tokenizers on tests/data/heldout.jsonl"
    )


def _memory(device: Device | None, constraints: Constraints) -> Iterator[str]:
    formula = f"the weights' file (scales and router included) and a KV cache of {constraints.context:,} tokens"
    if device is None or device.process_weights is None:
        yield (
            f"memory = {formula}; a process takes more (the paper's S: 1.23 GB on the S25 where this formula has "
            "0.76), which is not known here"
        )
    else:
        yield (
            f"memory = the process on {device.name}: {device.process_weights:g} bytes for each byte of weights and "
            f"{device.process_kv:g} for each byte of KV cache, a fit to measured processes; {formula} stand beside it"
        )
