# SPDX-License-Identifier: Apache-2.0
"""Comparison: numbers, sizes, weights and speeds everybody knows, ages and heights that were told."""

from random import Random

from linnet.evals.general.item import Item, Maker, a, spaced, words
from linnet.evals.general.words import NAMES

SIZES = words("ant bee mouse cat sheep cow elephant whale")
HEAVY = words("feather coin apple chair piano car ship")
FAST = words("snail turtle human horse train rocket")
FAR = words("hand room street city country continent planet galaxy")
LONG = words("second minute hour day week month year century")
SCALES = (
    (SIZES, "bigger", "smaller"),
    (HEAVY, "heavier", "lighter"),
    (FAST, "faster", "slower"),
    (FAR, "larger", "smaller"),
    (LONG, "longer", "shorter"),
)
SHOWN = (
    "Question: Which is bigger, a lion or a flea?\nAnswer: The lion\n"
    "Question: Which is slower, a worm or a plane?\nAnswer: The worm\n"
)
NUMBERS_SHOWN = (
    "Question: Which number is larger, 10 or 150?\nAnswer: 150\n"
    "Question: Which number is smaller, 10 or 150?\nAnswer: 10\n"
)
"""Shown first, so that a base model sees the form. None of these is asked."""
TOLD = (("older", "younger"), ("taller", "shorter"), ("richer", "poorer"))


def known(random: Random) -> Item:
    """Which is bigger, a mouse or a horse? Neighbours on the scale are harder."""
    scale, more, less = random.choice(SCALES)
    low, high = sorted(random.sample(range(len(scale)), 2))
    up = random.random() < 0.5
    right, wrong = (scale[high], scale[low]) if up else (scale[low], scale[high])
    first, second = (right, wrong) if random.random() < 0.5 else (wrong, right)
    prompt = f"{SHOWN}Question: Which is {more if up else less}, {a(first)} or {a(second)}?\nAnswer: The"
    return Item(prompt, f" {right}", (f" {wrong}",), 1 if high - low >= 4 else 2)


def than(random: Random) -> Item:
    """A horse is bigger than a mouse: the adjective is asked for."""
    scale, more, less = random.choice(SCALES)
    low, high = sorted(random.sample(range(len(scale)), 2))
    up = random.random() < 0.5
    first, second = (scale[high], scale[low]) if up else (scale[low], scale[high])
    right, wrong = (more, less) if up else (less, more)
    start = a(first)[0].upper() + a(first)[1:] + " is"
    return Item(
        "", f"{start} {right} than {a(second)}.", (f"{start} {wrong} than {a(second)}.",), 1 if high - low >= 4 else 2
    )


def larger_number(random: Random) -> Item:
    """Which number is larger? Of equal length and close, harder."""
    level = random.choice((1, 2, 3))
    if level == 1:
        x, y = random.randint(1, 9), random.randint(20, 99)
    elif level == 2:
        x = random.randint(11, 60)
        y = x + random.randint(15, 39)
    else:
        x = random.randint(1000, 9000)
        y = x + random.choice((1, 10, 100)) * random.randint(1, 9)
    up = random.random() < 0.5
    right, wrong = (y, x) if up else (x, y)
    first, second = (right, wrong) if random.random() < 0.5 else (wrong, right)
    prompt = f"{NUMBERS_SHOWN}Question: Which number is {'larger' if up else 'smaller'}, {first} or {second}?\nAnswer:"
    return Item(prompt, f" {right}", (f" {wrong}",), level)


def decimals(random: Random) -> Item:
    """0.9 is larger than 0.45, though 45 is larger than 9."""
    x, y = random.randint(5, 9), random.randint(11, 48)
    up = random.random() < 0.5
    right, wrong = (f"0.{x}", f"0.{y}") if up else (f"0.{y}", f"0.{x}")
    first, second = (right, wrong) if random.random() < 0.5 else (wrong, right)
    prompt = f"{NUMBERS_SHOWN}Question: Which number is {'larger' if up else 'smaller'}, {first} or {second}?\nAnswer:"
    return Item(prompt, f" {right}", (f" {wrong}",), 3)


def ages(random: Random) -> Item:
    """Anna is 12 and Ben is 30: who is older?"""
    one, other = random.sample(NAMES, 2)
    x, y = random.sample(range(3, 90), 2)
    up = random.random() < 0.5
    right, wrong = (one, other) if (x > y) == up else (other, one)
    text = f"{one} is {x} years old. {other} is {y} years old."
    return Item(f"{text}\nQuestion: Who is {'older' if up else 'younger'}?\nAnswer:", f" {right}", (f" {wrong}",), 2)


def chain(random: Random) -> Item:
    """Anna is taller than Ben, Ben is taller than Leo: who is the tallest?"""
    more, less = random.choice(TOLD)
    top, middle, bottom = random.sample(NAMES, 3)
    facts = [f"{top} is {more} than {middle}.", f"{middle} is {more} than {bottom}."]
    if random.random() < 0.5:
        facts.reverse()
    up = random.random() < 0.5
    word = (more if up else less)[:-1] + "st"
    right, other = (top, bottom) if up else (bottom, top)
    return Item(f"{' '.join(facts)}\nQuestion: Who is the {word}?\nAnswer:", f" {right}", spaced(middle, other), 3)


MAKERS: tuple[Maker, ...] = (known, than, larger_number, ages, chain, than, known, decimals)
