# SPDX-License-Identifier: Apache-2.0
"""Reasoning in two steps: both facts stand in the prompt, or both are facts of the town; the answer names the step."""

from __future__ import annotations

import random
from collections.abc import Callable

from small_world.episode import Item
from small_world.world import ANIMALS, COLOURS, PLACES, TOOLS, VISITORS, World


def household(world: World, source: random.Random) -> tuple[Item, ...]:
    """Draw who lives with whom and who keeps what; asked are the animals behind two facts."""
    names = source.sample(VISITORS, 6)
    animals = source.sample(ANIMALS, 3)
    guests, hosts = names[:3], names[3:]
    facts = [f"{guest} lives with {host}." for guest, host in zip(guests, hosts, strict=True)]
    facts += [f"{host} keeps a {animal}." for host, animal in zip(hosts, animals, strict=True)]
    source.shuffle(facts)
    return tuple(
        _item(facts, f"Which animal is in the house of {guest}?", f"{host}, so {animal}")
        for guest, host, animal in zip(guests, hosts, animals, strict=True)
    )


def container(world: World, source: random.Random) -> tuple[Item, ...]:
    """Draw things in boxes and boxes in places; asked are the places of the things."""
    things = source.sample(TOOLS, 3)
    colours, places = source.sample(COLOURS, 3), source.sample(PLACES, 3)
    facts = [f"The {thing} is in the {colour} box." for thing, colour in zip(things, colours, strict=True)]
    facts += [f"The {colour} box is in the {place}." for colour, place in zip(colours, places, strict=True)]
    source.shuffle(facts)
    return tuple(
        _item(facts, f"Where is the {thing}?", f"{colour}, so {place}")
        for thing, colour, place in zip(things, colours, places, strict=True)
    )


def height(world: World, source: random.Random) -> tuple[Item, ...]:
    """Draw a chain of three people by height; asked are both ends of it."""
    names = source.sample(VISITORS, 3)
    facts = [f"{names[0]} is taller than {names[1]}.", f"{names[1]} is taller than {names[2]}."]
    source.shuffle(facts)
    choices = tuple(f" {name}" for name in source.sample(names, 3))
    return tuple(
        _item(facts, f"Who is the {end}?", f" {right}", choices)
        for end, right in (("tallest", names[0]), ("smallest", names[2]))
    )


def friendship(world: World, source: random.Random) -> tuple[Item, ...]:
    """Draw a fact about somebody's best friend, from what is known of the town."""
    person = world.person(source)
    friend = world.people[person.friend]
    relation, question = source.choice(
        (
            ("pet", "Which animal does {name}'s best friend keep?"),
            ("job", "What is the job of {name}'s best friend?"),
            ("colour", "Which colour does {name}'s best friend like best?"),
            ("dish", "What does {name}'s best friend like to eat?"),
        )
    )
    prompt = f"Question: {question.format(name=person.name)}\nAnswer:"
    answer = f"{friend.name}, so {getattr(friend, relation)}"
    return (Item("reasoning", f"reasoning|{prompt}", answer, prompt=prompt),)


def _item(facts: list[str], question: str, answer: str, choices: tuple[str, ...] = ()) -> Item:
    prompt = f"Facts: {' '.join(facts)}\nQuestion: {question}\nAnswer:"
    return Item("reasoning", f"reasoning|{prompt}", answer, prompt=prompt, choices=choices)


FAMILIES: tuple[Callable[[World, random.Random], tuple[Item, ...]], ...] = (household, container, height, friendship)


def draw_group(world: World, source: random.Random) -> tuple[Item, ...]:
    """Draw items of any family; they share their facts and come in any order."""
    items = source.choice(FAMILIES)(world, source)
    return tuple(source.sample(items, len(items)))
