# SPDX-License-Identifier: Apache-2.0
"""General questions: a seeded set of two thousand for any model that reads English, easy to hard.

All of them are multiple choice by likelihood, so that base models can answer; each has one right answer by
construction. The same seed and version always give the same set; its digest goes into every Report.
"""

from itertools import cycle
from random import Random

from linnet.evals.general import (
    arithmetic,
    code,
    comparison,
    counting,
    facts,
    formats,
    grammar,
    opposites,
    ordering,
    recall,
    refusal,
    word_forms,
)
from linnet.evals.general.item import Item, Maker
from linnet.evals.questions import Message, Question, QuestionSet

VERSION = 1
"""Rises whenever a question changes: scores compare only within a version."""

KINDS: tuple[tuple[str, tuple[Maker, ...], int], ...] = (
    ("grammar", grammar.MAKERS, 240),
    ("word_forms", word_forms.MAKERS, 160),
    ("facts", facts.MAKERS, 300),
    ("opposites", opposites.MAKERS, 120),
    ("arithmetic", arithmetic.MAKERS, 200),
    ("counting", counting.MAKERS, 160),
    ("comparison", comparison.MAKERS, 160),
    ("ordering", ordering.MAKERS, 160),
    ("recall", recall.MAKERS, 160),
    ("format", formats.MAKERS, 160),
    ("code", code.MAKERS, 160),
    ("refusal", refusal.MAKERS, 120),
)
"""(ability, what draws its items in turns, how many)."""

TRIES = 200
"""Draws of a maker that bring nothing new before it counts as exhausted."""


def general_questions(seed: int = 0) -> QuestionSet:
    """The set of this seed, 2,100 questions. Within an ability kinds and levels alternate, so any first n are fair."""
    questions: list[Question] = []
    for ability, makers, count in KINDS:
        random = Random(f"linnet general {VERSION} {seed} {ability}")
        questions += [
            _question(item, f"{ability}-{number:04d}", ability, random)
            for number, item in enumerate(_items(makers, count, random), start=1)
        ]
    return QuestionSet(f"general-{VERSION}" + (f" seed {seed}" if seed else ""), tuple(questions))


def _items(makers: tuple[Maker, ...], count: int, random: Random) -> list[Item]:
    """``count`` different items, the makers in turns; a maker that has nothing new is left out from then on."""
    seen: set[tuple[str, ...]] = set()
    items: list[Item] = []
    exhausted: set[int] = set()
    for number in cycle(range(len(makers))):
        if len(items) == count:
            return items
        if len(exhausted) == len(makers):
            raise ValueError(f"only {len(items)} of {count} different questions can be drawn")
        for _ in range(TRIES if number not in exhausted else 0):
            item = makers[number](random)
            key = (item.prompt,) if item.prompt and not item.chat else (item.prompt, *sorted((item.right, *item.wrong)))
            if key not in seen:
                seen.add(key)
                items.append(item)
                break
        else:
            exhausted.add(number)
    raise AssertionError("a cycle does not end")


def _question(item: Item, name: str, ability: str, random: Random) -> Question:
    """The right answer gets a random place."""
    choices = [item.right, *item.wrong]
    random.shuffle(choices)
    return Question(
        id=name,
        ability=ability,
        kind="choice",
        answer=choices.index(item.right),
        prompt=None if item.chat else item.prompt,
        messages=(Message("user", item.prompt),) if item.chat else None,
        choices=tuple(choices),
        level=item.level,
    )
