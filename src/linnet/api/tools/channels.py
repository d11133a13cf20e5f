# SPDX-License-Identifier: Apache-2.0
"""Answers in messages, each with a channel: thoughts, calls and what is said (the harmony format of gpt-oss).

A call is the last message of an answer, and there is one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from linnet.api.tools import objects
from linnet.api.tools.grammar import Rules
from linnet.api.tools.interface import Out, Tool
from linnet.api.tools.source import MOST_STRING, Source, Steps, attempt, literal, text_until, until

START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
CALL, RETURN, CONSTRAIN = "<|call|>", "<|return|>", "<|constrain|>"
NAMESPACE = "functions."


class Channels:
    """A CallForm, and a form of thoughts too."""

    markers = (START, CHANNEL, MESSAGE, END, CALL, RETURN, CONSTRAIN)

    def claims(self, shown: str) -> bool:
        """See CallForm."""
        return CHANNEL in shown and MESSAGE in shown

    def written(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See CallForm."""
        return (
            f"{CHANNEL}commentary to={NAMESPACE}{name} {CONSTRAIN}json{MESSAGE}{objects.dumps(dict(arguments))}{CALL}"
        )

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, many: bool, must: bool, said: str | None) -> str:
        """See CallForm. The thoughts are part of it; of calls one may come."""
        next_one = rules.text(f"{START}assistant")
        thought = rules.rule(f"{rules.text(f'{CHANNEL}analysis{MESSAGE}')} {rules.before(END)} {next_one}")
        preamble = rules.rule(f"{rules.text(f'{CHANNEL}commentary{MESSAGE}')} {rules.before(END)} {next_one}")
        head = f"{CHANNEL}commentary to={NAMESPACE}"
        mark = rules.rule(f'" "? ({rules.text(CONSTRAIN)})? "json" {rules.text(MESSAGE)}')
        calls = [f"{rules.text(head + tool.name)} {mark} {rules.schema(tool)}" for tool in tools]
        final = f"{rules.text(f'{CHANNEL}final{MESSAGE}')} {said or 'ANY'}"
        ends = calls if must else [*calls, final]
        return rules.rule(f"{thought}* {preamble}? ({' | '.join(ends)})")

    def read(self, source: Source, out: Out, tools: Mapping[str, Tool]) -> Steps[None]:
        """See CallForm."""
        out.said.trims = True
        while True:
            head = yield from attempt(source, self._head(source))
            if head is not None:
                yield from self._message(source, out, head)
            elif (yield from literal(source, END, CALL, RETURN)) is None:
                yield from literal(source, START, CHANNEL)  # of no message
                marker = yield from until(source, (START, CHANNEL, END, CALL, RETURN), out.content)
                if marker is None:
                    return
                source.at -= len(marker)

    def _head(self, source: Source) -> Steps[str | None]:
        """What stands before a message's text; nothing where the text ends within."""
        begin = yield from literal(source, CHANNEL, START, " to=", "to=")
        if begin is None:
            return None
        text, end = yield from text_until(source, (MESSAGE, END, CALL, RETURN), MOST_STRING)
        if end is None:
            return None if source.unread else ""
        return begin + text if end == MESSAGE else None

    def _message(self, source: Source, out: Out, head: str) -> Steps[None]:
        _, to, recipient = head.partition("to=" + NAMESPACE)
        name = recipient.split("<", 1)[0].split(" ", 1)[0]
        _, _, channel = head.partition(CHANNEL)
        emit = out.content
        if to and out.knows(name):
            out.call(name)
            emit = out.arguments
        elif channel.startswith("analysis"):
            out.new_thought()
            out.thinking = True
            emit = out.reasoning
        end = yield from until(source, (END, CALL, RETURN, START, CHANNEL), emit)
        out.thinking = False
        if end in (START, CHANNEL):
            source.at -= len(end)
