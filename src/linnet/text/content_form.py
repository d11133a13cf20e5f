# SPDX-License-Identifier: Apache-2.0
"""Which form of a message's content a chat template shows: a text, or a list of parts that each have a type.

A template that goes through parts finds none in a text and leaves it out without a word; one that prints a text prints
a list's braces and quotes. Which it is cannot be read off its source, so a probe is rendered in both forms, once per
template and role, and the messages are handed over in the form that shows it.
"""

import re
import secrets
from collections.abc import Callable
from typing import Any, TypeGuard

from linnet.errors import ConfigError, LinnetError

Chat = list[dict[str, Any]]
Render = Callable[[Chat], str]

PLACES: dict[str, tuple[tuple[str, ...], int]] = {
    "user": (("user",), 0),
    "system": (("system", "user"), 0),
    "assistant": (("user", "assistant", "user"), 1),
}
"""Role -> the roles of the shortest conversation that every template accepts, and where the probe stands in it."""


AS_IT_IS = r"""\\?["']text\\?["']\s*:\s*\\?["']"""
"""What stands before a part's text where the list is printed as Python or JSON."""


class ContentForms:
    """What one template shows; found out when first asked for. Safe to use from several threads."""

    def __init__(self) -> None:
        self._mark = f"probe{secrets.token_hex(8)}"
        self._shown: dict[tuple[str, str], bool | None] = {}

    def adapt(self, chat: Chat, render: Render) -> None:
        """Put every content into the form that is shown for its role, in place.

        Content stays as it is if the template shows it so, if it holds more than text, or if no form is shown.
        ``render`` renders a conversation of probes.
        """
        for message in chat:
            role, content = str(message.get("role")), message.get("content")
            if isinstance(content, str) and content and self._prefers(role, "parts", render):
                message["content"] = _parts(content)
            elif _only_text(content) and self._prefers(role, "text", render):
                message["content"] = "\n".join(part["text"] for part in content)

    def check(self, chat: Chat, text: str, render: Render) -> None:
        """ConfigError if the template shows no user's text in either form, and ``text``, its work, holds none."""
        said = [part for message in chat if message.get("role") == "user" for part in _texts(message.get("content"))]
        words, shown = [word for texts in said for word in texts.lower().split()], text.lower()
        if not words or any(word in shown for word in words):
            return
        if self._shows("user", "text", render) is False and self._shows("user", "parts", render) is False:
            raise ConfigError("the chat template leaves out what the user says; use plain completions, or another one")

    def _prefers(self, role: str, form: str, render: Render) -> bool:
        """Whether ``form`` is shown and the other is not."""
        other = "parts" if form == "text" else "text"
        return self._shows(role, other, render) is not True and self._shows(role, form, render) is True

    def _shows(self, role: str, form: str, render: Render) -> bool | None:
        """None: the template refuses the probe."""
        known = self._shown
        if (role, form) not in known:
            known[role, form] = self._probe(role, form, render) if role in PLACES else None
        return known[role, form]

    def _probe(self, role: str, form: str, render: Render) -> bool | None:
        roles, place = PLACES[role]
        chat: Chat = [{"role": name, "content": "x"} for name in roles]
        if role != "user" and self._prefers("user", "parts", render):
            for message in chat:
                message["content"] = _parts("x")
        chat[place]["content"] = self._mark if form == "text" else _parts(self._mark)
        try:
            text = render(chat)
        except LinnetError:
            return None
        printed_as_it_is = form == "parts" and re.search(AS_IT_IS + self._mark, text, re.IGNORECASE)
        return self._mark in text.lower() and not printed_as_it_is


def _parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _only_text(content: Any) -> TypeGuard[list[dict[str, Any]]]:
    if not isinstance(content, list) or not content:
        return False
    return all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    )
