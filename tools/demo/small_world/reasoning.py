# SPDX-License-Identifier: Apache-2.0
"""Reasoning in two steps: both facts stand in the prompt, or both are facts of the town; the answer names the step."""

from __future__ import annotations

import random
from collections.abc import Callable

from small_world.episode import Item
from small_world.world import ANIMALS, COLOURS, PLACES, TOOLS, VISITORS, World


def household(world: World, source: random.Random) -> Item:
    """Draw who lives with whom and who keeps what; asked is the animal behind two facts."""
    names = source.sample(VISITORS, 6)
    animals = source.sample(ANIMALS, 3)
    guests, hosts = names[:3], names[3:]
    facts = [f"{guest} lives with {host}." for guest, host in zip(guests, hosts, strict=True)]
    facts += [f"{host} keeps a {animal}." for host, animal in zip(hosts, animals, strict=True)]
    source.shuffle(facts)
    which = source.randrange(3)
    question = f"Which animal is in the house of {guests[which]}?"
    return _item(facts, question, f"{hosts[which]}, so {animals[which]}")


def container(world: World, source: random.Random) -> Item:
    """Draw things in boxes and boxes in places; asked is the place of a thing."""
    things = source.sample(TOOLS, 3)
    colours, places = source.sample(COLOURS, 3), source.sample(PLACES, 3)
    facts = [f"The {thing} is in the {colour} box." for thing, colour in zip(things, colours, strict=True)]
    facts += [f"The {colour} box is in the {place}." for colour, place in zip(colours, places, strict=True)]
    source.shuffle(facts)
    which = source.randrange(3)
    return _item(facts, f"Where is the {things[which]}?", f"{colours[which]}, so {places[which]}")


def height(world: World, source: random.Random) -> Item:
    """Draw a chain of three people by height; asked is one end of it."""
    names = source.sample(VISITORS, 3)
    facts = [f"{names[0]} is taller than {names[1]}.", f"{names[1]} is taller than {names[2]}."]
    source.shuffle(facts)
    end, right = source.choice((("tallest", names[0]), ("smallest", names[2])))
    choices = tuple(f" {name}" for name in source.sample(names, 3))
    prompt = f"Facts: {' '.join(facts)}\nQuestion: Who is the {end}?\nAnswer:"
    return Item("reasoning", f"reasoning|{prompt}", f" {right}", prompt=prompt, choices=choices)


def friendship(world: World, source: random.Random) -> Item:
    """Draw a fact about somebody's best friend, from what is known of the town."""
    person = world.person(source)
    friend = world.people[person.friend]
    relation, question = source.choice((
        ("pet", "Which animal does {name}'s best friend keep?"),
        ("job", "What is the job of {name}'s best friend?"),
        ("colour", "Which colour does {name}'s best friend like best?"),
        ("dish", "What does {name}'s best friend like to eat?"),
    ))
    prompt = f"Question: {question.format(name=person.name)}\nAnswer:"
    return Item(
        "reasoning", f"reasoning|{prompt}", f"{friend.name}, so {getattr(friend, relation)}", prompt=prompt
    )


def _item(facts: list[str], question: str, answer: str) -> Item:
    prompt = f"Facts: {' '.join(facts)}\nQuestion: {question}\nAnswer:"
    return Item("reasoning", f"reasoning|{prompt}", answer, prompt=prompt)


FAMILIES: tuple[Callable[[World, random.Random], Item], ...] = (household, container, height, friendship)


def draw(world: World, source: random.Random) -> Item:
    """Draw an item of any family."""
    return source.choice(FAMILIES)(world, source)
