"""What a refusal of --max-memory says."""

import re

_UNITS = {"MB": 1e6, "GB": 1e9}


def named_limit(said: str) -> int:
    """The bytes of the smallest limit that works, as the refusal names it."""
    number, unit = re.search(r"needs at least ([\d.]+) (MB|GB) ", said).groups()
    return round(float(number) * _UNITS[unit])
