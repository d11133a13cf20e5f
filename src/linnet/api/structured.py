# SPDX-License-Identifier: Apache-2.0
"""What an answer is to look like, and the grammar that says it: every kind becomes one in Lark's notation."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from linnet.engine import GrammarError

MOST_BYTES = 64 << 10
"""Of a schema, a regular expression or a grammar."""
MOST_DEPTH = 64
"""Levels of a schema."""
MOST_CHOICES = 4096

Kind = Literal["json_object", "json_schema", "regex", "choice", "grammar", "structural_tag"]

_BETWEEN = {"whitespace_pattern": r"\x20|\x0A(\x20{0,20}|\x09{1,10})"}
"""White space between the parts of JSON: a space, or a line break and what indents the next line. How JSON is laid out
is the model's business, within reason: small models like white space without end."""


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """One of the kinds, and what it says.

    json_object: any JSON object (value: None). json_schema: a JSON Schema, as an object, a boolean or its text.
    regex: the whole answer matches (Rust's syntax; no look-around, no back-references). choice: one of these texts.
    grammar: Lark's notation as llguidance reads it, or llama.cpp's GBNF.
    structural_tag: text in which everything that begins with a trigger is one of some tags: begin, JSON of a schema,
    end ({"structures": [{"begin", "schema", "end"}], "triggers": […]}).
    """

    kind: Kind
    value: Any = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise GrammarError(
                f"{str(self.kind)[:40]!r} is no kind of structure; accepted: {', '.join(get_args(Kind))}"
            )

    def description(self) -> str:
        """The grammar as it travels. Raises GrammarError for what is no description of its kind, or too large."""
        return _DESCRIBE[self.kind](self.value)

    def rule(self) -> str | None:
        """The same as a part of a rule, to stand in another grammar; None for a grammar, and text with tags."""
        if self.kind in ("grammar", "structural_tag"):
            return None
        return self.description().removeprefix("start: ")


def _json_object(value: Any) -> str:
    return _json_schema({"type": "object"})


def _json_schema(value: Any) -> str:
    if isinstance(value, str):
        try:
            value = json.loads(_within(value, "the schema"))
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"the schema is not JSON: {str(error)[:100]}") from None
    return f"start: {schema_rule(value)}"


def schema_rule(schema: Any) -> str:
    """A part of a rule that a JSON value of a schema matches. Raises GrammarError."""
    if not isinstance(schema, (Mapping, bool)):
        raise GrammarError("the schema must be an object, true or false")
    if _deeper(schema, MOST_DEPTH):
        raise GrammarError(f"the schema is nested deeper than {MOST_DEPTH} levels")
    if schema is False:
        raise GrammarError("the schema is false, which nothing matches")
    if schema is True:
        schema = {}
    text = json.dumps({**_whole(schema), "x-guidance": _BETWEEN}, ensure_ascii=False)
    return f"%json {_within(text, 'the schema')}"


def _regex(value: Any) -> str:
    return f"start: {regex_rule(value)}"


def regex_rule(value: Any) -> str:
    """A part of a rule that a text matches as a whole. Anchors at its ends say what holds anyway."""
    text = _within(value, "the regular expression").removeprefix("^")
    if text.endswith("$") and (len(text) - len(text[:-1].rstrip("\\"))) % 2 == 1:
        text = text[:-1]
    if not text:
        raise GrammarError("the regular expression is empty; an answer has at least one character")
    return f"/{_slashes(text)}/"


def _choice(value: Any) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise GrammarError("the choices must be a list of texts, one at least")
    if len(value) > MOST_CHOICES:
        raise GrammarError(f"there are {len(value)} choices; accepted are at most {MOST_CHOICES}")
    if not all(isinstance(one, str) and one for one in value):
        raise GrammarError("a choice must be a text of at least one character")
    return f"start: {_within(' | '.join(map(literal, value)), 'the list of choices')}"


def _grammar(value: Any) -> str:
    text = _within(value, "the grammar")
    if not text.strip():
        raise GrammarError("the grammar is empty")
    if "%llguidance" in text:
        raise GrammarError("the grammar sets options with %llguidance; they are not the request's to set")
    return text


def _structural_tag(value: Any) -> str:
    if not isinstance(value, Mapping) or not isinstance(value.get("structures"), list) or not value["structures"]:
        raise GrammarError("a structural tag must be an object with structures, a list of one at least")
    triggers = value.get("triggers")
    if not isinstance(triggers, list) or not all(isinstance(one, str) and one for one in triggers):
        raise GrammarError("triggers must be a list of texts")
    tags = []
    for index, tag in enumerate(value["structures"]):
        if not isinstance(tag, Mapping) or not isinstance(tag.get("begin"), str) or not isinstance(tag.get("end"), str):
            raise GrammarError(f"structures[{index}] must have a begin and an end, both texts")
        trigger = next((one for one in triggers if tag["begin"].startswith(one)), None)
        if trigger is None:
            raise GrammarError(f"structures[{index}].begin starts with none of the triggers")
        tags.append((trigger, tag["begin"], schema_rule(tag.get("schema", {})), tag["end"]))
    return _within(tagged(tags), "the structural tag")


def tagged(tags: Iterable[tuple[str, str, str, str]], *, text_between: bool = True, at_least: int = 0) -> str:
    """The grammar of free text with tags in it, each (trigger, begin, the rule of its content, end).

    ``begin`` starts with the trigger; wherever the trigger comes, one of its tags must. Without ``text_between``
    nothing but tags is allowed. ``at_least``: so many tags.
    """
    rules = []
    by_trigger: dict[str, list[str]] = {}
    for index, (trigger, begin, content, end) in enumerate(tags):
        parts = [literal(begin[len(trigger) :]) if begin != trigger else "", content, literal(end) if end else ""]
        rules.append(f"tag_{index}: {' '.join(part for part in parts if part)}")
        by_trigger.setdefault(trigger, []).append(f"tag_{index}")
    for index, (trigger, names) in enumerate(by_trigger.items()):
        head = f"head_{index}[lazy]: TEXT {literal(trigger)}" if text_between else f"head_{index}: {literal(trigger)}"
        rules += [head, f"tags_{index}: head_{index} ({' | '.join(names)})"]
    one = " | ".join(f"tags_{index}" for index in range(len(by_trigger)))
    many = f"({one}){{{at_least},}}" if at_least else f"({one})*"
    start = f"start: {many} tail\ntail: TEXT\nTEXT: /(.|\\n)*/" if text_between else f"start: {many}"
    return "\n".join([start, *rules])


def literal(text: str) -> str:
    """A text as a grammar spells it."""
    return json.dumps(text, ensure_ascii=False)


def _within(text: Any, what: str) -> str:
    if not isinstance(text, str):
        raise GrammarError(f"{what} must be a text")
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MOST_BYTES:
        raise GrammarError(f"{what} has {size} bytes; accepted are at most {MOST_BYTES}")
    return text


def _deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists nest deeper than that; no deeper recursion than that either."""
    if not isinstance(value, (Mapping, list, tuple)):
        return False
    inner = value.values() if isinstance(value, Mapping) else value
    return levels == 0 or any(_deeper(one, levels - 1) for one in inner)


def _whole(value: Any) -> Any:
    """Numbers without a fraction as integers: to JSON Schema 2.0 is 2."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _whole(one) for name, one in value.items()}
    return [_whole(one) for one in value] if isinstance(value, (list, tuple)) else value


def _slashes(text: str) -> str:
    """A regular expression as a grammar spells it between slashes."""
    out, escaped = [], False
    for letter in text:
        if escaped:
            out.append("\\n" if letter == "\n" else "\\" + letter)
        elif letter in "/\n\r":
            out.append({"/": "\\/", "\n": "\\n", "\r": "\\r"}[letter])
        elif letter != "\\":
            out.append(letter)
        escaped = letter == "\\" and not escaped
    return "".join(out) + ("\\" if escaped else "")


_DESCRIBE = {
    "json_object": _json_object,
    "json_schema": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "structural_tag": _structural_tag,
}
