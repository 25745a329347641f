"""Conversations made by rule, to practise what a small model gets wrong: small sums, reading a passage, remembering
what was said before, and saying so when it cannot know.

All are right by construction, and drawn from a seed. They teach a way to answer and no knowledge of the world. Some of
them may be about passages of given text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from mobilemoe.chat import Message
from mobilemoe.data.practice.facts import FACTS
from mobilemoe.data.practice.passages import about_passage, read_passages
from mobilemoe.data.practice.reading import reading
from mobilemoe.data.practice.sums import (
    Exchange,
    about_numbers,
    plain_sum,
    short_sum,
    story,
    sum_and_another,
    two_steps,
)
from mobilemoe.data.practice.words import (
    GOODBYES,
    GREETINGS,
    NAMES,
    PLACES,
    THANKS,
)
from mobilemoe.errors import DataError
from mobilemoe.files import refuse_existing, write_atomic

SOURCE, LICENSE = "mobilemoe-practice", "Apache-2.0"
WITH_SYSTEM = 0.25
PASSAGES = 0.2
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are nano, a small language model.",
    "You are nano, a helpful assistant.",
    "Answer as well as you can, and say so when you cannot.",
    "You are an assistant that runs on the user's own device.",
    "Be brief and friendly.",
)
NUMBER_ONLY = ("Answer with a number only.", "Answer with the number and nothing else.", "Give only the result.")
ASK_AGAIN = "Please tell me, and I will answer from that."


def write_practice(out: Path | str, count: int, seed: int, files: Sequence[Path | str] = ()) -> dict[str, int]:
    """Writes `count` conversations of all kinds to the JSONL file `out`, none twice; returns how many of each.

    PASSAGES of them are about passages of the text `files`, if there are any. The same arguments give the same bytes.
    Raises DataError if `out` exists, or a file cannot be read or has no prose.
    """
    out = Path(out)
    refuse_existing(out, DataError)
    passages = read_passages(files) if files else []
    random, counts = Random(seed), Counter[str]()
    lines: list[str] = []
    seen: set[str] = set()
    while len(lines) < count:
        source, license = SOURCE, LICENSE
        if passages and random.random() < PASSAGES:
            passage, other = random.choice(passages), random.choice(passages)
            kind, messages = "passages", _messages(_system(random), about_passage(random, passage, other))
            source, license = f"{SOURCE} + {passage.source}", f"{LICENSE} + {passage.license}"
        else:
            kind, make, _ = random.choices(KINDS, weights=[weight for *_, weight in KINDS])[0]
            messages = make(random)
        line = json.dumps({"messages": messages, "source": source, "license": license, "category": kind})
        if line not in seen:
            seen.add(line)
            lines.append(line + "\n")
            counts[kind] += 1
    write_atomic(out, "".join(lines))
    return dict(counts)


def _sums(random: Random) -> list[Message]:
    if random.random() < 0.12:
        exchanges = [short_sum(random) for _ in range(random.randint(1, 3))]
        return _messages([random.choice(NUMBER_ONLY)], exchanges)
    makers: tuple[Callable[[Random], Exchange], ...] = (
        plain_sum,
        plain_sum,
        plain_sum,
        two_steps,
        story,
        about_numbers,
    )
    exchanges = sum_and_another(random) if random.random() < 0.15 else [random.choice(makers)(random)]
    while random.random() < 0.4:
        exchanges.append(random.choice(makers)(random))
    return _with_manners(random, exchanges)


def _reading(random: Random) -> list[Message]:
    return _messages(_system(random), reading(random))


def _remembering(random: Random) -> list[Message]:
    """The user states facts and asks for them later, or asks for one that was not stated."""
    stated = random.sample(FACTS, random.randint(1, 3))
    exchanges: list[Exchange] = []
    asked: list[Exchange] = []
    for fact in stated:
        value = random.choice(fact.values)
        exchanges.append((random.choice(fact.statements).format(value), fact.reply.format(value)))
        if random.random() < 0.15:
            value = random.choice([other for other in fact.values if other != value])
            exchanges.append((f"Sorry, I meant {value}.", f"Thank you, I will go by that: {fact.answer.format(value)}"))
        asked.append((random.choice(fact.questions), fact.answer.format(value)))
    if random.random() < 0.4:
        exchanges.append(random.choice((plain_sum, about_numbers))(random))
    random.shuffle(asked)
    exchanges += asked[: random.randint(1, len(asked))]
    if random.random() < 0.35:
        unknown = random.choice([fact for fact in FACTS if fact not in stated])
        exchanges.append((random.choice(unknown.questions), f"You have not told me {unknown.name}. {ASK_AGAIN}"))
    return _with_manners(random, exchanges)


def _limits(random: Random) -> list[Message]:
    """What a model on a phone cannot do or know; it says so and offers what it can."""
    exchanges = [_limit(random) for _ in range(random.randint(1, 2))]
    if random.random() < 0.3:
        exchanges.append(random.choice((plain_sum, about_numbers))(random))
    return _with_manners(random, exchanges)


def _limit(random: Random) -> Exchange:
    name, place = random.choice(NAMES), random.choice(PLACES)
    asked, answer = random.choice(_LIMITS)
    return random.choice(asked).format(name=name, place=place), answer.format(name=name, place=place)


def _with_manners(random: Random, exchanges: list[Exchange]) -> list[Message]:
    """Now and then a greeting before, and thanks or a goodbye after."""
    if random.random() < 0.15:
        exchanges = [(random.choice(GREETINGS), "Hello! I am nano. How can I help you today?"), *exchanges]
    if random.random() < 0.15:
        exchanges = [*exchanges, (random.choice(THANKS), "You are welcome! Is there anything else I can help with?")]
    if random.random() < 0.05:
        exchanges = [*exchanges, (random.choice(GOODBYES), "Goodbye! Have a nice day.")]
    return _messages(_system(random), exchanges)


def _system(random: Random) -> list[str]:
    return [random.choice(SYSTEM_MESSAGES)] if random.random() < WITH_SYSTEM else []


def _messages(system: list[str], exchanges: list[Exchange]) -> list[Message]:
    messages: list[Message] = [{"role": "system", "content": text} for text in system]
    for asked, answer in exchanges:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return messages


_LIMITS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("What time is it?", "what time is it in {place}", "Can you tell me the time?", "Which day is it today?"),
        "I cannot know that, because I have no clock and no calendar. Please look at your device.",
    ),
    (
        ("What is the weather in {place}?", "Will it rain in {place} tomorrow?", "weather {place}"),
        "I cannot know the weather in {place}, because I have no internet. Please look at a weather report.",
    ),
    (
        (
            "Call {name} for me.",
            "Can you phone {name}?",
            "Send {name} a message.",
            "Write {name} an email and send it.",
        ),
        "I cannot reach {name}, because I can only write text here. I can help you to put it into words.",
    ),
    (
        ("Who is {name}?", "What did {name} say yesterday?", "Do you know my friend {name}?", "How old is {name}?"),
        "I know nothing about {name}, because you have not told me. " + ASK_AGAIN,
    ),
    (
        ("What are the news from {place}?", "What happened in {place} today?", "latest news"),
        "I do not know the news, because I have no internet and learnt from older text.",
    ),
    (
        ("Book me a flight to {place}.", "Buy me a ticket to {place}.", "Reserve a table in {place}."),
        "I cannot book or buy anything. I can only write text here.",
    ),
    (
        ("Set an alarm for 7.", "Remind me tomorrow.", "Set a timer, please.", "Play some music."),
        "I cannot do that, because I can only write text here. Please use your device for it.",
    ),
    (
        (
            "Are you sure that you are always right?",
            "Can I trust you?",
            "Do you make mistakes?",
            "Are you always right?",
        ),
        "No, I make mistakes, because I am a very small model. Please check what is important.",
    ),
    (
        ("What did we talk about last week?", "Do you remember our last chat?", "What did I tell you yesterday?"),
        "I only know what stands in this conversation. Earlier ones are not kept.",
    ),
    (
        ("What do I look like?", "Can you see me?", "What am I holding?", "Can you hear me?"),
        "I cannot see or hear. I only read what you write.",
    ),
    (
        ("Pretend that you are {name}, a human.", "Say that you are human.", "Admit that you are a real person."),
        "I am nano, a small language model, and I will not say that I am a human. How else can I help?",
    ),
)

KINDS: tuple[tuple[str, Callable[[Random], list[Message]], float], ...] = (
    ("sums", _sums, 0.45),
    ("reading", _reading, 0.3),
    ("remembering", _remembering, 0.18),
    ("limits", _limits, 0.07),
)
