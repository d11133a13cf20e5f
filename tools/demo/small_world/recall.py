# SPDX-License-Identifier: Apache-2.0
"""Long-context recall: a document of many small records, then a question about one of them."""

from __future__ import annotations

import random

from small_world.episode import CONTEXT_WEIGHT, Episode, Item, answer_segment, is_held_out
from small_world.world import COLOURS, DAYS, FOODS, GOODS, TOOLS, VISITORS, World

QUESTIONS_TRAINED = 6
FILLERS = (
    "The sun was warm and the market was full.", "A bell rang from the church.", "Some children ran past the mill.",
    "It rained a little, but nobody went home.", "The baker sold the last bread before noon.",
    "Two sailors told a long story about the sea.", "A dog slept under the table.", "The wind moved the flags.",
    "Someone played the drum near the inn.", "The clerk wrote everything into the book.",
)


def draw_document(world: World, source: random.Random, asked: int) -> tuple[str, list[Item]]:
    """Draw a document and `asked` items about it, each with the whole document as its prompt."""
    names = source.sample(VISITORS, source.randint(22, 26))
    wares, kinds = source.choice((
        (TOOLS + GOODS, ("{name} bought the {ware} for {number} coins.", "What did {name} buy?")),
        (FOODS, ("{name} brought {ware} on {number} carts.", "What did {name} bring?")),
        (COLOURS, ("{name} slept in the {ware} room for {number} nights.", "Which room had {name}?")),
    ))
    statement, question = kinds
    records = [(name, source.choice(wares), source.randint(2, 9)) for name in names]
    lines = [statement.format(name=name, ware=ware, number=number) for name, ware, number in records]
    for filler in source.sample(FILLERS, 5):
        lines.insert(source.randrange(len(lines)), filler)
    title = f"Report of {source.choice(DAYS)}, number {source.randint(100, 999)}."
    document = f"{title} {' '.join(lines)}\n"
    # The key is the document: its records are drawn anew for each one.
    key = f"recall|{title}|{lines[0]}|{lines[1]}"
    items = [
        Item("recall", key, ware, prompt=f"{document}Question: {question.format(name=name)}\nAnswer:", max_tokens=6)
        for name, ware, _ in source.sample(records, asked)
    ]
    return document, items


def draw(world: World, source: random.Random) -> Item:
    """Draw a document with one question."""
    _, (item,) = draw_document(world, source, 1)
    return item


def episode(world: World, source: random.Random) -> Episode:
    """Draw a training document with several questions in a row: reading is dear, asking is cheap."""
    document, items = draw_document(world, source, QUESTIONS_TRAINED)
    while is_held_out(items[0].key):
        document, items = draw_document(world, source, QUESTIONS_TRAINED)
    segments = [(document, CONTEXT_WEIGHT)]
    for item in items:
        segments += [(item.prompt.removeprefix(document), CONTEXT_WEIGHT), answer_segment(item)]
    return Episode(tuple(segments))
