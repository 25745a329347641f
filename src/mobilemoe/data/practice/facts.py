"""Facts that users may state about themselves, and how they ask for it later (facts.toml)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from mobilemoe.data.practice import words

AGES = tuple(str(age) for age in range(16, 90))


@dataclass(frozen=True)
class Fact:
    """One kind of fact; `{}` stands for its value in every text.

    name: what the user has not told, as in "You have not told me your age". values: what it may be. statements: how a
    user states it, each answered by `reply`. questions: how the user asks for it later, each answered by `answer`.
    """

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    reply: str
    questions: tuple[str, ...]
    answer: str


def _read() -> tuple[Fact, ...]:
    lists = {name.lower(): value for name, value in vars(words).items() if name.isupper()} | {"ages": AGES}
    rows = tomllib.loads(Path(__file__).with_name("facts.toml").read_text(encoding="utf-8"))["fact"]
    return tuple(
        Fact(
            name=row["name"],
            values=lists[row["values"]],
            statements=tuple(row["statements"]),
            reply=row["reply"],
            questions=tuple(row["questions"]),
            answer=row["answer"],
        )
        for row in rows
    )


FACTS = _read()
