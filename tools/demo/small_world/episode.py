# SPDX-License-Identifier: Apache-2.0
"""What one piece of text is: a question with its answer (`Item`) or plain training text (`Episode`).

The wall between training and evaluation stands here: `is_held_out(key)` is decided by a hash of what makes an item
itself, so an item is either trainable or askable, in every run and for every seed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

HELD_OUT_FRACTION = 0.15
CONTEXT_WEIGHT = 0.15
END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (END_OF_TEXT, END_OF_TURN, *(f"<|{role}|>" for role in ROLES))


@dataclass(frozen=True)
class Item:
    """One question with its answer.

    `prompt` (plain text) or `messages` (chat turns, the last one by the user) comes first. `choices`, if any, begin
    with a space and contain `answer`; without choices the answer is to be written exactly. `key` decides the side of
    the wall: everything that may be asked in other words keeps its own key.
    """

    ability: str
    key: str
    answer: str
    prompt: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    max_tokens: int = 12


@dataclass(frozen=True)
class Episode:
    """Training text in segments of (text, loss weight); segments begin at stable token boundaries."""

    segments: tuple[tuple[str, float], ...]

    @property
    def text(self) -> str:
        """Return the whole text."""
        return "".join(text for text, _ in self.segments)


def is_held_out(key: str) -> bool:
    """Return whether the item of this key is only asked in evaluation (true for `HELD_OUT_FRACTION` of all keys)."""
    digest = hashlib.sha256(f"small-world|{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_FRACTION * 2**32


def plain(text: str) -> Episode:
    """Return text in which every token counts fully."""
    return Episode(((text, 1.0),))


def chat_segments(messages: tuple[tuple[str, str], ...]) -> tuple[tuple[str, float], ...]:
    """Render finished chat turns as the chat template does; what the assistant says counts fully."""
    segments = []
    for role, content in messages:
        weight = 1.0 if role == "assistant" else CONTEXT_WEIGHT
        segments += [(f"<|{role}|>", CONTEXT_WEIGHT), (f"{content}{END_OF_TURN}", weight)]
    return tuple(segments)


def answered(item: Item) -> Episode:
    """Return the training text of one item: its prompt, then its answer."""
    if item.messages:
        return Episode(chat_segments((*item.messages, ("assistant", item.answer))))
    return Episode(((item.prompt, CONTEXT_WEIGHT), answer_segment(item)))


def answer_segment(item: Item) -> tuple[str, float]:
    """Return what follows the prompt of a plain item: a choice already begins with its space."""
    return (f"{item.answer}\n" if item.choices else f" {item.answer}\n"), 1.0
