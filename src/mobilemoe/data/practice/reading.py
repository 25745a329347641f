"""Short passages about made-up people and places, and questions that they answer, or do not.

The names and values are drawn anew for each passage, so that an answer can only come from reading it.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from mobilemoe.data.practice.sums import Exchange
from mobilemoe.data.practice.words import (
    ANIMALS,
    COLOURS,
    DAYS,
    FOODS,
    HOUSES,
    MONTHS,
    NAMES,
    PETS,
    PLACES,
    PLAYED,
    WORK,
)

UNKNOWN = (
    "The passage does not say.",
    "The text does not say that.",
    "I cannot find that in the passage.",
)


class Fact(NamedTuple):
    """A sentence, a question that it answers, the answer as a sentence, and the bare answer."""

    sentence: str
    question: str
    answer: str
    short: str


def reading(random: Random) -> list[Exchange]:
    """A passage with a first question, mostly further ones about it; one in eight of them it does not answer."""
    told, asked_too = _facts(random)
    passage = " ".join(fact.sentence for fact in told)
    questions = random.sample(told, min(len(told), random.randint(1, 3)))
    exchanges: list[Exchange] = []
    bare = random.random() < 0.2
    for fact in questions:
        if random.random() < 1 / 8 and asked_too:
            exchanges.append((asked_too.pop().question, random.choice(UNKNOWN)))
        else:
            exchanges.append((fact.question, fact.short if bare else fact.answer))
    first, answer = exchanges[0]
    return [(layout(random, passage, ("Answer in a word or two. " if bare else "") + first), answer), *exchanges[1:]]


def layout(random: Random, passage: str, question: str) -> str:
    """Passage and question as a user might write them."""
    return random.choice(
        (
            f"{passage}\n\n{question}",
            f"Read this text: {passage}\n{question}",
            f"Text: {passage}\nQuestion: {question}",
            f"Here is a passage.\n\n{passage}\n\n{question}",
            f"{question}\n\n{passage}",
            f"Answer from the passage.\n\nPassage: {passage}\n\nQuestion: {question}",
            f"Context: {passage}\n\n{question}",
        )
    )


def _facts(random: Random) -> tuple[list[Fact], list[Fact]]:
    """3 to 6 facts to tell, about one or two people or a place, and some that stay untold."""
    people = random.sample(NAMES, random.randint(1, 2))
    told: list[Fact] = []
    untold: list[Fact] = []
    for name in people:
        facts = random.sample(_about_person(random, name), 5)
        cut = random.randint(2, 3)
        told += facts[:cut]
        untold += facts[cut:]
    if random.random() < 0.5:
        facts = random.sample(_about_place(random), 3)
        told += facts[:2]
        untold += facts[2:]
    random.shuffle(untold)
    return told, untold


def _about_person(random: Random, name: str) -> list[Fact]:
    place, work, food, played = (random.choice(of) for of in (PLACES, WORK, FOODS, PLAYED))
    animal, pet, colour, day = (random.choice(of) for of in (ANIMALS, PETS, COLOURS, DAYS))
    month, age, count, born = random.choice(MONTHS), random.randint(18, 90), random.randint(2, 9), random.choice(PLACES)
    friend = random.choice([other for other in NAMES if other != name])
    lives = random.choice((f"{name} lives in {place}.", f"{name} has a small flat in {place}."))
    return [
        Fact(lives, f"Where does {name} live?", f"{name} lives in {place}.", place),
        Fact(f"{name} works as {work}.", f"What is {name}'s job?", f"{name} is {work}.", work),
        Fact(f"{name} likes {food} best.", f"What does {name} like to eat?", f"{name} likes {food}.", food),
        Fact(f"{name} plays {played}.", f"What does {name} play?", f"{name} plays {played}.", played),
        Fact(f"{name} has a {animal} called {pet}.", f"What is {name}'s {animal} called?", f"It is called {pet}.", pet),
        Fact(f"{name} drives a {colour} car.", f"What colour is {name}'s car?", f"{name}'s car is {colour}.", colour),
        Fact(f"{name} is {age} years old.", f"How old is {name}?", f"{name} is {age} years old.", str(age)),
        Fact(f"{name} was born in {born}.", f"Where was {name} born?", f"{name} was born in {born}.", born),
        Fact(
            f"On {day} {name} visits {friend}.",
            random.choice((f"Whom does {name} visit on {day}?", f"Who is visited by {name}?")),
            f"{name} visits {friend}.",
            friend,
        ),
        Fact(
            f"{name} has {count} children.",
            f"How many children does {name} have?",
            f"{name} has {count} children.",
            str(count),
        ),
        Fact(
            f"{name} will travel in {month}.",
            f"When will {name} travel?",
            f"{name} will travel in {month}.",
            month,
        ),
    ]


def _about_place(random: Random) -> list[Fact]:
    house, street, day = random.choice(HOUSES), random.choice(NAMES), random.choice(DAYS)
    opens, closes, year = random.randint(6, 11), random.randint(15, 22), random.randint(1850, 2020)
    owner, colour = random.choice(NAMES), random.choice(COLOURS)
    return [
        Fact(f"The {house} opens at {opens}.", f"When does the {house} open?", f"It opens at {opens}.", str(opens)),
        Fact(
            f"The {house} closes at {closes}.", f"When does the {house} close?", f"It closes at {closes}.", str(closes)
        ),
        Fact(
            f"The {house} was built in {year}.", f"When was the {house} built?", f"It was built in {year}.", str(year)
        ),
        Fact(
            f"The {house} is closed on {day}.",
            f"On which day is the {house} closed?",
            f"The {house} is closed on {day}.",
            day,
        ),
        Fact(f"The {house} belongs to {owner}.", f"Who owns the {house}?", f"It belongs to {owner}.", owner),
        Fact(
            f"The door of the {house} is {colour}.",
            f"What colour is the door of the {house}?",
            f"The door is {colour}.",
            colour,
        ),
        Fact(
            f"The {house} stands in {street} Street.",
            f"Where is the {house}?",
            f"The {house} is in {street} Street.",
            f"{street} Street",
        ),
    ]
