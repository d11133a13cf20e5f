# SPDX-License-Identifier: Apache-2.0
"""In-context learning: a mapping that exists only in the examples of the prompt."""

from __future__ import annotations

import random
from collections.abc import Callable

from small_world.episode import Item
from small_world.world import ANIMALS, COLOURS, FOODS, PLACES, TOOLS, words

LABELS = words("dax wug fep blick tove zorp lum kip mab nif pell rask")
CATEGORIES = (ANIMALS, COLOURS, FOODS, PLACES, TOOLS)


def category(world: object, source: random.Random) -> Item:
    """Draw two or three categories with nonsense labels; the last word is new, its category is not."""
    count = source.choice((2, 3))
    labels = source.sample(LABELS, count)
    members = [source.sample(group, 4) for group in source.sample(CATEGORIES, count)]
    pairs = [(group.pop(), label) for group, label in zip(members, labels, strict=True) for _ in range(3)]
    source.shuffle(pairs)
    which = source.randrange(count)
    choices = tuple(f" {label}" for label in labels)
    return _item(pairs, members[which].pop(), labels[which], choices)


def lookup(world: object, source: random.Random) -> Item:
    """Draw arbitrary pairs, one of which is asked for again."""
    keys = source.sample(ANIMALS + FOODS + TOOLS, 6)
    labels = source.sample(LABELS, 6)
    which = source.randrange(6)
    choices = tuple(f" {label}" for label in (labels[which], *source.sample(labels[:which] + labels[which + 1 :], 3)))
    return _item(list(zip(keys, labels, strict=True)), keys[which], labels[which], choices)


def arrangement(world: object, source: random.Random) -> Item:
    """Draw a rule that swaps, keeps or drops words of a pair."""
    rule = source.choice(("{1} {0}", "{0} {1}", "{0}", "{1}", "{0} {0}", "{1} {1}"))
    drawn = source.sample(ANIMALS + COLOURS + FOODS + TOOLS, 8)
    pairs = [(f"{drawn[index]} {drawn[index + 1]}", rule.format(drawn[index], drawn[index + 1])) for index in (0, 2, 4)]
    return _item(pairs, f"{drawn[6]} {drawn[7]}", rule.format(drawn[6], drawn[7]), ())


def step(world: object, source: random.Random) -> Item:
    """Draw a number that is added each time."""
    change = source.randint(1, 5)
    numbers = source.sample(range(1, 30), 5)
    pairs = [(str(number), str(number + change)) for number in numbers]
    query, result = pairs.pop()
    return _item(pairs, query, result, ())


def _item(pairs: list[tuple[str, str]], query: str, answer: str, choices: tuple[str, ...]) -> Item:
    examples = "".join(f"{left} -> {right}\n" for left, right in pairs)
    prompt = f"{examples}{query} ->"
    return Item(
        "in_context", f"in_context|{prompt}", f" {answer}" if choices else answer, prompt=prompt, choices=choices
    )


FAMILIES: tuple[Callable[[object, random.Random], Item], ...] = (category, lookup, arrangement, step)


def draw(world: object, source: random.Random) -> Item:
    """Draw an item of any family."""
    return source.choice(FAMILIES)(world, source)
