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
    stories,
)
from small_world.episode import END_OF_TEXT, Episode, Item, answered, is_held_out, plain
from small_world.prose import Prose
from small_world.world import World

ABILITIES: dict[str, Callable[[World, random.Random], Item]] = {
    "language": language.draw,
    "knowledge": knowledge.draw,
    "arithmetic": arithmetic.draw,
    "reasoning": reasoning.draw,
    "in_context": in_context.draw,
    "instruction": instruction.draw,
    "recall": recall.draw,
    "dialogue": dialogue.draw,
    "refusal": refusal.draw,
}
# Shares of characters, for short rows and for long ones. Prose is capped so that the town stays learnable within the
# budget of tokens. Long rows exist for recall; the rest of their mix fills the room behind a document.
SHORT_SHARES = {
    "text": 0.18,
    "language": 0.05,
    "knowledge": 0.08,
    "arithmetic": 0.11,
    "reasoning": 0.12,
    "in_context": 0.09,
    "instruction": 0.07,
    "dialogue": 0.07,
    "question_chat": 0.02,
    "refusal": 0.03,
    "prose": 0.08,
}
LONG_SHARES = {"recall": 0.86, "text": 0.04, "dialogue": 0.04, "instruction": 0.03, "in_context": 0.03}


def trainable(draw: Callable[[World, random.Random], Item], world: World, source: random.Random) -> Item:
    """Draw until the item lies on the training side of the wall."""
    item = draw(world, source)
    while is_held_out(item.key):
        item = draw(world, source)
    return item


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
        return plain(trainable_text(world, source))
    if kind == "prose":
        return plain(prose.draw(source))
    if kind == "recall":
        return recall.episode(world, source)
    if kind == "question_chat":
        return dialogue.question_chat(world, source)
    return answered(trainable(ABILITIES[kind], world, source))


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
