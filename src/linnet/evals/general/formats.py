# SPDX-License-Identifier: Apache-2.0
"""Following a format: an instruction or examples show how the answer must be written; only one choice is written so."""

from random import Random

from linnet.evals.general.item import Item, Maker, spaced
from linnet.evals.general.words import ANIMALS, COLOURS, MONTHS, NAMES, PLACES, THINGS

BRACKETS = {"round brackets": "({})", "square brackets": "[{}]", "curly brackets": "{{{}}}", "quotes": '"{}"'}
JOINS = {"a dash": "-", "a comma": ",", "a semicolon": ";", "a plus sign": "+", "a slash": "/"}


def capitals(random: Random) -> Item:
    """HOUSE, House or house."""
    word = random.choice(THINGS + ANIMALS + PLACES)
    forms = {
        "only capital letters": word.upper(),
        "only small letters": word,
        "one capital letter, the first": word.title(),
    }
    how = random.choice(sorted(forms))
    wrong = [form for name, form in forms.items() if name != how]
    return Item(f'Write the word "{word}" with {how}.\nOutput:', f" {forms[how]}", spaced(*wrong), 2)


def brackets(random: Random) -> Item:
    """[house], not (house)."""
    word = random.choice(THINGS + ANIMALS + COLOURS)
    how = random.choice(sorted(BRACKETS))
    right = BRACKETS[how].format(word)
    wrong = [form.format(word) for name, form in sorted(BRACKETS.items()) if name != how]
    return Item(f"Write the word {word} in {how}.\nOutput:", f" {right}", spaced(*wrong), 2)


def joined(random: Random) -> Item:
    """red-blue-green with the sign that was asked for."""
    words = random.sample(COLOURS + ANIMALS, 3)
    how = random.choice(sorted(JOINS))
    wrong = random.sample([sign.join(words) for name, sign in sorted(JOINS.items()) if name != how], 3)
    return Item(
        f"Join the words {', '.join(words)} with {how}.\nOutput:", f" {JOINS[how].join(words)}", spaced(*wrong), 2
    )


def shown_by_examples(random: Random) -> Item:
    """Three examples show the form."""
    forms = ("<{}>", "*{}*", "[{}]", "({})", "#{}#", "{}!", "{}?", "--{}--", "{}.txt", "{}.jpg", "the {}", "no {}")
    how = random.choice(forms)
    words = random.sample(THINGS + ANIMALS, 4)
    wrong = random.sample([form for form in forms if form != how and abs(len(form) - len(how)) <= 2], 3)
    shown = "".join(f"{word} -> {how.format(word)}\n" for word in words[:3])
    return Item(
        f"{shown}{words[3]} ->", f" {how.format(words[3])}", spaced(*(form.format(words[3]) for form in wrong)), 1
    )


def json_object(random: Random) -> Item:
    """Valid JSON, numbers without quotes."""
    name, age = random.choice(NAMES), random.randint(5, 90)
    right = f'{{"name": "{name}", "age": {age}}}'
    wrong = (
        f'{{"name": {name}, "age": "{age}"}}',
        f"{{name: '{name}', age: '{age}'}}",
        f'("name", "{name}", "age", {age})',
    )
    return Item(f"Name {name}, age {age}, as a JSON object with a string and a number:\n", right, wrong, 2)


def record(random: Random) -> Item:
    """A line of values in the order and with the signs of the lines before."""
    sign = random.choice((";", ",", "|", "/"))
    order = random.sample(range(3), 3)
    people = [(random.choice(NAMES), str(random.randint(10, 90)), random.choice(PLACES)) for _ in range(3)]
    lines = [
        f"{n} is {a} years old and is in the {p}. => {sign.join((n, a, p)[i] for i in order)}" for n, a, p in people
    ]
    values = people[2]
    right = sign.join(values[i] for i in order)
    start = lines[2].removesuffix(right).rstrip()
    other = random.choice([x for x in (";", ",", "|", "/") if x != sign])
    swapped = [order[1], order[0], order[2]]
    wrong = (
        other.join(values[i] for i in order),
        sign.join(values[i] for i in swapped),
        other.join(values[i] for i in swapped),
    )
    return Item("\n".join([*lines[:2], start]), f" {right}", spaced(*wrong), 1)


def date(random: Random) -> Item:
    """2021-05-03 is the third of May."""
    day, month, year = random.randint(13, 28), random.randint(1, 12), random.randint(1950, 2024)
    right = f"{year}-{month:02d}-{day}"
    wrong = (f"{year}-{day}-{month:02d}", f"{day}-{month:02d}-{year}", f"{year}/{month:02d}/{day}")
    return Item(f"{day} {MONTHS[month - 1]} {year} in the form YYYY-MM-DD:", f" {right}", spaced(*wrong), 2)


def month_number(random: Random) -> Item:
    """05 for May."""
    month = random.randrange(12)
    day, year = random.randint(13, 28), random.randint(1950, 2024)
    wrong = random.sample([number for number in range(12) if number != month], 3)
    prompt = f"{day} {MONTHS[month]} {year} in the form YYYY-MM-DD: {year}-"
    return Item(prompt, f"{month + 1:02d}", tuple(f"{number + 1:02d}" for number in wrong), 3)


def clock(random: Random) -> Item:
    """3 pm is 15:00."""
    hour, afternoon = random.randint(1, 11), random.random() < 0.7
    right = f"{hour + 12 * afternoon:02d}:00"
    hours = [hour + 12 * (not afternoon), hour + 10 if afternoon else hour + 1, (hour + 12 * afternoon + 2) % 24]
    wrong = tuple(f" {number:02d}:00" for number in dict.fromkeys(hours))
    return Item(f"8 am = 08:00, 2 pm = 14:00, {hour} {'pm' if afternoon else 'am'} =", f" {right}", wrong, 2)


def reversed_list(random: Random) -> Item:
    """The words in the other order."""
    words = random.sample(COLOURS + ANIMALS + THINGS, 4)
    right = words[::-1]
    wrong: list[list[str]] = []
    while len(wrong) < 3:
        other = random.sample(words, 4)
        if other not in (right, *wrong):
            wrong.append(other)
    shown = random.sample(PLACES, 4)
    example = f"Words: {', '.join(shown)}\nReversed: {', '.join(shown[::-1])}\n"
    return Item(
        f"{example}Words: {', '.join(words)}\nReversed:",
        " " + ", ".join(right),
        spaced(*(", ".join(w) for w in wrong)),
        2,
    )


def initials(random: Random) -> Item:
    """A. B. for Anna Baker."""
    surnames = (
        "Baker",
        "Smith",
        "Young",
        "Hill",
        "Wood",
        "Fox",
        "King",
        "Carter",
        "Turner",
        "Walker",
        "Vance",
        "Quinn",
    )
    first, last = random.choice(NAMES), random.choice(surnames)
    right = f"{first[0]}.{last[0]}."
    wrong = {f"{last[0]}.{first[0]}.", f"{first[:2]}.", f"{first[0]}.{last[1].upper()}.", f"{first[0]}{last[0]}"} - {
        right
    }
    prompt = f"Thomas Grant -> T.G.\nHelen Price -> H.P.\n{first} {last} ->"
    return Item(prompt, f" {right}", spaced(*random.sample(sorted(wrong), 3)), 1)


def bullet_list(random: Random) -> Item:
    """Two entries in the style of a list that has begun."""
    style = random.choice(("- {}\n", "* {}\n", "+ {}\n", "> {}\n"))
    words = random.sample(ANIMALS + COLOURS + THINGS, 4)
    begun = "".join(style.format(word) for word in words[:3])
    others = [other for other in ("- {}\n", "* {}\n", "+ {}\n", "> {}\n") if other != style]
    return Item(f"My list:\n{begun}", style.format(words[3]), tuple(other.format(words[3]) for other in others), 1)


MAKERS: tuple[Maker, ...] = (
    capitals, shown_by_examples, brackets, record, joined, date, reversed_list, json_object, clock, initials,
    month_number,
)  # fmt: skip
