# SPDX-License-Identifier: Apache-2.0
"""Facts that everybody knows, and some that fewer do. The wrong answers are right answers of the same relation, so
that a model which merely likes a word gains nothing by it."""

from collections.abc import Iterator
from random import Random

from linnet.evals.general.facts_table import RELATIONS
from linnet.evals.general.item import Item, Maker, a, pick, spaced

WRONG_ANSWERS = 3


def _relation(template: str, level: int, rows: tuple[tuple[str, ...], ...]) -> Maker:
    pool = [row[1] for row in rows]

    def maker(random: Random) -> Item:
        subject, right = random.choice(rows)
        wrong = pick(random, right, pool, min(WRONG_ANSWERS, len(set(pool)) - 1))
        return Item(
            template.format(subject, a=a(subject), A=a(subject).capitalize()), f" {right}", spaced(*wrong), level
        )

    return maker


def _makers() -> Iterator[Maker]:
    for template, level, rows in RELATIONS:
        yield _relation(template, level, rows)


MAKERS: tuple[Maker, ...] = tuple(_makers())
