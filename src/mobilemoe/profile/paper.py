"""What the paper measured on phones: MobileMoE-S against MobileLLM-Pro (SPEC section 7)."""

from __future__ import annotations

BASELINE = "mobilellm-pro"  # the preset that the ratios are against
BEST = {"prefill": 3.8, "decode": 3.4}  # the paper's best ratios

# By device and tokens of the prompt: how many times as fast. Of prefill, by the time to the first token.
RATIOS: dict[str, dict[str, dict[int, float]]] = {
    "Galaxy S25": {
        "prefill": {1024: 4.26 / 2.01, 4096: 35.62 / 16.36},
        "decode": {1024: 112 / 45.8, 4096: 48.9 / 18.6},
    },
    "iPhone 16 Pro": {
        "prefill": {1024: 6.03 / 2.14, 4096: 39.08 / 13.86},
        "decode": {1024: 148.4 / 48.5, 4096: 54.2 / 17.9},
    },
}
