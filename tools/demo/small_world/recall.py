# SPDX-License-Identifier: Apache-2.0
"""Long-context recall: a document of many small records, then a question about one of them."""

from __future__ import annotations

import random

from small_world.episode import Item
from small_world.world import COLOURS, DAYS, FOODS, GOODS, TOOLS, VISITORS, World

QUESTIONS_PER_DOCUMENT = 8
# Fewest records of a long document, what is recorded, how, and how it is asked for.
KINDS = (
    (26, TOOLS + GOODS, "{name} bought the {ware} for {number} coins.", "What did {name} buy?"),
    (27, FOODS, "{name} brought {ware} on {number} carts.", "What did {name} bring?"),
    (22, COLOURS, "{name} slept in the {ware} room for {number} nights.", "Which room had {name}?"),
)
FILLERS = (
    "The sun was warm and the market was full.",
    "A bell rang from the church.",
    "Some children ran past the mill.",
    "It rained a little, but nobody went home.",
    "The baker sold the last bread before noon.",
    "Two sailors told a long story about the sea.",
    "A dog slept under the table.",
    "The wind moved the flags.",
    "Someone played the drum near the inn.",
    "The clerk wrote everything into the book.",
)


def draw_group(world: World, source: random.Random) -> tuple[Item, ...]:
    """Draw a long document and several items about it: reading is dear, asking is cheap."""
    fewest, *kind = source.choice(KINDS)
    return _draw(source, *kind, source.randint(fewest, fewest + 4), 5)


def draw_small_group(world: World, source: random.Random) -> tuple[Item, ...]:
    """Draw a short document, from which the look for a record is learnt first."""
    _, *kind = source.choice(KINDS)
    return _draw(source, *kind, source.randint(3, 10), source.randint(0, 2))


def _draw(
    source: random.Random, wares: tuple[str, ...], statement: str, question: str, records: int, fillers: int
) -> tuple[Item, ...]:
    rows = [(name, source.choice(wares), source.randint(2, 9)) for name in source.sample(VISITORS, records)]
    lines = [statement.format(name=name, ware=ware, number=number) for name, ware, number in rows]
    for filler in source.sample(FILLERS, fillers):
        lines.insert(source.randrange(len(lines)), filler)
    title = f"Report of {source.choice(DAYS)}, number {source.randint(100, 999)}."
    document = f"{title} {' '.join(lines)}\n"
    # The key is the document: its records are drawn anew for each one.
    key = f"recall|{title}|{lines[0]}|{lines[1]}"
    return tuple(
        Item("recall", key, ware, prompt=f"{document}Question: {question.format(name=name)}\nAnswer:", max_tokens=6)
        for name, ware, _ in source.sample(rows, min(records, QUESTIONS_PER_DOCUMENT))
    )
