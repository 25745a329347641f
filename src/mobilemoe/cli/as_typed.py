"""Names the options in a sentence as they are typed: sentences of the package name arguments as Python has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_VALUE = r"-?[\d.]|'|None|True|False|nan|inf"  # how a value begins that is shown


def as_typed(sentence: str, options: Mapping[str, str]) -> str:
    """`sentence` with --max-memory for max_memory; a plain word, such as window, counts in `backticks` or with a value.

    options: what is typed, by the argument's name in Python.
    """
    for name, typed in options.items():
        sentence = sentence.replace(f"`{name}`", typed)
        alone = r"(?![\w='/-]|\.\w)" if "_" in name else rf"(?= (?:is|holds) (?:{_VALUE}))"
        sentence = re.sub(rf"(?<![\w.'\"/=`-])(?:the )?{name}{alone}", typed, sentence)
    return sentence


def options_of(verb: Any, arguments: Sequence[str]) -> dict[str, str]:
    """The long names of the options of the verb that `arguments` call, by those in Python; `verb` is that of them all.

    Words before a group's own verb are looked for among its verbs, so that `data --help sample` is data's too.
    """
    for argument in arguments:
        verb = getattr(verb, "commands", {}).get(argument, verb)
    long = {each.name: [name for name in each.opts if name.startswith("--")] for each in verb.params}
    return {name: names[0] for name, names in long.items() if names}
