"""What the paper measured on phones: MobileMoE-S against MobileLLM-Pro (spec section 7)."""

from __future__ import annotations

MODEL = "S"  # the presets that were measured
BASELINE = "mobilellm-pro"
BEST = {"prefill": 3.8, "decode": 3.4}  # the paper's best ratios

# Phone, tokens of the prompt, model: seconds to the first token, and tokens/s that are decoded behind it.
MEASURED: dict[tuple[str, int, str], tuple[float, float]] = {
    ("Galaxy S25", 1024, BASELINE): (4.26, 45.8),
    ("Galaxy S25", 1024, MODEL): (2.01, 112),
    ("Galaxy S25", 4096, BASELINE): (35.62, 18.6),
    ("Galaxy S25", 4096, MODEL): (16.36, 48.9),
    ("iPhone 16 Pro", 1024, BASELINE): (6.03, 48.5),
    ("iPhone 16 Pro", 1024, MODEL): (2.14, 148.4),
    ("iPhone 16 Pro", 4096, BASELINE): (39.08, 17.9),
    ("iPhone 16 Pro", 4096, MODEL): (13.86, 54.2),
}
LENGTHS = (1024, 4096)


def _ratios(phone: str) -> dict[str, dict[int, float]]:
    """How many times as fast the model is as the baseline, by tokens of the prompt; prefill by the first token."""
    pairs = {tokens: (MEASURED[phone, tokens, MODEL], MEASURED[phone, tokens, BASELINE]) for tokens in LENGTHS}
    return {
        "prefill": {tokens: theirs[0] / ours[0] for tokens, (ours, theirs) in pairs.items()},
        "decode": {tokens: ours[1] / theirs[1] for tokens, (ours, theirs) in pairs.items()},
    }


RATIOS = {phone: _ratios(phone) for phone in ("Galaxy S25", "iPhone 16 Pro")}
