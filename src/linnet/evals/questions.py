# SPDX-License-Identifier: Apache-2.0
"""Question sets: JSON Lines on disk, typed records here. A wrong line is an error naming file and line."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from linnet.errors import ConfigError, record_error


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One question. ``choice``: the likeliest continuation wins; ``exact``: greedy text must equal ``answer``.

    Exactly one of ``prompt`` (plain text) and ``messages`` (rendered with the chat template) is set. An empty
    ``prompt`` makes whole texts of the choices. ``level``: how hard, 1 (easy) to 3; 0: not said.
    """

    id: str
    ability: str
    kind: Literal["choice", "exact"]
    answer: int | str
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    choices: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    max_tokens: int = 32
    level: int = 0

    @property
    def chance(self) -> float:
        """What guessing gets."""
        return 1 / len(self.choices) if self.kind == "choice" else 0.0

    def problem(self) -> str | None:
        """What is wrong with this question, or None."""
        if (self.prompt is None) == (self.messages is None):
            return "needs exactly one of 'prompt' and 'messages'"
        if self.kind == "exact":
            return None if isinstance(self.answer, str) and self.answer else "'answer' must be a non-empty string"
        if len(self.choices) < 2:
            return f"needs at least two choices, has {len(self.choices)}"
        if not isinstance(self.answer, int) or not 0 <= self.answer < len(self.choices):
            return f"'answer' {self.answer!r} is not an index into its {len(self.choices)} choices"
        return None


@dataclass(frozen=True)
class QuestionSet:
    """The questions with the name their scores are reported under."""

    name: str
    questions: tuple[Question, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the questions in their order, whatever file they came from."""
        return hashlib.sha256(msgspec.json.encode(self.questions)).hexdigest()

    @property
    def abilities(self) -> tuple[str, ...]:
        """Abilities in the order they first appear."""
        return tuple(dict.fromkeys(question.ability for question in self.questions))


def read_questions(path: Path) -> QuestionSet:
    """Read a ``.jsonl`` question set; ConfigError names the line that does not fit."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"question set {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"question set {path} is not UTF-8 text (byte {error.start})") from error
    questions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            question = msgspec.json.decode(line, type=Question)
        except msgspec.DecodeError as error:
            raise ConfigError(f"question set {path}, line {number}: {record_error(str(error))}") from error
        if problem := question.problem():
            raise ConfigError(f"question set {path}, line {number} ({question.id}): {problem}")
        questions.append(question)
    if not questions:
        raise ConfigError(f"question set {path} has no questions")
    return QuestionSet(path.stem, tuple(questions))


def subset(questions: QuestionSet, per_ability: int | None) -> QuestionSet:
    """The first ``per_ability`` questions of every ability (None: all). ConfigError for less than one."""
    if per_ability is None:
        return questions
    if per_ability < 1:
        raise ConfigError(f"per_ability is {per_ability}; accepted is 1 or more", settings=["per_ability"])
    taken: list[Question] = []
    counts: dict[str, int] = {}
    for question in questions.questions:
        counts[question.ability] = counts.get(question.ability, 0) + 1
        if counts[question.ability] <= per_ability:
            taken.append(question)
    return QuestionSet(questions.name, tuple(taken))


def chat_turns(question: Question) -> Sequence[dict[str, str]]:
    """The messages as plain dictionaries, as chat templates read them."""
    return [{"role": message.role, "content": message.content} for message in question.messages or ()]
