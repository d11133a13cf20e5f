# SPDX-License-Identifier: Apache-2.0
"""Knowledge: facts of the town, stated in stories and documents, asked in words held out for each fact."""

from __future__ import annotations

import random

from small_world.episode import Item
from small_world.world import GOODS, MEN, RELATIONS, TOOLS, VALUES, WOMEN, World

WORDINGS = {
    "street": (
        "Where does {name} live?",
        "On which street is the house of {name}?",
        "Which street is {name}'s home?",
        "In which street can one visit {name}?",
    ),
    "job": (
        "What is {name}'s job?",
        "What does {name} work as?",
        "Which trade has {name}?",
        "What is {name} by trade?",
    ),
    "pet": (
        "Which animal does {name} keep?",
        "What is {name}'s pet?",
        "Which pet lives with {name}?",
        "What animal belongs to {name}?",
    ),
    "colour": (
        "What is {name}'s favourite colour?",
        "Which colour does {name} like best?",
        "Which colour is dear to {name}?",
        "What colour would {name} choose?",
    ),
    "dish": (
        "What does {name} like to eat?",
        "What is {name}'s favourite food?",
        "Which food does {name} love?",
        "What should one cook for {name}?",
    ),
    "friend": (
        "Who is {name}'s best friend?",
        "Who is the best friend of {name}?",
        "Whom does {name} trust most?",
        "With whom is {name} best friends?",
    ),
    "price": (
        "How many coins does the {name} cost?",
        "What is the price of the {name}?",
        "How much is the {name}?",
        "What must one pay for the {name}?",
    ),
}
ASKED_PRICE = 0.12


def draw(world: World, source: random.Random) -> Item:
    """Draw a question about a person or a price; the key is the fact in one wording."""
    if source.random() < ASKED_PRICE:
        relation, name = "price", source.choice(GOODS + TOOLS)
        right = str(world.prices[name])
        others = [str(price) for price in sorted(set(world.prices.values()))]
    else:
        relation, person = source.choice(RELATIONS), world.person(source)
        name, right = person.name, getattr(person, relation)
        others = list(WOMEN + MEN) if relation == "friend" else list(VALUES[relation])
    wording = source.choice(WORDINGS[relation])
    wrong = [other for other in others if other not in (right, name)]
    choices = tuple(f" {value}" for value in (right, *source.sample(wrong, 3)))
    question = wording.format(name=name)
    return Item(
        "knowledge", f"knowledge|{question}", choices[0], prompt=f"Question: {question}\nAnswer:", choices=choices
    )
