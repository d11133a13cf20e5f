# SPDX-License-Identifier: Apache-2.0
"""Repetition: random words or pairs, written again. No ability of its own; it teaches to look back.

What the second half says can be found in the first, so this is the densest lesson in copying from the context,
which recall, dialogue, reasoning and in-context learning all stand on.
"""

from __future__ import annotations

import random

from small_world.episode import CONTEXT_WEIGHT, Episode
from small_world.in_context import LABELS
from small_world.world import ANIMALS, COLOURS, FOODS, GOODS, PLACES, TOOLS, VISITORS

WORDS = ANIMALS + COLOURS + FOODS + GOODS + PLACES + TOOLS + VISITORS
MOST_WORDS, MOST_PAIRS = 24, 12
# From side by side to some words apart: the further the second word, the later it is learnt to be found. The longer
# forms are those in which reasoning and recall state their facts.
NEAR_FORMS = ("{key} {value}\n", "{key} -> {value}\n", "{key} has {value}\n", "{key} is the {value}\n")
FAR_FORMS = (
    "{key} lives with {value}\n",
    "{key} keeps a {value}\n",
    "The {key} is in the {value}\n",
    "{key} bought the {value}\n",
    "{key} slept in the {value}\n",
    "{key} brought {value}\n",
)


def episode(source: random.Random) -> Episode:
    """Draw words that come again in the same order, or pairs that come again in another."""
    return pairs(source) if source.random() < 0.8 else row(source)


def row(source: random.Random) -> Episode:
    """Draw words, and the same words twice after them."""
    words = " ".join(source.choices(WORDS, k=source.randint(4, MOST_WORDS)))
    again = (("Again:", CONTEXT_WEIGHT), (f" {words}\n", 1.0))
    return Episode(((f"Words: {words}\n", CONTEXT_WEIGHT), *again, *again))


def pairs(source: random.Random) -> Episode:
    """Draw pairs, and the same pairs shuffled: each second word must be found by its first."""
    # Mostly few pairs: a guess among few is close to knowing, which is where learning to look begins.
    count = min(source.randint(2, MOST_PAIRS) for _ in range(3))
    form = source.choice(NEAR_FORMS if source.random() < 0.4 else FAR_FORMS)
    before, after = form.split("{value}")
    drawn = list(zip(source.sample(WORDS, count), source.choices(WORDS + LABELS, k=count), strict=True))
    document = "".join(form.format(key=key, value=value) for key, value in drawn)
    segments = [(document, CONTEXT_WEIGHT)]
    for key, value in source.sample(drawn, count):
        segments += [(before.format(key=key).rstrip(), CONTEXT_WEIGHT), (f" {value}{after}", 1.0)]
    return Episode(tuple(segments))
