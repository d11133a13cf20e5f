# SPDX-License-Identifier: Apache-2.0
"""The mix: which share of the training text each kind of episode gets, and the endless stream that keeps to it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from small_world import (
    arithmetic,
    dialogue,
    in_context,
    instruction,
    knowledge,
    language,
    reasoning,
    recall,
    refusal,
    repetition,
    stories,
)
from small_world.episode import END_OF_TEXT, Episode, Item, answered, is_held_out, plain
from small_world.prose import Prose
from small_world.world import World

Draw = Callable[[World, random.Random], tuple[Item, ...]]


def alone(draw: Callable[[World, random.Random], Item]) -> Draw:
    """Turn a draw of one item into a draw of groups of one."""
    return lambda world, source: (draw(world, source),)


# The items of a group share their document, so training answers all of them; evaluation asks the first one.
ABILITIES: dict[str, Draw] = {
    "language": alone(language.draw),
    "knowledge": alone(knowledge.draw),
    "arithmetic": alone(arithmetic.draw),
    "reasoning": reasoning.draw_group,
    "in_context": in_context.draw_group,
    "instruction": alone(instruction.draw),
    "recall": recall.draw_group,
    "dialogue": alone(dialogue.draw),
    "refusal": alone(refusal.draw),
}
# Shares of characters. Training opens with the lesson of looking back: mixed among everything else it was not learnt
# in fourteen million tokens, alone it took two. Then come all abilities, in short rows and in long ones; grammar and
# facts come quickly and get little. Long rows exist for recall.
LOOK_BACK_SHARES = {
    "text": 0.03,
    "language": 0.01,
    "knowledge": 0.01,
    "arithmetic": 0.03,
    "reasoning": 0.22,
    "in_context": 0.25,
    "instruction": 0.03,
    "small_recall": 0.14,
    "repetition": 0.25,
    "dialogue": 0.02,
    "refusal": 0.01,
}
SHORT_SHARES = {
    "text": 0.12,
    "language": 0.02,
    "knowledge": 0.02,
    "arithmetic": 0.06,
    "reasoning": 0.24,
    "in_context": 0.22,
    "instruction": 0.07,
    "small_recall": 0.04,
    "repetition": 0.05,
    "dialogue": 0.05,
    "question_chat": 0.01,
    "refusal": 0.02,
    "prose": 0.08,
}
LONG_SHARES = {"recall": 0.90, "repetition": 0.10}
# Text teaches on every token, an answer on a few: without these weights text would drown the answers.
TEXT_WEIGHT, PROSE_WEIGHT = 0.5, 0.3


def trainable(draw: Draw, world: World, source: random.Random) -> tuple[Item, ...]:
    """Draw until all items of a group lie on the training side of the wall."""
    items = draw(world, source)
    while any(is_held_out(item.key) for item in items):
        items = draw(world, source)
    return items


def trainable_text(world: World, source: random.Random) -> str:
    """Draw until the story or document lies on the training side of the wall."""
    text = stories.draw_text(world, source)
    while is_held_out(text_key(text)):
        text = stories.draw_text(world, source)
    return text


def text_key(text: str) -> str:
    """Return the key of a story or document: how it begins."""
    return f"text|{text[:60]}"


def make_episode(kind: str, world: World, prose: Prose, source: random.Random) -> Episode:
    """Make one training episode of a kind of the mix."""
    if kind == "text":
        return plain(trainable_text(world, source), TEXT_WEIGHT)
    if kind == "prose":
        return plain(prose.draw(source), PROSE_WEIGHT)
    if kind == "repetition":
        return repetition.episode(source)
    if kind == "question_chat":
        return dialogue.question_chat(world, source)
    draw = recall.draw_small_group if kind == "small_recall" else ABILITIES[kind]
    return answered(*trainable(draw, world, source))


def stream(world: World, prose: Prose, seed: str, shares: dict[str, float] = SHORT_SHARES) -> Iterator[Episode]:
    """Yield episodes without end; the kind furthest behind its share comes next, so shares hold from the start."""
    source = random.Random(f"stream-{seed}")
    wanted = {kind: share for kind, share in shares.items() if kind != "prose" or prose.texts}
    # A random head start keeps the kinds from appearing in one fixed order.
    written = {kind: source.random() * 2_000 * share for kind, share in wanted.items()}
    while True:
        kind = min(wanted, key=lambda name: written[name] / wanted[name])
        episode = make_episode(kind, world, prose, source)
        written[kind] += len(episode.text) * (0.5 + source.random())
        yield Episode((*episode.segments, (END_OF_TEXT, 1.0)))
