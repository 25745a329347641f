"""The part of a recipe that tests of training and of sweeps have in common."""

import json

from places import TRAINING_TEXT


def data_table(weights: dict[str, float]) -> str:
    """The table [data] of a mixture of the committed training text, with these weights by source."""
    sources = "".join(
        f'  {{ name = "{name}", files = "{name}-*.jsonl*", weight = {weight} }},\n' for name, weight in weights.items()
    )
    return f"[data]\npath = {json.dumps(str(TRAINING_TEXT))}\nseed = 1\npiece_chars = 2000\nmixture = [\n{sources}]\n"
