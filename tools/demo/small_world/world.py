# SPDX-License-Identifier: Apache-2.0
"""Who lives in the town, and what is true there.

The world is a frozen value made from a seed. Every text about the town (stories, questions, chats, documents) only
states what this value says, so a question about it has one right answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


WOMEN = words(
    "Ada Bella Clara Dora Edith Flora Greta Hanna Ida Julia Karin Laura Maria Nora Olga Paula Rosa Sara Tilda Ursula "
    "Vera Wilma Yvonne Zoe Agnes Berta Cora Della Emma Frida"
)
MEN = words(
    "Adam Boris Carl David Egon Felix Georg Hugo Ivan Jonas Karl Leo Martin Noel Oscar Peter Quentin Robert Simon "
    "Thomas Ulrich Victor Walter Xaver Yuri Zeno Albert Bruno Conrad Daniel"
)
VISITORS = words(
    "Ash Bram Cleo Dov Elm Finn Gus Hal Iris Jem Kit Lew Max Ned Ora Pim Quin Rex Sten Tess Una Viv Wren Yan Zed Abel "
    "Bo Cass Dale Eve Fox Gwen"
)

STREETS = tuple(
    f"{first} {second}"
    for first, second in (
        ("Mill", "Lane"),
        ("Bell", "Street"),
        ("River", "Road"),
        ("Market", "Square"),
        ("Hill", "Lane"),
        ("Church", "Street"),
        ("Forest", "Road"),
        ("Bridge", "Street"),
        ("Garden", "Lane"),
        ("Castle", "Road"),
    )
)
JOBS = words(
    "baker miller smith tailor teacher doctor farmer fisher potter weaver carpenter painter gardener cook hunter sailor"
)
ANIMALS = words("goat hen cow dog cat horse sheep pig duck donkey rabbit goose")
COLOURS = words("red blue green yellow white black brown grey")
FOODS = words("bread cheese soup fish honey apples rice cake beans pears nuts butter")
TOOLS = words("hammer saw rope spade knife needle bucket ladder brush lamp broom basket")
PLACES = words("market mill church school barn library garden bridge harbour inn castle bakery")
GOODS = words("hat coat clock mirror kettle candle blanket chair table drum flute carpet")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

RELATIONS = ("street", "job", "pet", "colour", "dish", "friend")
VALUES = {"street": STREETS, "job": JOBS, "pet": ANIMALS, "colour": COLOURS, "dish": FOODS}


@dataclass(frozen=True)
class Person:
    """One townsperson; the fields named in `RELATIONS` are the facts a question may ask for."""

    name: str
    woman: bool
    street: str
    number: int
    job: str
    pet: str
    colour: str
    dish: str
    friend: str

    @property
    def they(self) -> str:
        """Return the subject pronoun."""
        return "she" if self.woman else "he"

    @property
    def their(self) -> str:
        """Return the possessive pronoun."""
        return "her" if self.woman else "his"


@dataclass(frozen=True)
class World:
    """The town: its people by name, and the price in coins of everything its shops sell."""

    people: dict[str, Person]
    prices: dict[str, int]

    def person(self, source: random.Random) -> Person:
        """Draw one townsperson."""
        return self.people[source.choice(WOMEN + MEN)]


def make_world(seed: int) -> World:
    """Make the town of `seed`; the same seed makes the same town."""
    source = random.Random(f"world-{seed}")
    names = WOMEN + MEN
    # A random cycle of friendships: everybody has exactly one best friend, and nobody is their own.
    circle = source.sample(names, len(names))
    friends = {name: circle[(index + 1) % len(circle)] for index, name in enumerate(circle)}
    people = {
        name: Person(
            name=name,
            woman=name in WOMEN,
            street=source.choice(STREETS),
            number=source.randint(1, 40),
            job=source.choice(JOBS),
            pet=source.choice(ANIMALS),
            colour=source.choice(COLOURS),
            dish=source.choice(FOODS),
            friend=friends[name],
        )
        for name in names
    }
    prices = {thing: source.randint(10, 60) for thing in GOODS + TOOLS}
    return World(people, prices)


def with_article(noun: str) -> str:
    """Return the noun behind its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
