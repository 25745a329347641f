"""The numbers of the paper (arXiv 2605.27358): its law, its benchmark averages, its speeds on phones.

Published numbers, not measured here; docs/spec.md gives the source of each (sections 1, 4, 6 and 7).
"""

from __future__ import annotations

from dataclasses import dataclass

from mobilemoe.accounting import decode_flops, int4_file_bytes
from mobilemoe.presets import preset

# The law of the paper's E-sweep (section 4): N_active and D in 1e9, and where its runs lay.
LAW_E = {"A": 0.2388, "delta": 0.0906, "alpha": -0.2833, "gamma": 0.0387, "B": 0.6019}
LAW_E |= {"omega": 1.0593, "beta": -0.3210, "zeta": -0.3684, "c": 1.9730}
LAW_E_DOMAIN = {"n_active": (0.3, 0.9), "tokens": (100.0, 500.0), "experts": (1.0, 32.0)}
LAW_E_RMSE = 0.0076  # nats

# The values that its sweeps tried (section 4).
SWEPT = {"experts": (1, 2, 4, 8, 16, 32), "granularity": (1, 2, 4, 8, 16), "shared": (0, 1)}

CAVEAT = (
    "Reference marks are as the paper measured them (arXiv 2605.27358), not with this harness: most of its shots and "
    "its prompts are not published."
)
INT4_BITS = 4.5  # a weight of a group of 32 that shares an fp16 scale

# Parameters of dense models with a tied embedding that have no preset: each token uses them all.
# Gemma-3-270M: its model card, 100 M in the transformer and 168 M in the embedding. SmolLM2-1.7B: its model card's
# safetensors, 1.71 B. Qwen3.5-2B, text part: 24 layers of width 2048 (18 gated-delta, 6 attention), FFN 6144 and
# 248,320 words as its config says make 1.88 B by arithmetic, which is also what llama.cpp prints for its GGUF.
_DENSE = {"SmolLM2-1.7B": 1.71e9, "Qwen3.5-2B": 1.88e9, "Gemma-3-270M": 0.268e9}

# Averages over the 14, by series, by model. Those of one series are one kind of model in several sizes.
_AVERAGES = {
    "MobileMoE base": {"S": 0.465, "M": 0.554, "L": 0.598},
    "MobileMoE SFT": {"S": 0.467, "M": 0.553, "L": 0.601},
    "MobileMoE QAT": {"S": 0.440, "M": 0.525, "L": 0.578},
    "OLMoE-1B-7B base": {"olmoe-1b-7b": 0.524},
    "OLMoE-1B-7B SFT": {"olmoe-1b-7b": 0.556},
    "MobileLLM-Pro": {"mobilellm-pro": 0.470},
    "MobileLLM-Pro INT4": {"mobilellm-pro": 0.455},
    "SmolLM2-1.7B": {"SmolLM2-1.7B": 0.507},
    "Qwen3.5-2B": {"Qwen3.5-2B": 0.533},
    "Gemma-3-270M": {"Gemma-3-270M": 0.335},
}
_IN_INT4 = ("MobileMoE QAT", "MobileLLM-Pro INT4")

# 0-shot, with their own main metrics: the only rows of single benchmarks whose shots are published.
S_BASE_ZERO_SHOT = {
    "hellaswag": 0.589,
    "piqa": 0.754,
    "siqa": 0.468,
    "winogrande": 0.586,
    "arc_easy": 0.739,
    "openbookqa": 0.346,
    "boolq": 0.602,
}

# Section 7: MobileMoE-S against MobileLLM-Pro on phones.
PHONE_MODEL = "S"  # the presets that were measured on phones
PHONE_BASELINE = "mobilellm-pro"
BEST_RATIOS = {"prefill": 3.8, "decode": 3.4}  # the paper's best ratios

# Phone, tokens of the prompt, model: seconds to the first token, and decoded tokens/s after it.
PHONE_SPEEDS: dict[tuple[str, int, str], tuple[float, float]] = {
    ("Galaxy S25", 1024, PHONE_BASELINE): (4.26, 45.8),
    ("Galaxy S25", 1024, PHONE_MODEL): (2.01, 112),
    ("Galaxy S25", 4096, PHONE_BASELINE): (35.62, 18.6),
    ("Galaxy S25", 4096, PHONE_MODEL): (16.36, 48.9),
    ("iPhone 16 Pro", 1024, PHONE_BASELINE): (6.03, 48.5),
    ("iPhone 16 Pro", 1024, PHONE_MODEL): (2.14, 148.4),
    ("iPhone 16 Pro", 4096, PHONE_BASELINE): (39.08, 17.9),
    ("iPhone 16 Pro", 4096, PHONE_MODEL): (13.86, 54.2),
}
PHONE_PROMPTS = (1024, 4096)


@dataclass(frozen=True)
class Mark:
    """A published score, as a fraction, and what the model costs: FLOPs a decoded token, bytes of an INT4 file.

    `int4` says whether the score was measured in INT4; the bytes are those of the INT4 file in any case.
    """

    series: str
    name: str
    score: float
    flops_per_token: float
    int4_bytes: float
    int4: bool


def average_marks() -> list[Mark]:
    """The averages over the 14 benchmarks; within a series from the smallest model to the largest."""
    return [
        _mark(series, model, score, series in _IN_INT4)
        for series, models in _AVERAGES.items()
        for model, score in models.items()
    ]


def s_base_mark(benchmark: str) -> Mark | None:
    """The published 0-shot score of S-Base in one benchmark."""
    score = S_BASE_ZERO_SHOT.get(benchmark)
    return None if score is None else _mark("MobileMoE base", "S", score, False)


def _mark(series: str, model: str, score: float, int4: bool) -> Mark:
    name = f"{series} {model}" if model in ("S", "M", "L") else series
    if model in _DENSE:
        return Mark(series, name, score, 2 * _DENSE[model], _DENSE[model] * INT4_BITS / 8, int4)
    config = preset(model)
    return Mark(series, name, score, decode_flops(config), int4_file_bytes(config), int4)


def _ratios(phone: str) -> dict[str, dict[int, float]]:
    """Speed relative to the baseline, by prompt length in tokens; prefill by the time to the first token."""
    models = (PHONE_MODEL, PHONE_BASELINE)
    pairs = {tokens: [PHONE_SPEEDS[phone, tokens, model] for model in models] for tokens in PHONE_PROMPTS}
    return {
        "prefill": {tokens: theirs[0] / ours[0] for tokens, (ours, theirs) in pairs.items()},
        "decode": {tokens: ours[1] / theirs[1] for tokens, (ours, theirs) in pairs.items()},
    }


PHONE_RATIOS = {phone: _ratios(phone) for phone in ("Galaxy S25", "iPhone 16 Pro")}
