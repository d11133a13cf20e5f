# SPDX-License-Identifier: Apache-2.0
"""Counting: on in steps, things in a list, things of one colour, letters of a word."""

from random import Random

from linnet.evals.general.item import Item, Maker, near, spaced
from linnet.evals.general.words import ANIMALS, COLOURS, NUMBER_WORDS, PLACES, THINGS

WRONG_ANSWERS = 3


def _digit(random: Random, prompt: str, value: int, level: int) -> Item:
    """Answers from 1 to 9, all of them one digit, anywhere on both sides of the right one."""
    others = random.sample([number for number in range(1, 10) if number != value], WRONG_ANSWERS)
    return Item(prompt, f" {value}", spaced(*map(str, others)), level)


def count_on(random: Random) -> Item:
    """3, 4, 5, 6,"""
    start, down = random.randint(1, 80), random.random() < 0.4
    row = [start + i for i in range(4)]
    row, value = (row[::-1], start - 1) if down else (row, start + 4)
    wrong = near(random, value, (1, 2, 3), WRONG_ANSWERS, smallest=0)
    return Item(", ".join(map(str, row)) + ",", f" {value}", spaced(*map(str, wrong)), 1)


def count_in_steps(random: Random) -> Item:
    """5, 10, 15, 20,"""
    step = random.choice((2, 5, 10, 100) if random.random() < 0.5 else (3, 4, 6, 7, 8, 9))
    start = step * random.randint(1, 6) + (random.randint(0, step - 1) if step < 10 and random.random() < 0.4 else 0)
    row = [start + step * i for i in range(4)]
    value = row[-1] + step
    easy = step in (2, 5, 10, 100) and start % step == 0
    wrong = near(random, value, (1, 2, 3) if step < 10 else (step, step // 2, 1), WRONG_ANSWERS)
    return Item(", ".join(map(str, row)) + ",", f" {value}", spaced(*map(str, wrong)), 1 if easy else 2)


def count_in_words(random: Random) -> Item:
    """two, three, four,"""
    start, down = random.randint(1, 8), random.random() < 0.4
    row = list(NUMBER_WORDS[start : start + 3])
    row, value = (row[::-1], start - 1) if down else (row, start + 3)
    wrong = random.sample([word for word in NUMBER_WORDS if word not in (*row, NUMBER_WORDS[value])], WRONG_ANSWERS)
    return Item(", ".join(row) + ",", f" {NUMBER_WORDS[value]}", spaced(*wrong), 1)


def count_listed(random: Random) -> Item:
    """How many words a list has."""
    count = random.randint(2, 9)
    words = random.sample(THINGS + ANIMALS, count)
    prompt = f"List: {', '.join(words)}.\nQuestion: How many words are in the list?\nAnswer:"
    return _digit(random, prompt, count, 1 if count <= 3 else 2 if count <= 5 else 3)


def count_seen(random: Random) -> Item:
    """Two dogs and three cats are five animals."""
    one, other = random.sample(ANIMALS, 2)
    x, y = random.randint(2, 5), random.randint(2, 4)
    words = f"There are {NUMBER_WORDS[x]} {one}s and {NUMBER_WORDS[y]} {other}s in the {random.choice(PLACES)}."
    wrong = random.sample([word for word in NUMBER_WORDS[2:11] if word != NUMBER_WORDS[x + y]], WRONG_ANSWERS)
    return Item(
        f"{words} Together there are", f" {NUMBER_WORDS[x + y]} animals.", spaced(*(f"{w} animals." for w in wrong)), 2
    )


def count_colour(random: Random) -> Item:
    """How many of the things are red."""
    thing, colour = random.choice(THINGS), random.choice(COLOURS)
    count, others = random.randint(1, 5), random.randint(1, 4)
    row = [colour] * count + [random.choice([c for c in COLOURS if c != colour]) for _ in range(others)]
    random.shuffle(row)
    text = ", ".join(f"{shade} {thing}" for shade in row)
    return _digit(random, f"List: {text}.\nQuestion: How many {thing}s are {colour}?\nAnswer:", count, 3)


def count_letters(random: Random) -> Item:
    """How many letters a word has."""
    word = random.choice([word for word in THINGS + ANIMALS + COLOURS if len(word) <= 9])
    shown = random.sample([w for w in PLACES + THINGS if w != word and len(w) <= 9], 2)
    prompt = "".join(f"Question: How many letters are in the word {w}?\nAnswer: {len(w)}\n" for w in shown)
    return _digit(random, f"{prompt}Question: How many letters are in the word {word}?\nAnswer:", len(word), 3)


MAKERS: tuple[Maker, ...] = (
    count_on, count_in_steps, count_listed, count_in_words, count_seen, count_colour, count_letters, count_in_steps,
    count_listed,
)  # fmt: skip
