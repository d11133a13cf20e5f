# SPDX-License-Identifier: Apache-2.0
"""Language: which continuation of a sentence is good English (agreement, pronoun, tense, word order, sense)."""

from __future__ import annotations

import random
from collections.abc import Callable

from small_world.episode import Item
from small_world.world import COLOURS, PLACES, WOMEN, World, words

NOUNS = (
    ("boy", "boys"),
    ("girl", "girls"),
    ("goat", "goats"),
    ("dog", "dogs"),
    ("cow", "cows"),
    ("horse", "horses"),
    ("farmer", "farmers"),
    ("sailor", "sailors"),
    ("teacher", "teachers"),
    ("cat", "cats"),
    ("duck", "ducks"),
    ("baker", "bakers"),
    ("child", "children"),
    ("friend", "friends"),
)
ATTRACTORS = (
    ("house", "houses"),
    ("tree", "trees"),
    ("table", "tables"),
    ("cart", "carts"),
    ("bridge", "bridges"),
    ("barn", "barns"),
    ("wall", "walls"),
    ("boat", "boats"),
    ("door", "doors"),
    ("field", "fields"),
)
ADJECTIVES = words("old young tired happy small quiet big hungry")
ACTIONS = (
    ("sleep", "sleeping"),
    ("wait", "waiting"),
    ("play", "playing"),
    ("rest", "resting"),
    ("eat", "eating"),
    ("stand", "standing"),
    ("look", "looking"),
)
LOST = words("hat coat key lamp basket book rope candle")
VERBS = (
    ("walk", "walked"),
    ("look", "looked"),
    ("run", "ran"),
    ("go", "went"),
    ("come", "came"),
    ("return", "returned"),
)
TRADES = (
    ("baker", "bakes", "bread"),
    ("smith", "makes", "nails"),
    ("fisher", "sells", "fish"),
    ("tailor", "sews", "coats"),
    ("potter", "makes", "bowls"),
    ("carpenter", "builds", "tables"),
    ("farmer", "grows", "apples"),
    ("weaver", "weaves", "blankets"),
    ("miller", "grinds", "corn"),
    ("teacher", "teaches", "children"),
    ("painter", "paints", "pictures"),
    ("cook", "cooks", "soup"),
)
TIMES = ("Every morning", "In the evening", "On Sunday", "All day long", "In summer", "In winter", "Today", "As always")


def agreement(world: World, source: random.Random) -> Item:
    """Draw a subject whose verb must not agree with the noun in between."""
    number = source.randrange(2)
    subject = source.choice(NOUNS)[number]
    between = source.choice(ATTRACTORS)[source.randrange(2)]
    where = source.choice(("near", "behind", "beside", "in front of"))
    action, acting = source.choice(ACTIONS)
    prompt = f"The {source.choice(ADJECTIVES)} {subject} {where} the {between}"
    choices = (f" is {acting}.", f" are {acting}.", f" is {action}.", f" am {acting}.")
    return _item(prompt, choices, number)


def pronoun(world: World, source: random.Random) -> Item:
    """Draw somebody who lost a thing; the pronoun must fit the person."""
    person = world.person(source)
    thing, place = source.choice(LOST), source.choice(PLACES)
    verb = source.choice(("could not find", "had lost", "was looking for", "was glad about", "had forgotten"))
    prompt = f"{person.name} {verb} the {source.choice(COLOURS)} {thing}, so"
    rest = f"went to the {place}."
    choices = (f" she {rest}", f" he {rest}", f" her {rest}", f" him {rest}")
    return _item(prompt, choices, 0 if person.name in WOMEN else 1)


def tense(world: World, source: random.Random) -> Item:
    """Draw a time of day that asks for past or future tense."""
    verb, past = source.choice(VERBS)
    place = source.choice(PLACES)
    time, right = source.choice((("Yesterday", 0), ("Last week", 0), ("Tomorrow", 1), ("Next week", 1)))
    prompt = f"{time} the {source.choice(ADJECTIVES)} {source.choice(NOUNS)[0]}"
    choices = (f" {past} to the {place}.", f" will {verb} to the {place}.", f" {verb} to the {place}.")
    return _item(prompt, choices, right)


def order(world: World, source: random.Random) -> Item:
    """Draw a phrase whose words stand in their right order only once."""
    adjective, place = source.choice(ADJECTIVES), source.choice(PLACES)
    prompt = f"{world.person(source).name} and {world.person(source).name} went"
    choices = (
        f" to the {adjective} {place}.",
        f" the to {adjective} {place}.",
        f" to {adjective} the {place}.",
        f" the {adjective} {place} to.",
    )
    return _item(prompt, choices, 0)


def sense(world: World, source: random.Random) -> Item:
    """Draw a trade; its ware must be its own."""
    trades = source.sample(TRADES, 4)
    job, verb, _ = trades[0]
    choices = tuple(f" {ware}." for _, _, ware in trades)
    prompt = f"{source.choice(TIMES)} the {source.choice(ADJECTIVES)} {job} {verb}"
    return _item(prompt, choices, 0)


def _item(prompt: str, choices: tuple[str, ...], right: int) -> Item:
    return Item("language", f"language|{prompt}", choices[right], prompt=prompt, choices=choices)


FAMILIES: tuple[Callable[[World, random.Random], Item], ...] = (agreement, pronoun, tense, order, sense)


def draw(world: World, source: random.Random) -> Item:
    """Draw an item of any family."""
    return source.choice(FAMILIES)(world, source)
