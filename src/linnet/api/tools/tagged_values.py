# SPDX-License-Identifier: Apache-2.0
"""Calls whose arguments stand between tags one by one, texts as they are and everything else as JSON.

Two ways: ``<tool_call>name`` and pairs of ``<arg_key>`` and ``<arg_value>`` (GLM's), and ``<function=name>`` with
``<parameter=key>`` in it (Qwen 3 Coder's). The arguments go out as one JSON object, a text as it comes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from linnet.api.structured import literal as quoted
from linnet.api.tools import objects
from linnet.api.tools.grammar import Rules, called
from linnet.api.tools.interface import Out, Tool
from linnet.api.tools.source import MOST_STRING, Source, Steps, attempt, closing, literal, text_until, until, white

OPENING, CLOSING = "<tool_call>", "</tool_call>"


class PairedValues:
    """A CallForm: keys and values in tags of their own."""

    markers: tuple[str, ...] = (OPENING, CLOSING, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    after_opening = ""
    name_ends: tuple[str, ...] = ("\n", "<arg_key>", CLOSING)
    before_key, after_key, after_value = "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>"
    key_ends, value_begins = "</arg_key>", "<arg_value>"
    after_values = CLOSING
    edge = ""
    """What stands at both ends of a value and is no part of it."""

    def claims(self, shown: str) -> bool:
        """See CallForm."""
        return OPENING in shown and "<arg_key>" in shown

    def written(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See CallForm."""
        shown = ((key, one if isinstance(one, str) else objects.dumps(one)) for key, one in arguments.items())
        pairs = (
            f"{self.before_key}{key}{self.after_key}{self.edge}{text}{self.edge}{self.after_value}\n"
            for key, text in shown
        )
        return self._head(name) + "".join(pairs) + self._tail()

    def _head(self, name: str) -> str:
        return f"{OPENING}{name}\n"

    def _tail(self) -> str:
        return CLOSING

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, many: bool, must: bool, said: str | None) -> str:
        """See CallForm. Arguments come in the order of the schema, unknown ones never."""
        calls = [
            f"{rules.text(self._head(tool.name).removeprefix(OPENING))} {self._values(rules, tool)}"
            f" {rules.text(self._tail())}"
            for tool in tools
        ]
        one = rules.rule(" | ".join(calls))
        after = rules.rule(one + (f' ("\\n" {rules.text(OPENING)} {one})*' if many else ""))
        return called(rules, OPENING, after, must=must, said=said)

    def _values(self, rules: Rules, tool: Tool) -> str:
        required = tool.schema.get("required") or ()
        return " ".join(
            f"({self._pair(rules, tool, key)})" + ("" if key in required else "?") for key in properties(tool)
        )

    def _pair(self, rules: Rules, tool: Tool, key: str) -> str:
        schema = properties(tool)[key]
        begin = rules.text(f"{self.before_key}{key}{self.after_key}{self.edge}")
        end = f"{self.edge}{self.after_value}"
        if not is_text(schema):
            value = rules.value(tool, schema if isinstance(schema, Mapping) else {})
            return f"{begin} {value} {rules.text(end)} {quoted(chr(10))}"
        choices = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
        if choices:
            return f"{begin} ({' | '.join(quoted(str(one)) for one in choices)}) {rules.text(end)} {quoted(chr(10))}"
        return f"{begin} {rules.before(end)} {quoted(chr(10))}"

    def read(self, source: Source, out: Out, tools: Mapping[str, Tool]) -> Steps[None]:
        """See CallForm."""
        while (yield from until(source, (OPENING,), out.content)) is not None:
            name = yield from attempt(source, self._name(source, out))
            if name is None:
                out.content(OPENING)
                continue
            out.call(name)
            yield from self._arguments(source, out, tools[name])

    def _name(self, source: Source, out: Out) -> Steps[str | None]:
        yield from white(source)
        if self.after_opening and (yield from literal(source, self.after_opening)) is None:
            return None
        read, end = yield from text_until(source, self.name_ends, MOST_STRING)
        name = read.strip()
        if end is None or not out.knows(name):
            return None
        if end in (self.before_key, self.after_values):
            source.at -= len(end)
        return name

    def _arguments(self, source: Source, out: Out, tool: Tool) -> Steps[None]:
        """One after the other; the object stays open where the text ends within."""
        count = 0
        while True:
            yield from white(source)
            if (yield from literal(source, self.before_key)) is None:
                break
            key, end = yield from text_until(source, (self.key_ends,))
            if end is None:
                return
            key = key.strip()
            if self.value_begins:
                yield from white(source)
                yield from literal(source, self.value_begins)
            out.arguments(("{" if not count else ", ") + objects.dumps(key) + ": ")
            count += 1
            if self.edge:
                yield from literal(source, self.edge)
            reading = self._text if is_text(properties(tool).get(key)) else self._json
            if not (yield from reading(source, out)):
                return
        closed = yield from literal(source, self.after_values)
        if closed is None and source.ended:
            return
        out.arguments("}" if count else "{}")
        if self.after_values != CLOSING:
            yield from white(source)
            yield from closing(source, CLOSING)

    def _text(self, source: Source, out: Out) -> Steps[bool]:
        out.arguments('"')
        tail = ""

        def emit(text: str) -> None:
            nonlocal tail
            text = tail + text
            tail = self.edge if self.edge and text.endswith(self.edge) else ""
            out.arguments(objects.dumps(text[: len(text) - len(tail)])[1:-1])

        if (yield from until(source, (self.after_value,), emit)) is None:
            return False
        out.arguments('"')
        return True

    def _json(self, source: Source, out: Out) -> Steps[bool]:
        text, end = yield from text_until(source, (self.after_value,))
        if end is None:
            return False
        text = text.removesuffix(self.edge)
        found = objects.loads(text)
        out.arguments(objects.dumps(text if found is None and text.strip() != "null" else found))
        return True


class NamedValues(PairedValues):
    """A CallForm: keys in the tags of their values."""

    markers = (OPENING, CLOSING)
    after_opening = "<function="
    name_ends = (">",)
    before_key, after_key, after_value = "<parameter=", ">", "</parameter>"
    key_ends, value_begins = ">", ""
    after_values = "</function>"
    edge = "\n"

    def claims(self, shown: str) -> bool:
        """See CallForm."""
        return "<function=" in shown and "<parameter=" in shown

    def _head(self, name: str) -> str:
        return f"{OPENING}\n<function={name}>\n"

    def _tail(self) -> str:
        return f"</function>\n{CLOSING}"


def properties(tool: Tool) -> Mapping[str, Any]:
    """The schemas of its arguments by name."""
    found = tool.schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def is_text(schema: Any) -> bool:
    """Whether an argument is a text and nothing else."""
    return isinstance(schema, Mapping) and schema.get("type") == "string"
