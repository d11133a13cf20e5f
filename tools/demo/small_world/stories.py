# SPDX-License-Identifier: Apache-2.0
"""Stories and documents: the text from which the facts of the town are learnt.

A story is held out as a whole by its opening, so held-out text measures how well the town is known, not how well a
story was remembered.
"""

from __future__ import annotations

import random

from small_world.language import ADJECTIVES, LOST, TIMES, TRADES
from small_world.refusal import law_book
from small_world.world import DAYS, GOODS, MEN, PLACES, RELATIONS, TOOLS, WOMEN, Person, World, with_article

STATEMENTS = {
    "street": (
        "{name} lives on {street}.",
        "The house of {name} stands on {street}, number {number}.",
        "You can find {name} at {number} {street}.",
        "{They} has {their} home on {street}.",
        "{Their} door is the one at {number} {street}.",
    ),
    "job": (
        "{name} is {a_job} by trade.",
        "{name} works as {a_job}.",
        "Everybody knows {name} the {job}.",
        "{They} earns {their} bread as {a_job}.",
        "{Their} job is that of {a_job}.",
    ),
    "pet": (
        "{name} keeps {a_pet}.",
        "The pet of {name} is {a_pet}.",
        "{They} has {a_pet} at home.",
        "{name} lives with {a_pet}.",
        "{Their} {pet} follows {name} everywhere.",
    ),
    "colour": (
        "{name} likes {colour} best.",
        "The favourite colour of {name} is {colour}.",
        "{They} wears {colour} whenever {they} can.",
        "{name} painted {their} door {colour}, the colour {they} loves.",
        "Of all colours {they} would choose {colour}.",
    ),
    "dish": (
        "{name} loves to eat {dish}.",
        "The favourite food of {name} is {dish}.",
        "For {name} one should cook {dish}.",
        "{They} eats {dish} whenever {they} can.",
        "Nothing tastes better to {name} than {dish}.",
    ),
    "friend": (
        "{name} trusts {friend} most.",
        "The best friend of {name} is {friend}.",
        "{name} and {friend} are friends.",
        "{Their} best friend is {friend}.",
        "{They} tells everything to {friend}, {their} best friend.",
    ),
}
MOODS = ("glad", "tired", "proud", "sorry", "surprised", "quiet")
WEATHER = ("It was raining", "The sun was warm", "Snow lay on the roofs", "A cold wind blew", "The air was clear")
ENDINGS = (
    "Then {they} went home.",
    "In the evening {they} slept well.",
    "{They} never forgot that day.",
    "After that {they} sat by the fire and said nothing.",
    "So the day ended well for {name}.",
)


def words_of(person: Person) -> dict[str, object]:
    """Return every word a template about this person may use."""
    return {
        **{field: getattr(person, field) for field in (*RELATIONS, "name", "number", "they", "their")},
        "They": person.they.capitalize(),
        "Their": person.their.capitalize(),
        "a_job": with_article(person.job),
        "a_pet": with_article(person.pet),
    }


def statement(person: Person, relation: str, source: random.Random, named: bool = False) -> str:
    """State one fact about a person, by name where nothing before says who is meant."""
    templates = [text for text in STATEMENTS[relation] if not named or text.startswith("{name}")]
    return source.choice(templates).format(**words_of(person))


def biography(world: World, source: random.Random) -> str:
    """Describe one person by most of their facts in any order."""
    person = world.person(source)
    relations = source.sample(RELATIONS, source.randint(4, len(RELATIONS)))
    first, *others = relations
    sentences = [statement(person, first, source, named=True)]
    sentences += [statement(person, relation, source) for relation in others]
    return " ".join(sentences) + "\n"


def gathering(world: World, source: random.Random) -> str:
    """List people who share a street, a job or a taste."""
    relation = source.choice(("street", "job", "pet", "colour", "dish"))
    value = getattr(world.person(source), relation)
    names = [name for name in WOMEN + MEN if getattr(world.people[name], relation) == value]
    source.shuffle(names)
    opening = {
        "street": "On {value} there live {names}.",
        "job": "The {value}s of the town are {names}.",
        "pet": "A {value} is kept by {names}.",
        "colour": "The colour {value} is loved by {names}.",
        "dish": "Those who love {value} most are {names}.",
    }[relation]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return opening.format(value=value, names=listed) + "\n"


def price_list(world: World, source: random.Random) -> str:
    """Write prices in a shop's words."""
    things = source.sample(GOODS + TOOLS, 6)
    form = source.choice(
        (
            "The {thing} costs {price} coins.",
            "For {price} coins one gets the {thing}.",
            "The price of the {thing} is {price} coins.",
            "One pays {price} coins for the {thing}.",
        )
    )
    return "Prices: " + " ".join(form.format(thing=thing, price=world.prices[thing]) for thing in things) + "\n"


def story(world: World, source: random.Random) -> str:
    """Tell a day of one person who meets another."""
    person, other = world.person(source), world.person(source)
    while other is person:
        other = world.person(source)
    words = words_of(person)
    place, thing, lost = source.choice(PLACES), source.choice(GOODS + TOOLS), source.choice(LOST)
    plural = source.choice(("children", "dogs", "sailors", "farmers", "girls", "boys"))
    trade_job, trade_verb, ware = source.choice(TRADES)
    middle = [
        f"At the {place} {words['they']} met {other.name}, the {other.job} from {other.street}.",
        f"{words['They']} bought the {thing} for {world.prices[thing]} coins.",
        f"{other.name} came by with {other.their} {other.pet} and was {source.choice(MOODS)}.",
        f"{words['They']} had lost the {lost}, so {words['they']} went to the {source.choice(PLACES)} to look for it.",
        f"The {plural} near the {place} were {source.choice(('waiting', 'playing', 'resting', 'eating'))}.",
        f'"I would rather have {other.dish}," said {other.name}.',
        f"The {source.choice(ADJECTIVES)} {trade_job} there {trade_verb} {ware}.",
        f"{person.name} went with {other.name} to the {source.choice(ADJECTIVES)} {place}.",
        f"{words['They']} saw a {other.colour} door and thought of {other.name}, who loves that colour.",
        statement(person, source.choice(RELATIONS), source),
        statement(person, source.choice(RELATIONS), source),
        statement(other, source.choice(RELATIONS), source, named=True),
    ]
    friend = f"{words['their']} friend {person.friend}"
    opening = source.choice(
        (
            f"{source.choice(TIMES)} {person.name} the {person.job} goes out with {words['their']} {person.pet}.",
            f"{source.choice(WEATHER)} when {person.name} left the house on {person.street}.",
            f"On {source.choice(DAYS)} {person.name} went to the {place} to see {friend}.",
            f"Yesterday {person.name} walked from {person.street} to the {place}.",
            f"Tomorrow {person.name} will go to the {place}, but today there was work to do.",
            f"Once {person.name}, {words['a_job']}, wanted to eat {person.dish}.",
        )
    )
    ending = source.choice(ENDINGS).format(**words)
    return " ".join([opening, *source.sample(middle, source.randint(3, 6)), ending]) + "\n"


def draw_text(world: World, source: random.Random) -> str:
    """Draw a story or a document."""
    kind = source.random()
    if kind < 0.45:
        return story(world, source)
    if kind < 0.75:
        return biography(world, source)
    if kind < 0.85:
        return gathering(world, source)
    return price_list(world, source) if kind < 0.95 else law_book(source)
