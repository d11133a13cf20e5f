# SPDX-License-Identifier: Apache-2.0
"""``[name(key=value, …), …]`` as the whole answer, in Python's words (Llama 3.2's and 4's other form).

The list is read to its end before anything of it is shown: only then is it known to be one. It is parsed, never run.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from linnet.api.tools.grammar import Rules
from linnet.api.tools.interface import Out, Tool
from linnet.api.tools.source import Source, Steps, closing, literal, peek, until, white
from linnet.api.tools.tagged_values import properties
from linnet.text.call_form import ARGUMENT, NAME

TAG, TAG_END = "<|python_start|>", "<|python_end|>"
MOST_CHARACTERS = 64 << 10
MOST_DEPTH = 32
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class PythonCalls:
    """A CallForm."""

    markers = (TAG, TAG_END)

    def claims(self, shown: str) -> bool:
        """See CallForm."""
        return f"{NAME}({ARGUMENT}=" in shown

    def written(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See CallForm."""
        return f"[{name}({', '.join(f'{key}={one!r}' for key, one in arguments.items())})]"

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, many: bool, must: bool, said: str | None) -> str:
        """See CallForm. The names are held to, of functions and arguments; values are any of Python's."""
        text = rules.terminal(r'/"([^"\\\n]|\\[^\n])*"|\'([^\'\\\n]|\\[^\n])*\'/')
        plain = rules.terminal(r"/-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?|True|False|None/")
        value = "python_value"
        first, one = (
            rules.rule(" | ".join(self._call(rules, tool, value, before) for tool in tools)) for before in ("[", "")
        )
        calls = rules.rule(f"({rules.text(TAG)})? {first}" + (f' (", " {one})*' if many else "") + ' "]"')
        rules.named(value, f'{text} | {plain} | "[" ({value} (", " {value})*)? "]" | "{{" ({text} ": " {value} '
                           f'(", " {text} ": " {value})*)? "}}"')  # fmt: skip
        if must:
            return calls
        other = rules.terminal(r"/(.|\n)*/ & ~/\[[a-zA-Z_][a-zA-Z0-9_.-]*\((.|\n)*/")
        return rules.rule(f"{calls} | {said or other}")

    def _call(self, rules: Rules, tool: Tool, value: str, before: str) -> str:
        """One lexeme up to the bracket, so that it and other text are told apart there."""
        keys = list(properties(tool))
        if not keys:
            return rules.text(f"{before}{tool.name}()")
        key = rules.rule(" | ".join(f"{rules.text(one + '=')} {value}" for one in keys))
        return f'{rules.text(f"{before}{tool.name}(")} ({key} (", " {key})*)? ")"'

    def read(self, source: Source, out: Out, tools: Mapping[str, Tool]) -> Steps[None]:
        """See CallForm."""
        lead = yield from white(source)
        tag = yield from literal(source, TAG)
        if (yield from literal(source, "[")) is None:
            if lead or tag:
                out.content(lead + (tag or ""))
        else:
            read = ["["]
            yield from _list(source, read)
            calls = _calls("".join(read), out)
            if calls is None:
                out.content(lead + (tag or "") + "".join(read))
            else:
                for name, arguments in calls:
                    out.call(name)
                    out.arguments(arguments)
                yield from white(source)
                yield from closing(source, TAG_END)
        yield from until(source, (), out.content)


def _list(source: Source, read: list[str]) -> Steps[None]:
    """The text up to the bracket that closes the list, as far as there is one."""
    opened, quote, escaped, count = ["]"], "", False, 0
    while opened and count < MOST_CHARACTERS and len(opened) <= MOST_DEPTH:
        letter = yield from peek(source)
        if not letter:
            return
        source.take(1)
        read.append(letter)
        count += 1
        if quote:
            if escaped:
                escaped = False
            elif letter == "\\":
                escaped = True
            elif letter == quote:
                quote = ""
        elif letter in "\"'":
            quote = letter
        elif letter in _CLOSING:
            opened.append(_CLOSING[letter])
        elif letter in ")]}" and opened.pop() != letter:
            return


def _calls(text: str, out: Out) -> list[tuple[str, str]] | None:
    """Names and arguments as JSON; None where this is no list of calls that there are."""
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        found = []
        for node in tree.elts:
            if not isinstance(node, ast.Call) or node.args or any(key.arg is None for key in node.keywords):
                return None
            name = ast.unparse(node.func)
            arguments = {str(key.arg): ast.literal_eval(key.value) for key in node.keywords}
            if not out.knows(name):
                return None
            found.append((name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)))
        return found
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
