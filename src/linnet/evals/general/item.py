# SPDX-License-Identifier: Apache-2.0
"""One general question before it gets a place in the set, and how wrong answers are drawn for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Item:
    """A prompt, the one right continuation and the wrong ones. Level 1 is easy, 3 is for large models.

    An empty prompt compares whole texts (minimal pairs). ``chat``: the prompt is what a user says in a conversation.
    """

    prompt: str
    right: str
    wrong: tuple[str, ...]
    level: int
    chat: bool = False


Maker = Callable[[Random], Item]
"""Draws one item; the same item may come again."""


def pick(random: Random, right: str, pool: Sequence[str], count: int) -> tuple[str, ...]:
    """``count`` different wrong answers out of ``pool``, drawn from the twice as many that are nearest in length.

    Summed log-likelihoods favour short answers; among answers of like length nothing is left to favour.
    """
    others = sorted({word for word in pool if word != right})
    random.shuffle(others)
    others.sort(key=lambda word: abs(len(word) - len(right)))
    return tuple(random.sample(others[: 2 * count], count))


def near(random: Random, right: int, steps: Sequence[int], count: int, smallest: int = 0) -> tuple[int, ...]:
    """``count`` different numbers at distances ``steps`` from ``right``, both sides alike, with as many digits as it
    where there are enough of them."""
    around = [right + sign * step for step in steps for sign in (-1, 1) if right + sign * step >= smallest]
    random.shuffle(around)
    around.sort(key=lambda number: len(str(number)) != len(str(right)))
    return tuple(dict.fromkeys(around))[:count]


def spaced(*words: str) -> tuple[str, ...]:
    """The words as continuations of a prompt that ends without a space."""
    return tuple(" " + word for word in words)


def words(text: str) -> tuple[str, ...]:
    """The words of a list that is written with spaces."""
    return tuple(text.split())


def table(text: str) -> tuple[tuple[str, ...], ...]:
    """Rows of ``a = b = c``, one a line or separated by semicolons."""
    rows = [row.strip() for line in text.splitlines() for row in line.split(";")]
    return tuple(tuple(cell.strip() for cell in row.split("=")) for row in rows if row)


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' or noun == 'hour' else 'a'} {noun}"
