# SPDX-License-Identifier: Apache-2.0
"""Between a conversation and its answer: what the answer must be, and the message that it comes to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from linnet.api.generation import Sample
from linnet.api.structured import StructuredOutput
from linnet.api.tools import AnswerForm, Enforced, ModelForms, ToolUse
from linnet.engine import GrammarError


@dataclass(frozen=True, slots=True)
class Answering:
    """Of one prompt. form: how its answers are read; None: as they are. grammar: what they must be."""

    form: AnswerForm | None = None
    grammar: str | None = None

    @property
    def shown(self) -> frozenset[int]:
        """Special tokens that the text must show to be read."""
        return frozenset() if self.form is None else self.form.shown

    def message(self, sample: Sample) -> dict[str, Any]:
        """What a finished sample comes to, as the conversation goes on with it."""
        text = sample.stream.text
        if self.form is None:
            return {"role": "assistant", "content": text}
        return self.form.message(text, str(sample.submit.request_id), sample.index)


def answering(
    forms: ModelForms,
    prompt: str,
    use: ToolUse | None,
    wanted: StructuredOutput | None,
    check: Callable[[str], None],
    goes_on: bool,
) -> Answering:
    """``check`` raises GrammarError for a grammar that cannot be used; tools that are not strict are held loosely then.

    ``goes_on``: the answer has begun in the prompt; then nothing is told apart but calls. Raises GrammarError.
    """
    form = None if goes_on and use is None else forms.answer_form(prompt, use, wanted)
    enforced = forms.enforced(form, use, wanted)
    return Answering(form, None if enforced is None else _usable(enforced, check))


def _usable(enforced: Enforced, check: Callable[[str], None]) -> str:
    try:
        check(enforced.grammar)
    except GrammarError as error:
        if enforced.loose is None or not error.beyond:
            raise
        check(enforced.loose)
        return enforced.loose
    return enforced.grammar
