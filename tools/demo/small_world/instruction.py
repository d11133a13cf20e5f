# SPDX-License-Identifier: Apache-2.0
"""Instruction following: do exactly what the line says with the words it gives."""

from __future__ import annotations

import random

from small_world.episode import Item
from small_world.world import ANIMALS, COLOURS, FOODS, GOODS, TOOLS

WORDS = ANIMALS + COLOURS + FOODS + GOODS + TOOLS
TIMES = ("twice", "three times", "four times")


def draw(world: object, source: random.Random) -> Item:
    """Draw an instruction and its only right output."""
    words = source.sample(WORDS, 4)
    listed = ", ".join(words)
    new = source.choice(WORDS)
    which = source.randrange(4)
    count = source.randrange(3)
    numbered = ("first", "second", "third", "last")
    text, output = source.choice(
        (
            (f"Write the word {words[0]} {TIMES[count]}.", " ".join([words[0]] * (count + 2))),
            (f"Write these words in reverse order: {listed}.", ", ".join(reversed(words))),
            (f"Write the {numbered[which]} of these words: {listed}.", words[which]),
            (f"Write these words without {words[which]}: {listed}.", ", ".join(w for w in words if w != words[which])),
            (
                f"Write these words, but put {new} for {words[which]}: {listed}.",
                ", ".join(new if word == words[which] else word for word in words),
            ),
            (f"Join these words with and: {listed}.", " and ".join(words)),
            (f"Put the word {words[0]} in brackets.", f"({words[0]})"),
            (f"Write {words[0]} before {words[1]}.", f"{words[0]} {words[1]}"),
            (f"Write {words[0]} after {words[1]}.", f"{words[1]} {words[0]}"),
        )
    )
    return Item("instruction", f"instruction|{text}", output, prompt=f"Instruction: {text}\nOutput:", max_tokens=24)
