"""Computes the constants in src/mobilemoe/profile/devices: fits to the paper's phone speeds (spec section 7).

Each phone has eight rows (two models, two prompts, prefill and decoding) and five constants, fitted to all eight. As a
check each row is also predicted by a fit to the other seven, and S at 4k by a fit to the other six.

usage: python benchmarks/fit_phones.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from mobilemoe import paper
from mobilemoe.presets import preset
from mobilemoe.profile.device import CONSTANTS, Device
from mobilemoe.profile.fit_device import Timing, fit_device

THREADS = {"Galaxy S25": 4, "iPhone 16 Pro": 2}


def timings(phone: str) -> Iterator[Timing]:
    for (of, tokens, model), (first_token_s, decoded_per_s) in paper.PHONE_SPEEDS.items():
        if of == phone:
            shape = preset(model)
            yield Timing(model=model, shape=shape, kind="prefill", tokens=tokens, seconds=first_token_s)
            yield Timing(model=model, shape=shape, kind="decode", tokens=tokens, seconds=1 / decoded_per_s)


def fit(phone: str, rows: Sequence[Timing]) -> Device:
    return fit_device(rows, name=phone.lower().replace(" ", "-"), threads=THREADS[phone], source="spec section 7")


def main() -> None:
    results = {}
    for phone in THREADS:
        rows = list(timings(phone))
        fitted = fit(phone, rows)
        without_long_s = fit(phone, [row for row in rows if (row.model, row.tokens) != ("S", 4096)])
        print(f"\n{phone}: {', '.join(f'{constant} {getattr(fitted, constant):.4g}' for constant in CONSTANTS)}")
        print(f"{'row':29}{'fitted':>13}{'without it':>13}{'no S at 4k':>13}")
        worst = dict.fromkeys(("fitted", "without_it", "without_long_s"), 0.0)
        for row in rows:
            without_it = fit(phone, [other for other in rows if other is not row])
            errors = [row.error(device) for device in (fitted, without_it, without_long_s)]
            worst = {name: max(old, abs(error)) for (name, old), error in zip(worst.items(), errors, strict=True)}
            shown = "".join(f"{error:+13.1%}" for error in errors)
            print(f"{row.model:14} {row.kind:8} {row.tokens:5}{shown}")
        constants = {constant: getattr(fitted, constant) for constant in CONSTANTS}
        results[phone] = {"constants": constants, "worst_error": worst}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
