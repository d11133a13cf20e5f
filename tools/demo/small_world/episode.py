# SPDX-License-Identifier: Apache-2.0
"""What one piece of text is: a question with its answer (`Item`) or plain training text (`Episode`).

The wall between training and evaluation stands here: `is_held_out(key)` is decided by a hash of what makes an item
itself, so an item is either trainable or askable, in every run and for every seed.
"""

from __future__ import annotations

import hashlib
import os.path
from dataclasses import dataclass

HELD_OUT_FRACTION = 0.15
CONTEXT_WEIGHT = 0.1
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


def plain(text: str, weight: float) -> Episode:
    """Return text in which every token counts the same."""
    return Episode(((text, weight),))


def chat_segments(messages: tuple[tuple[str, str], ...]) -> tuple[tuple[str, float], ...]:
    """Render finished chat turns as the chat template does; what the assistant says counts fully."""
    segments = []
    for role, content in messages:
        weight = 1.0 if role == "assistant" else CONTEXT_WEIGHT
        segments += [(f"<|{role}|>", CONTEXT_WEIGHT), (f"{content}{END_OF_TURN}", weight)]
    return tuple(segments)


def answered(*items: Item) -> Episode:
    """Return the training text of items that share a document: the document once, then each question and answer."""
    if items[0].messages:
        (item,) = items
        return Episode(chat_segments((*item.messages, ("assistant", item.answer))))
    prompts = [item.prompt for item in items]
    shared, newline, _ = os.path.commonprefix(prompts).rpartition("\n")  # noqa: RUF071 (characters are meant)
    document = shared + newline
    segments = [(document, CONTEXT_WEIGHT)] if document else []
    for item in items:
        # A choice already begins with its space.
        answer = item.answer if item.choices else f" {item.answer}"
        segments += [(item.prompt.removeprefix(document), CONTEXT_WEIGHT), (f"{answer}\n", 1.0)]
    return Episode(tuple(segments))
