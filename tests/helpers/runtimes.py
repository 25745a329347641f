"""What the comparisons with other runtimes share: prompts to continue, and the perplexity of logits."""

import numpy as np

PROMPTS = [
    *("The old man looked at the sea and", "An economy is", "def add(a, b):", "Once upon a time there was", "In 1848"),
    *("The kettle boiled, and", "Water freezes", "She opened the letter", "import os\n", "The specification says"),
    *("A triangle has", "“Come in,” said", "for i in range(10):", "The king's daughter", "Chapter 1\n\n"),
    *("Light travels", "My dear friend,", "The first rule of", "To install it,", "If you want to learn"),
]


def perplexity(logits_TV, ids):
    """That of `ids` by the logits of each place, [T, V]."""
    logits = np.asarray(logits_TV, np.float64)[:-1]
    logits -= logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(np.exp(-log_p[np.arange(len(ids) - 1), ids[1:]].mean()))
