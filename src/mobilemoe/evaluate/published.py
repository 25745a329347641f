"""What the paper measured (spec sections 1 and 6): reference marks, not made with this harness."""

from __future__ import annotations

from dataclasses import dataclass

from mobilemoe.accounting import decode_flops, int4_file_bytes
from mobilemoe.presets import preset

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
    """The averages over the 14, those of a series from the smallest model on."""
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
