# SPDX-License-Identifier: Apache-2.0
"""Ordering: letters, days, months, the alphabet, sorted numbers, what came before and after."""

from collections.abc import Sequence
from random import Random

from linnet.evals.general.item import Item, Maker, spaced, table
from linnet.evals.general.words import ANIMALS, COLOURS, DAYS, MONTHS, NAMES, THINGS

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DOINGS = table(
    """washed the car = washing the car; cooked dinner = cooking dinner; read a book = reading a book
    called a friend = calling a friend; fed the dog = feeding the dog
    cleaned the house = cleaning the house; watched a film = watching a film
    wrote a letter = writing a letter; went shopping = going shopping; took a bath = taking a bath
    drank some tea = drinking some tea; painted the wall = painting the wall"""
)


def _neighbour(random: Random, row: Sequence[str], what: str, level: int) -> Item:
    """The one after, before, two after in a circle; wrong ones are near too."""
    steps = random.choice((1, 1, -1, 2) if level < 3 else (2, 3, -2))
    here = random.randrange(len(row))
    right = row[(here + steps) % len(row)]
    others = [row[(here + step) % len(row)] for step in (-3, -2, -1, 1, 2, 3) if step != steps]
    wrong = random.sample([other for other in others if other != right], 3)
    count = "" if abs(steps) == 1 else "two " if abs(steps) == 2 else "three "
    count += f"{what}s " if count else ""
    prompt = f"The {what} that comes {count}{'after' if steps > 0 else 'before'} {row[here]} is"
    return Item(prompt, f" {right}", spaced(*wrong), level if abs(steps) == 1 else 3)


def day(random: Random) -> Item:
    """The day that comes after Monday."""
    return _neighbour(random, DAYS, "day", 1)


def month(random: Random) -> Item:
    """The month that comes before May."""
    return _neighbour(random, MONTHS, "month", 1)


def letters(random: Random) -> Item:
    """D, E, F, or every second one, or backwards."""
    step = random.choice((1, 1, 2, -1))
    start = random.randrange(4, 20) if step < 0 else random.randrange(0, 26 - 3 * step)
    row = [LETTERS[start + i * step] for i in range(3)]
    right = LETTERS[start + 3 * step]
    wrong = random.sample([letter for letter in LETTERS if letter not in (*row, right)], 3)
    return Item(", ".join(row) + ",", f" {right}", spaced(*wrong), 1 if step == 1 else 2)


def alphabet(random: Random) -> Item:
    """Which of the words comes first in the alphabet: they begin differently."""
    count = random.choice((2, 3, 4))
    while True:
        words = random.sample(THINGS + ANIMALS + COLOURS, count)
        if len({word[0] for word in words}) == count:
            break
    first = random.random() < 0.5
    right = min(words) if first else max(words)
    wrong = tuple(f" {word}" for word in words if word != right)
    question = f"Question: Which word comes {'first' if first else 'last'} in the alphabet?"
    prompt = f"Words: {', '.join(words)}\n{question}\nAnswer:"
    return Item(prompt, f" {right}", wrong, 3)


def sorted_numbers(random: Random) -> Item:
    """Numbers sorted from the smallest to the largest, beside other orders of the same numbers."""
    count = random.choice((3, 4, 5))
    numbers = random.sample(range(1, 10) if count == 3 else range(10, 100), count)
    right = sorted(numbers)
    up = random.random() < 0.6
    right = right if up else right[::-1]
    wrong: list[list[int]] = []
    while len(wrong) < 3:
        other = random.sample(numbers, count)
        if other != right and other not in wrong:
            wrong.append(other)
    words = "smallest to the largest" if up else "largest to the smallest"
    prompt = f"Numbers: {', '.join(map(str, numbers))}\nFrom the {words}:"
    return Item(
        prompt,
        " " + ", ".join(map(str, right)),
        spaced(*(", ".join(map(str, row)) for row in wrong)),
        1 if count == 3 else 2,
    )


def first_then(random: Random) -> Item:
    """She did one thing before or after another: which came first?"""
    name = random.choice(NAMES)
    (one, doing_one), (_, doing_other) = random.sample(DOINGS, 2)
    before = random.random() < 0.5
    text = f"{name} {one} {'before' if before else 'after'} {doing_other}."
    first, second = (doing_one, doing_other) if before else (doing_other, doing_one)
    asked_first = random.random() < 0.5
    right, wrong = (first, second) if asked_first else (second, first)
    prompt = f"{text}\nQuestion: What came {'first' if asked_first else 'second'}?\nAnswer:"
    return Item(prompt, f" {right}", (f" {wrong}",), 2)


def in_the_row(random: Random) -> Item:
    """Which word of a list is the third."""
    ordinals = ("first", "second", "third", "fourth", "fifth", "last")
    words = random.sample(THINGS + ANIMALS, 6)
    place = random.randrange(6)
    wrong = random.sample([word for word in words if word != words[place]], 3)
    prompt = f"Words: {', '.join(words)}\nThe {ordinals[place]} word of the list is:"
    return Item(prompt, f" {words[place]}", spaced(*wrong), 1 if place in (0, 5) else 3)


MAKERS: tuple[Maker, ...] = (day, letters, sorted_numbers, month, first_then, in_the_row, alphabet, sorted_numbers)
