# SPDX-License-Identifier: Apache-2.0
"""Arithmetic in graded steps: one digit, tables and two digits, three digits, two operations, small word problems."""

from random import Random

from linnet.evals.general.item import Item, Maker, near, spaced
from linnet.evals.general.words import NAMES, THINGS

CLOSE = (1, 2, 3, 10)
FAR = (3, 4, 5, 6, 10)
WRONG_ANSWERS = 3
FORMULAS = "0 + 4 = 4\n12 - 0 = 12\n1 * 15 = 15\n"
QUESTIONS = "Question: What is 0 plus 4?\nAnswer: 4\nQuestion: What is 12 minus 0?\nAnswer: 12\n"
"""Shown first, so that a base model sees the form. None of these is asked."""


def _sum(random: Random, text: str, value: int, level: int, steps: tuple[int, ...] = CLOSE) -> Item:
    """As a formula or as a question; the wrong answers are near."""
    wrong = near(random, value, steps, WRONG_ANSWERS)
    words = text.replace("+", "plus").replace(" - ", " minus ").replace("*", "times").replace("/", "divided by")
    formula = random.random() < 0.5 or "(" in text
    prompt = f"{FORMULAS}{text} =" if formula else f"{QUESTIONS}Question: What is {words}?\nAnswer:"
    return Item(prompt, f" {value}", spaced(*map(str, wrong)), level)


def add_digits(random: Random) -> Item:
    """3 + 4"""
    x, y = random.randint(1, 9), random.randint(1, 9)
    return _sum(random, f"{x} + {y}", x + y, 1, FAR)


def subtract_digits(random: Random) -> Item:
    """12 - 5: never below zero."""
    y = random.randint(1, 9)
    x = y + random.randint(1, 9)
    return _sum(random, f"{x} - {y}", x - y, 1, FAR)


def add_tens(random: Random) -> Item:
    """20 + 30"""
    x, y = random.randint(1, 9), random.randint(1, 9)
    return _sum(random, f"{10 * x} + {10 * y}", 10 * (x + y), 1, (10, 20, 30, 5))


def times_table(random: Random) -> Item:
    """6 * 7"""
    x, y = random.randint(2, 10), random.randint(2, 10)
    return _sum(random, f"{x} * {y}", x * y, 1 if min(x, y) <= 3 or 10 in (x, y) else 2, (x, y, 1, 2, 10))


def add_two_digits(random: Random) -> Item:
    """34 + 57"""
    x, y = random.randint(11, 89), random.randint(11, 89)
    return _sum(random, f"{x} + {y}", x + y, 2)


def subtract_two_digits(random: Random) -> Item:
    """81 - 36"""
    y = random.randint(11, 60)
    x = y + random.randint(11, 39)
    return _sum(random, f"{x} - {y}", x - y, 2)


def divide(random: Random) -> Item:
    """42 / 6"""
    x, y = random.randint(2, 10), random.randint(2, 10)
    return _sum(random, f"{x * y} / {y}", x, 2)


def add_three_digits(random: Random) -> Item:
    """348 + 271"""
    x, y = random.randint(111, 889), random.randint(111, 889)
    return _sum(random, f"{x} + {y}", x + y, 3, (1, 10, 100, 2))


def times_two_digits(random: Random) -> Item:
    """14 * 6"""
    x, y = random.randint(11, 39), random.randint(3, 9)
    return _sum(random, f"{x} * {y}", x * y, 3, (y, 10, 2, 1))


def two_operations(random: Random) -> Item:
    """(3 + 4) * 2"""
    x, y, z = random.randint(2, 9), random.randint(2, 9), random.randint(2, 9)
    if random.random() < 0.5:
        return _sum(random, f"({x} + {y}) * {z}", (x + y) * z, 3, (z, 1, 2, 10))
    return _sum(random, f"({x} * {y}) + {z}", x * y + z, 3, (z, 1, 2, 10))


def story(random: Random) -> Item:
    """Anna has 3 coins and gets 4 more."""
    name, thing = random.choice(NAMES), random.choice(THINGS)
    level = random.choice((1, 2))
    x, y = (
        (random.randint(2, 9), random.randint(2, 9)) if level == 1 else (random.randint(11, 49), random.randint(11, 40))
    )
    if random.random() < 0.5:
        text, value = f"{name} has {x} {thing}s. {name} gets {y} more.", x + y
    else:
        text, value = f"{name} has {x + y} {thing}s. {name} gives away {y}.", x
    wrong = near(random, value, CLOSE, WRONG_ANSWERS)
    return Item(f"{text} Now {name} has", f" {value} {thing}s.", tuple(f" {w} {thing}s." for w in wrong), level + 1)


MAKERS: tuple[Maker, ...] = (
    add_digits, add_two_digits, add_three_digits, subtract_digits, subtract_two_digits, times_table, divide,
    add_tens, times_two_digits, two_operations, story, add_digits, times_table, subtract_digits,
)  # fmt: skip
