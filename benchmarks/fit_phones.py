"""Where the constants in src/mobilemoe/profile/devices come from: the paper's phones, fitted to SPEC section 7.

Each phone has eight rows (two models, two prompts, prefill and decoding) and five constants, fitted to all eight. As a
check each row is also predicted by a fit to the other seven, and S at 4k by a fit to the other six.

usage: python benchmarks/fit_phones.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from mobilemoe.presets import preset
from mobilemoe.profile.device import CONSTANTS, Device
from mobilemoe.profile.fit_device import Timing, fit_device

THREADS = {"galaxy-s25": 4, "iphone-16-pro": 2}
# Phone, tokens of the prompt, model: seconds to the first token, and tokens/s that are decoded behind it.
TABLE = {
    ("galaxy-s25", 1024, "mobilellm-pro"): (4.26, 45.8),
    ("galaxy-s25", 1024, "S"): (2.01, 112),
    ("galaxy-s25", 4096, "mobilellm-pro"): (35.62, 18.6),
    ("galaxy-s25", 4096, "S"): (16.36, 48.9),
    ("iphone-16-pro", 1024, "mobilellm-pro"): (6.03, 48.5),
    ("iphone-16-pro", 1024, "S"): (2.14, 148.4),
    ("iphone-16-pro", 4096, "mobilellm-pro"): (39.08, 17.9),
    ("iphone-16-pro", 4096, "S"): (13.86, 54.2),
}


def timings(phone: str) -> Iterator[Timing]:
    for (of, tokens, model), (first_token_s, decoded_per_s) in TABLE.items():
        if of == phone:
            shape = preset(model)
            yield Timing(model=model, shape=shape, kind="prefill", tokens=tokens, seconds=first_token_s)
            yield Timing(model=model, shape=shape, kind="decode", tokens=tokens, seconds=1 / decoded_per_s)


def fit(phone: str, rows: Sequence[Timing]) -> Device:
    return fit_device(rows, name=phone, threads=THREADS[phone], source="SPEC section 7")


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
