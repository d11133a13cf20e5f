# SPDX-License-Identifier: Apache-2.0
"""Arithmetic: sums and differences up to two digits; each pair of operands is trained or asked, never both."""

from __future__ import annotations

import random

from small_world.episode import Item

LARGEST = 60
TEMPLATES = ("Compute {first} {sign} {second} =", "Question: What is {first} {word} {second}?\nAnswer:")


def draw(world: object, source: random.Random) -> Item:
    """Draw one sum or difference."""
    first, second = source.randint(1, LARGEST), source.randint(1, LARGEST)
    if source.random() < 0.5:
        sign, word, result = "+", "plus", first + second
        key = f"{min(first, second)}+{max(first, second)}"
    else:
        first, second = max(first, second), min(first, second)
        sign, word, result = "-", "minus", first - second
        key = f"{first}-{second}"
    prompt = source.choice(TEMPLATES).format(first=first, second=second, sign=sign, word=word)
    return Item("arithmetic", f"arithmetic|{key}", str(result), prompt=prompt, max_tokens=6)
