# SPDX-License-Identifier: Apache-2.0
"""Which forms a model writes calls and thoughts in, and what that makes of a request: found from its template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from linnet.api.structured import StructuredOutput
from linnet.api.tools.answer import AnswerForm
from linnet.api.tools.channels import Channels
from linnet.api.tools.grammar import Rules
from linnet.api.tools.in_text import in_text
from linnet.api.tools.interface import CallForm, Tool
from linnet.api.tools.names import ALIASES, AUTO, CALL_FORMS, NONE, THOUGHTS
from linnet.api.tools.reasoning import Thoughts
from linnet.engine import GrammarError
from linnet.errors import unknown_choice
from linnet.text import Tokenizer
from linnet.text.call_form import CallShape

WITHOUT_TOOLS = "hermes"
"""How calls are written where the template knows none."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request. ``tools``: those that may be called; ``shown``: all, as the client describes them.

    ``choice``: whether one must be called. ``many``: whether several may be.
    """

    tools: tuple[Tool, ...]
    shown: tuple[Mapping[str, Any], ...]
    choice: Literal["auto", "required"] = "auto"
    many: bool = True

    @property
    def all_strict(self) -> bool:
        """Whether no tool's arguments may be other than its schema says."""
        return all(tool.strict for tool in self.tools)


@dataclass(frozen=True, slots=True)
class Enforced:
    """Grammars: of the request as it is, and one that holds arguments to strict schemas only; None: no such one."""

    grammar: str
    loose: str | None = None


class ModelForms:
    """For one model. May be used from several threads."""

    def __init__(self, tokenizer: Tokenizer, tool_parser: str = AUTO, reasoning_parser: str = AUTO) -> None:
        """Raises ConfigError for names that there are not."""
        check_parsers(tool_parser, reasoning_parser)
        self._tokenizer, self._tool_parser, self._reasoning_parser = tokenizer, tool_parser, reasoning_parser

    @cached_property
    def shape(self) -> CallShape:
        """What the template does with tools."""
        return self._tokenizer.call_shape()

    @cached_property
    def calls(self) -> CallForm:
        """How calls are written."""
        if self._tool_parser != AUTO:
            return CALL_FORMS[self._tool_parser]
        shown = self.shape.shown
        found = None if shown is None else next((one for one in CALL_FORMS.values() if one.claims(shown)), None)
        return found or CALL_FORMS[WITHOUT_TOOLS]

    @cached_property
    def thoughts(self) -> Thoughts | None:
        """How thoughts are written; None: not, or as the form of calls says."""
        wanted = ALIASES.get(self._reasoning_parser, self._reasoning_parser)
        if wanted == NONE or self.in_channels:
            return None
        if wanted != AUTO:
            return THOUGHTS[wanted]
        sources = "".join(self._tokenizer.templates.sources.values())
        return next((one for one in THOUGHTS.values() if one.closing in sources), None)

    @cached_property
    def in_channels(self) -> bool:
        """Whether every answer is read by the form of calls, which has thoughts too."""
        return isinstance(self.calls, Channels)

    @property
    def thinks(self) -> bool:
        """Whether thoughts are told apart."""
        return self.in_channels or self.thoughts is not None

    def shown(
        self, messages: Sequence[Mapping[str, Any]], use: ToolUse | None
    ) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None]:
        """Messages and tools as the template can show them."""
        tools = () if use is None else use.shown
        if not tools and not any(one.get("tool_calls") or one.get("role") == "tool" for one in messages):
            return messages, None
        return in_text(messages, tools, self.calls, self.shape)

    def answer_form(self, prompt: str, use: ToolUse | None, wanted: StructuredOutput | None) -> AnswerForm | None:
        """How answers to the prompt are read; None: as they are."""
        calls = self.calls if use is not None or self.in_channels else None
        thoughts = self.thoughts
        if wanted is not None and use is None and wanted.rule() is None:
            return None  # the grammar is the request's, thoughts and all
        if calls is None and thoughts is None:
            return None
        markers = [*(calls.markers if calls is not None else ()), *(thoughts.markers if thoughts is not None else ())]
        return AnswerForm(
            calls=calls,
            thoughts=thoughts,
            begun=thoughts.begun(prompt) if thoughts is not None else False,
            tools={} if use is None else {tool.name: tool for tool in use.tools},
            shown=frozenset(self._special(markers).values()),
            short_ids=calls is not None and self.shape.short_ids,
        )

    def enforced(
        self, form: AnswerForm | None, use: ToolUse | None, wanted: StructuredOutput | None
    ) -> Enforced | None:
        """What the answers must be. Raises GrammarError."""
        if use is None and wanted is None:
            return None
        if form is None:
            assert wanted is not None
            return Enforced(wanted.description())
        strict = use is None or use.all_strict
        said = None if wanted is None else wanted.rule()
        if wanted is not None and said is None:
            raise GrammarError("a grammar or tags cannot be given beside tools: an answer has one form")
        loose = None if strict else self._grammar(form, use, said, loose=True)
        try:
            return Enforced(self._grammar(form, use, said), loose)
        except GrammarError:
            if loose is None:
                raise
            return Enforced(loose)

    def _grammar(self, form: AnswerForm, use: ToolUse | None, said: str | None, *, loose: bool = False) -> str:
        rules = Rules(self._special(ALL_MARKERS), loose)
        answer = None if said is None else rules.rule(said)
        if form.calls is None:
            assert answer is not None
            body = answer
        else:
            tools = () if use is None else use.tools
            must = use is not None and use.choice == "required"
            body = form.calls.grammar(rules, tools, many=use is not None and use.many, must=must, said=answer)
        thought = "" if form.thoughts is None else form.thoughts.grammar(rules, form.begun)
        return rules.document(f"{thought} {body}".strip())

    def _special(self, markers: Sequence[str]) -> dict[str, int]:
        """Those that are special tokens."""
        found = ((marker, self._tokenizer.token_id(marker)) for marker in markers)
        special = self._tokenizer.special_token_ids
        return {marker: token_id for marker, token_id in found if token_id is not None and token_id in special}


ALL_MARKERS = tuple(
    dict.fromkeys(
        [
            *(marker for one in CALL_FORMS.values() for marker in one.markers),
            *(marker for thoughts in THOUGHTS.values() for marker in thoughts.markers),
        ]
    )
)


def check_parsers(tool_parser: str, reasoning_parser: str) -> None:
    """Raises ConfigError for names that there are not."""
    if tool_parser != AUTO and tool_parser not in CALL_FORMS:
        raise unknown_choice("tool_parser", tool_parser, (AUTO, *CALL_FORMS))
    if reasoning_parser not in (AUTO, NONE, *THOUGHTS, *ALIASES):
        raise unknown_choice("reasoning_parser", reasoning_parser, (AUTO, NONE, *THOUGHTS, *ALIASES))
