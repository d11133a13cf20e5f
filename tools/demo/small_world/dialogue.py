# SPDX-License-Identifier: Apache-2.0
"""Dialogue: a chat in which the last question refers to something said in an earlier turn."""

from __future__ import annotations

import random

from small_world.episode import Episode, Item, chat_segments, is_held_out
from small_world.knowledge import draw as draw_knowledge
from small_world.world import ANIMALS, COLOURS, FOODS, GOODS, PLACES, VISITORS, World

# (what the user tells, what the user asks later, what the assistant answers)
TOLD = (
    ("My name is {value}.", "What is my name?", "Your name is {value}.", VISITORS),
    ("I have a {value}.", "Which animal do I have?", "You have a {value}.", ANIMALS),
    ("I like the colour {value}.", "Which colour do I like?", "You like {value}.", COLOURS),
    ("I want to eat {value}.", "What do I want to eat?", "You want to eat {value}.", FOODS),
    ("I am going to the {value}.", "Where am I going?", "You are going to the {value}.", PLACES),
    ("I lost my {value}.", "What did I lose?", "You lost your {value}.", GOODS),
)
OPENINGS = ("", "Hello. ", "Good morning. ", "Good evening. ")
ACKNOWLEDGED = ("Thank you for telling me.", "I will remember that.", "That is good to know.")
THANKED = ("You are welcome.", "Gladly.")


def draw(world: World, source: random.Random) -> Item:
    """Draw a chat that tells two or three things, turns to something else, and asks for one of them."""
    told = [(*kind[:3], source.choice(kind[3])) for kind in source.sample(TOLD, source.choice((2, 3)))]
    opening = source.choice(OPENINGS) + " ".join(text.format(value=value) for text, _, _, value in told)
    messages = [("user", opening), ("assistant", source.choice(ACKNOWLEDGED))]
    if source.random() < 0.7:
        messages += small_talk(world, source)
    _, question, answer, value = source.choice(told)
    messages.append(("user", question))
    key = f"dialogue|{messages}"
    return Item("dialogue", key, answer.format(value=value), messages=tuple(messages), max_tokens=16)


def small_talk(world: World, source: random.Random) -> list[tuple[str, str]]:
    """Draw one exchange about the town, or a thank-you."""
    if source.random() < 0.3:
        return [("user", "Thank you."), ("assistant", source.choice(THANKED))]
    item = draw_knowledge(world, source)
    while is_held_out(item.key):
        item = draw_knowledge(world, source)
    question = item.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    return [("user", question), ("assistant", f"The answer is{item.answer}.")]


def question_chat(world: World, source: random.Random) -> Episode:
    """Draw a training chat of two questions about the town."""
    return Episode(chat_segments((*small_talk(world, source), *small_talk(world, source))))
