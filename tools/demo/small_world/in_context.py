# SPDX-License-Identifier: Apache-2.0
"""In-context learning: a mapping that exists only in the examples of the prompt."""

from __future__ import annotations

import random
from collections.abc import Callable

from small_world.episode import Item
from small_world.world import ANIMALS, COLOURS, FOODS, PLACES, TOOLS, words

LABELS = words("dax wug fep blick tove zorp lum kip mab nif pell rask")
CATEGORIES = (ANIMALS, COLOURS, FOODS, PLACES, TOOLS)


def category(world: object, source: random.Random) -> tuple[Item, ...]:
    """Draw two or three categories with nonsense labels; the words asked are new, their categories are not."""
    count = source.choice((2, 3))
    labels = source.sample(LABELS, count)
    members = [source.sample(group, 5) for group in source.sample(CATEGORIES, count)]
    pairs = [(group.pop(), label) for group, label in zip(members, labels, strict=True) for _ in range(3)]
    source.shuffle(pairs)
    queries = [(word, label) for group, label in zip(members, labels, strict=True) for word in group]
    return _items(pairs, queries, tuple(f" {label}" for label in labels))


def lookup(world: object, source: random.Random) -> tuple[Item, ...]:
    """Draw arbitrary pairs, all of which are asked for again."""
    keys = source.sample(ANIMALS + FOODS + TOOLS, 6)
    pairs = list(zip(keys, source.sample(LABELS, 6), strict=True))
    return _items(pairs, pairs, tuple(f" {label}" for _, label in pairs))


def arrangement(world: object, source: random.Random) -> tuple[Item, ...]:
    """Draw a rule that swaps, keeps or drops words of a pair."""
    rule = source.choice(("{1} {0}", "{0} {1}", "{0}", "{1}", "{0} {0}", "{1} {1}"))
    drawn = source.sample(ANIMALS + COLOURS + FOODS + TOOLS, 12)
    drawn_pairs = zip(drawn[::2], drawn[1::2], strict=True)
    pairs = [(f"{first} {second}", rule.format(first, second)) for first, second in drawn_pairs]
    return _items(pairs[:3], pairs[3:], ())


def step(world: object, source: random.Random) -> tuple[Item, ...]:
    """Draw a number that is added each time."""
    change = source.randint(1, 5)
    pairs = [(str(number), str(number + change)) for number in source.sample(range(1, 30), 7)]
    return _items(pairs[:4], pairs[4:], ())


def _items(pairs: list[tuple[str, str]], queries: list[tuple[str, str]], choices: tuple[str, ...]) -> tuple[Item, ...]:
    examples = "".join(f"{left} -> {right}\n" for left, right in pairs)
    prompts = [f"{examples}{query} ->" for query, _ in queries]
    return tuple(
        Item("in_context", f"in_context|{prompt}", f" {answer}" if choices else answer, prompt=prompt, choices=choices)
        for prompt, (_, answer) in zip(prompts, queries, strict=True)
    )


FAMILIES: tuple[Callable[[object, random.Random], tuple[Item, ...]], ...] = (category, lookup, arrangement, step)


def draw_group(world: object, source: random.Random) -> tuple[Item, ...]:
    """Draw items of any family; they share their examples and come in any order."""
    items = source.choice(FAMILIES)(world, source)
    return tuple(source.sample(items, len(items)))
