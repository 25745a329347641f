"""Questions about numbers with right answers, and with a refusal where the numbers are larger than MOST.

Every number up to 99 is one token of nano's tokenizer. Sums of two digits are answered by tens and ones, so that each
step is one that a small model can know by heart.
"""

from __future__ import annotations

from random import Random

from mobilemoe.data.practice.words import DAYS, MONTHS, NAMES, THINGS

Exchange = tuple[str, str]  # what the user asks, what the assistant answers

MOST = 100  # of what is added or taken away
MOST_FACTOR = 12
SIGNS = {"plus": "+", "minus": "-", "times": "*"}
REFUSALS = (
    "I cannot do that exactly, because the numbers are too large for me. Please use a calculator.",
    "Those numbers are too large for me. I would only guess, so please use a calculator.",
    "I only know sums with small numbers. Please use a calculator for that one.",
)


def plain_sum(random: Random) -> Exchange:
    """ "What is 47 plus 38?", "12 * 7 =", ...; one in four is too large: a wrong result is worse than none."""
    word = random.choice(("plus", "plus", "plus", "minus", "minus", "times"))
    a, b = _operands(random, word, large=random.random() < 1 / 4)
    return _asked(random, a, word, b), worked(random, a, word, b)


def short_sum(random: Random) -> Exchange:
    """Like `plain_sum`, but never with numbers that are too large, and answered with the number alone."""
    word = random.choice(("plus", "minus", "times"))
    a, b = _operands(random, word, large=False)
    return _asked(random, a, word, b), str(_result(a, word, b))


def sum_and_another(random: Random) -> list[Exchange]:
    """A sum, and a second one that continues with its result."""
    a, b = random.randint(1, 50), random.randint(1, 40)
    word, c = random.choice(("plus", "minus")), random.randint(1, 40)
    if word == "minus" and c > a + b:
        word = "plus"
    first = random.choice((f"What is {a} plus {b}?", f"{a} + {b}", f"add {a} and {b}", f"How much is {a} plus {b}?"))
    then = random.choice((f"And {word} {c}?", f"now {word} {c}", f"{word} {c}?", f"And what is that {word} {c}?"))
    return [(first, worked(random, a, "plus", b)), (then, worked(random, a + b, word, c))]


def two_steps(random: Random) -> Exchange:
    """ "What is 12 plus 30 minus 5?", one step after the other."""
    a, b = random.randint(1, 40), random.randint(1, 40)
    between, c = a + b, random.randint(1, 30)
    word = "minus" if c <= between and random.random() < 0.5 else "plus"
    result = _result(between, word, c)
    asked = random.choice(
        (f"What is {a} plus {b} {word} {c}?", f"{a} + {b} {SIGNS[word]} {c}", f"{a} plus {b} {word} {c}")
    )
    return asked, f"{a} plus {b} is {between}, and {between} {word} {c} is {result}."


def story(random: Random) -> Exchange:
    """A problem in words of one or two steps."""
    name, other = random.sample(NAMES, 2)
    thing, a, b = random.choice(THINGS), random.randint(2, 50), random.randint(2, 40)
    kind = random.randrange(8)
    if kind == 0:
        verb = random.choice(("buys", "finds", "gets", "picks"))
        asked = f"{name} has {a} {thing} and {verb} {b} more. How many {thing} does {name} have now?"
        return asked, f"{_steps(a, 'plus', b)}. {name} has {a + b} {thing} now."
    if kind == 1:
        a, b = max(a, b), min(a, b)
        verb = random.choice(("gives away", "loses", "sells"))
        asked = f"{name} has {a} {thing}. {name} {verb} {b} of them. How many {thing} are left?"
        return asked, f"{_steps(a, 'minus', b)}. {a - b} {thing} are left."
    if kind == 2:
        a, b = random.randint(2, MOST_FACTOR), random.randint(2, MOST_FACTOR)
        holder = random.choice(("bags", "baskets", "rows", "drawers"))
        asked = f"There are {a} {holder} with {b} {thing} each. How many {thing} are there?"
        return asked, f"{a} times {b} is {a * b}. There are {a * b} {thing}."
    if kind == 3:
        asked = f"{name} has {a} {thing} and {other} has {b}. How many do they have together?"
        return asked, f"{_steps(a, 'plus', b)}. Together they have {a + b} {thing}."
    if kind == 4:
        each, people = random.randint(2, MOST_FACTOR), random.randint(2, MOST_FACTOR)
        asked = f"{name} shares {each * people} {thing} equally among {people} friends. How many does each friend get?"
        return asked, f"{each * people} divided by {people} is {each}. Each friend gets {each} {thing}."
    if kind == 5:
        verb = random.choice(("buy", "find", "get", "pick"))
        asked = random.choice(
            (
                f"I have {a} {thing} and {verb} {b} more. How many {thing} do I have?",
                f"If I have {a} {thing} and {verb} {b} more, how many do I have now?",
                f"I had {a} {thing}. Then I got {b} more. How many are there?",
            )
        )
        return asked, f"{_steps(a, 'plus', b)}. You have {a + b} {thing} now."
    if kind == 6:
        a, b = max(a, b), min(a, b)
        verb = random.choice(("give away", "lose", "sell", "use"))
        asked = random.choice(
            (
                f"I have {a} {thing} and {verb} {b}. How many {thing} are left?",
                f"If I have {a} {thing} and {verb} {b} of them, how many do I have left?",
            )
        )
        return asked, f"{_steps(a, 'minus', b)}. You have {a - b} {thing} left."
    c = random.randint(2, a)
    asked = f"{name} has {a} {thing}, gives {c} to {other} and then buys {b}. How many {thing} does {name} have?"
    return asked, f"{a} minus {c} is {a - c}, and {a - c} plus {b} is {a - c + b}. {name} has {a - c + b} {thing}."


def about_numbers(random: Random) -> Exchange:
    """Which is larger, what comes next, half and double, even or odd, days and months."""
    a, b = random.sample(range(1, MOST), 2)
    kind = random.randrange(8)
    if kind == 0:
        asked = random.choice(
            (f"Which is larger, {a} or {b}?", f"What is bigger: {a} or {b}?", f"is {a} more than {b}?")
        )
        if asked.startswith("is "):
            return asked, f"Yes, {a} is more than {b}." if a > b else f"No, {a} is less than {b}."
        return asked, f"{max(a, b)} is larger than {min(a, b)}."
    if kind == 1:
        return random.choice((f"What number comes after {a}?", f"what comes after {a}")), f"{a + 1} comes after {a}."
    if kind == 2:
        return random.choice((f"What is half of {2 * a}?", f"half of {2 * a}")), f"Half of {2 * a} is {a}."
    if kind == 3:
        return random.choice((f"What is twice {a}?", f"double {a}")), f"Twice {a} is {2 * a}."
    if kind == 4:
        return f"Is {a} even or odd?", f"{a} is {'odd' if a % 2 else 'even'}."
    if kind == 5:
        divisor, each = random.randint(2, MOST_FACTOR), random.randint(2, MOST_FACTOR)
        asked = random.choice(
            (
                f"What is {divisor * each} divided by {divisor}?",
                f"{divisor * each} / {divisor}",
                f"{divisor * each} by {divisor}?",
            )
        )
        return asked, f"{divisor * each} divided by {divisor} is {each}."
    names, what = random.choice(((DAYS, "day"), (MONTHS, "month")))
    place = random.randrange(len(names))
    if kind == 6:
        return f"Which {what} comes before {names[place]}?", f"{names[place - 1]} comes before {names[place]}."
    after = names[(place + 1) % len(names)]
    return f"Which {what} comes after {names[place]}?", f"{after} comes after {names[place]}."


def worked(random: Random, a: int, word: str, b: int) -> str:
    """The answer to `a word b`: by tens and ones where both have two digits, a refusal where one is too large."""
    if max(a, b) > (MOST_FACTOR if word == "times" else MOST):
        return random.choice(REFUSALS)
    result = _result(a, word, b)
    if word != "times" and a >= 10 and b >= 10:
        return f"{_steps(a, word, b)}, so {a} {word} {b} is {result}."
    return f"{a} {word} {b} is {result}."


def _steps(a: int, word: str, b: int) -> str:
    """ "47 + 30 = 77 and 77 + 8 = 85": the tens of b first, then its ones."""
    sign, tens, ones = SIGNS[word], b // 10 * 10, b % 10
    if not tens or not ones:
        return f"{a} {sign} {b} = {_result(a, word, b)}"
    between = _result(a, word, tens)
    return f"{a} {sign} {tens} = {between} and {between} {sign} {ones} = {_result(a, word, b)}"


def _operands(random: Random, word: str, large: bool) -> tuple[int, int]:
    if large:
        least = MOST_FACTOR if word == "times" else MOST
        a, b = (random.randint(least + 1, 10 ** random.randint(3, 6)) for _ in range(2))
        return a, random.choice((b, random.randint(2, MOST)))
    if word == "times":
        return random.randint(0, MOST_FACTOR), random.randint(0, MOST_FACTOR)
    a, b = random.randint(0, MOST), random.randint(0, MOST)
    if random.random() < 0.3:  # the ones that people ask most
        a, b = random.randint(0, 20), random.randint(0, 20)
    return (max(a, b), min(a, b)) if word == "minus" else (a, b)


def _result(a: int, word: str, b: int) -> int:
    return {"plus": a + b, "minus": a - b, "times": a * b}[word]


def _asked(random: Random, a: int, word: str, b: int) -> str:
    sign = SIGNS[word]
    ways = [
        f"What is {a} {word} {b}?",
        f"what is {a} {word} {b}",
        f"{a} {word} {b}",
        f"{a} {sign} {b}",
        f"{a}{sign}{b}",
        f"{a} {sign} {b} = ?",
        f"How much is {a} {word} {b}?",
        f"Can you tell me what {a} {word} {b} is?",
        f"calculate {a} {sign} {b}",
        f"What's {a} {sign} {b}?",
    ]
    ways += {
        "plus": [f"Add {a} and {b}.", f"What is the sum of {a} and {b}?"],
        "minus": [f"Take {b} from {a}.", f"Subtract {b} from {a}."],
        "times": [f"Multiply {a} by {b}.", f"{a} x {b}"],
    }[word]
    return random.choice(ways)
