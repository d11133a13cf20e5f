# SPDX-License-Identifier: Apache-2.0
"""Repetition: random words or pairs, written again. No ability of its own; it teaches to look back.

What the second half says can be found in the first, so this is the densest lesson in copying from the context,
which recall, dialogue, reasoning and in-context learning all stand on.
"""

from __future__ import annotations

import random

from small_world.episode import CONTEXT_WEIGHT, Episode
from small_world.world import ANIMALS, COLOURS, FOODS, GOODS, PLACES, TOOLS, VISITORS

WORDS = ANIMALS + COLOURS + FOODS + GOODS + PLACES + TOOLS + VISITORS
MOST_WORDS, MOST_PAIRS = 40, 24
PAIR_FORMS = ("{key} -> {value}\n", "{key} has {value}\n", "The {key} is {value}\n", "{key} went to the {value}\n")


def episode(source: random.Random) -> Episode:
    """Draw words that come again in the same order, or pairs that come again in another."""
    return pairs(source) if source.random() < 0.8 else row(source)


def row(source: random.Random) -> Episode:
    """Draw words, and the same words after them."""
    words = " ".join(source.choices(WORDS, k=source.randint(6, MOST_WORDS)))
    return Episode(((f"Words: {words}\nAgain:", CONTEXT_WEIGHT), (f" {words}\n", 1.0)))


def pairs(source: random.Random) -> Episode:
    """Draw pairs, and the same pairs shuffled: each second word must be found by its first."""
    count = source.randint(3, MOST_PAIRS)
    form = source.choice(PAIR_FORMS)
    before, after = form.split("{value}")
    drawn = list(zip(source.sample(WORDS, count), source.choices(WORDS, k=count), strict=True))
    document = "".join(form.format(key=key, value=value) for key, value in drawn)
    segments = [(document, CONTEXT_WEIGHT)]
    for key, value in source.sample(drawn, count):
        segments += [(before.format(key=key).rstrip(), CONTEXT_WEIGHT), (f" {value}{after}", 1.0)]
    return Episode(tuple(segments))
