# SPDX-License-Identifier: Apache-2.0
"""The jinja2 environment of chat templates: what transformers offers them, in a sandbox with bounds.

The quirks, one by one (transformers.utils.chat_template_utils is the model; golden tests compare):
trim_blocks and lstrip_blocks; ``{% break %}`` and ``{% continue %}``; ``{% generation %}`` (renders its body); a
``tojson`` that does not escape HTML and takes ensure_ascii, indent, separators and sort_keys; ``raise_exception``;
``strftime_now`` on an injected clock; ``dict`` and ``namespace`` that cannot reach Python's internals.

Bounds. A deadline is checked on every line of the template and every Python call below it (``sys.settrace`` of the
rendering thread only); operators, string methods and filters that can make much out of little are refused beyond
``MOST_CHARACTERS`` before they run.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from types import FrameType
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
from jinja2.exceptions import SecurityError, TemplateError

MOST_CHARACTERS = 16 << 20
MOST_INTEGER_BITS = 4096


class RenderLimitError(Exception):
    """A bound of this module was reached; the message says which."""


class TemplateRefusal(TemplateError):
    """The template called raise_exception."""


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else len(str(value))


def _bounded(size: int) -> None:
    if size > MOST_CHARACTERS:
        raise RenderLimitError(f"it would build a value of {size} characters; at most {MOST_CHARACTERS} are accepted")


def _join(parts: Iterable[Any]) -> str:
    total, texts = 0, []
    for part in parts:
        text = part if isinstance(part, str) else str(part)
        total += len(text)
        _bounded(total)
        texts.append(text)
    return "".join(texts)


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    """``a ~ b`` goes through the bounded join."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:
        self.write("environment.bounded_join((")
        for argument in node.nodes:
            self.visit(argument, frame)
            self.write(", ")
        self.write("))")


class GenerationTag(jinja2.ext.Extension):
    """``{% generation %} ... {% endgeneration %}`` marks what the assistant says; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's declared type)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class SafeDict:
    """``dict(...)`` and ``dict.fromkeys`` without the class behind them."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class SafeNamespace(jinja2.utils.Namespace):
    """``namespace(...)`` that refuses names with a leading underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: Any, value: Any) -> None:
        _check_name(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"chat templates cannot store underscore-prefixed attributes on a namespace: {name!r}")


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The ``tojson`` filter: plain ``json.dumps``, nothing escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: Any) -> None:
    """What a template calls to refuse a conversation."""
    raise TemplateRefusal(str(message))


_WIDE_FILTERS = (
    "batch", "center", "format", "indent", "round", "slice", "tojson", "truncate", "wordwrap", "urlize",
)  # fmt: skip
_WIDE_METHODS = frozenset(("center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "to_bytes"))


def _check_integers(name: str, values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MOST_CHARACTERS and name not in ("format", "format_map"):
            raise RenderLimitError(f"{name} with {value}; at most {MOST_CHARACTERS} is accepted")
        if isinstance(value, str) and len(value) > 1_000_000 and name in ("tojson", "indent"):
            raise RenderLimitError(f"{name} with an indent of {len(value)} characters")


def _check_format(text: Any) -> None:
    """Widths and precisions of % and format strings: nothing over six digits, and none taken from arguments."""
    if isinstance(text, str) and re.search(r"\d{7}|%[^%a-zA-Z]*\*|\{[^{}]*\{", text):
        raise RenderLimitError("a format string with a width over six digits or a width taken from an argument")


def _check_replace(text: str, old: Any, new: Any) -> None:
    pieces = text.count(str(old)) if str(old) else len(text) + 1
    _bounded(len(text) + pieces * max(len(str(new)) - len(str(old)), 0))


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """See the module."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))
    code_generator_class = _CodeGenerator
    bounded_join = staticmethod(_join)
    concat = staticmethod(_join)

    def __init__(self, clock: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, jinja2.ext.loopcontrols],
            optimized=False,  # constants are folded at render time, under the bounds
            cache_size=0,
        )
        self.filters["tojson"] = to_json
        for name in _WIDE_FILTERS:
            self.filters[name] = _guarded_filter(name, self.filters[name])
        self.filters["join"] = _guarded_join(self.filters["join"])
        self.filters["replace"] = _guarded_replace(self.filters["replace"])
        del self.globals["lipsum"]
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = lambda format: clock().strftime(format)
        self.globals["dict"] = SafeDict()
        self.globals["namespace"] = SafeNamespace

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _bounded(len(left) + len(right))
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, bytes, list, tuple)) and isinstance(other, int):
                    _bounded(len(one) * max(other, 0))
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * max(right, 1))
        elif operator == "%":
            _check_format(left)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and getattr(value, "__name__", "") in ("format", "format_map"):
            _check_format(owner)
        return super().wrap_str_format(value)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # as jinja2
        name, owner = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        if isinstance(owner, (str, bytes, int)):
            if name in _WIDE_METHODS:
                _check_integers(name, (*args, *kwargs.values()))
            if name == "replace" and isinstance(owner, str) and len(args) >= 2:
                _check_replace(owner, args[0], args[1])
            if name == "join" and isinstance(owner, str) and len(args) == 1:
                items = list(args[0])
                _bounded(sum(map(_size, items)) + len(owner) * len(items))
                args = (items,)
        return super().call(__context, __obj, *args, **kwargs)


def _check_bits(bits: int) -> None:
    if bits > MOST_INTEGER_BITS:
        raise RenderLimitError(f"an integer of about {bits} bits; at most {MOST_INTEGER_BITS} are accepted")


def _marked_like(function: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """jinja2 marks filters that want a context by attributes, which a wrapper must carry on."""
    wrapper.__dict__.update(function.__dict__)
    wrapper.__name__ = function.__name__
    return wrapper


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _check_integers(name, (*args, *kwargs.values()))
        if name == "format" and args:
            _check_format(args[0])
        if name == "indent" and args:
            width = next((value for value in (*args[1:], *kwargs.values()) if not isinstance(value, bool)), 4)
            step = width if isinstance(width, int) else _size(width)
            _bounded(_size(args[0]) + step * (str(args[0]).count("\n") + 1))
        return function(*args, **kwargs)

    return _marked_like(function, guarded)


def _guarded_join(function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(context: Any, value: Any, d: str = "", attribute: Any = None) -> Any:
        items = list(value)
        if attribute is None:
            _bounded(sum(map(_size, items)) + len(str(d)) * len(items))
        else:
            _bounded(len(str(d)) * len(items))
        return function(context, items, d, attribute)

    return _marked_like(function, guarded)


def _guarded_replace(function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(context: Any, s: Any, old: Any, new: Any, count: Any = None) -> Any:
        _check_replace(str(s), old, new)
        return function(context, s, old, new, count)

    return _marked_like(function, guarded)


def within(seconds: float, action: Callable[[], str], now: Callable[[], float] = time.monotonic) -> str:
    """``action()``, interrupted by RenderLimitError once ``seconds`` have passed.

    Python code below the call is traced (this thread only); a tracer that was there before is put back.
    """
    deadline = now() + seconds

    def check(frame: FrameType, event: str, argument: Any) -> Any:
        if now() > deadline:
            raise RenderLimitError(f"it took longer than {seconds:g} s")
        return check if frame.f_code.co_filename == "<template>" else None

    previous = sys.gettrace()
    sys.settrace(check)
    try:
        return action()
    finally:
        sys.settrace(previous)
