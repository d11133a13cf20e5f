# SPDX-License-Identifier: Apache-2.0
"""Ability scores: which questions a model answers rightly, one boolean a question, so that models can be paired."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from linnet.api import LLM, SamplingParams
from linnet.errors import ConfigError
from linnet.evals.questions import Question, QuestionSet, chat_turns

QUESTIONS_IN_CACHE = 16
"""So few that their prompts surely still lie in the prefix cache when their other choices come."""

Progress = Callable[[str, int, int], None]
"""Called as (stage, done, total) while work goes on."""


@dataclass(frozen=True)
class Answers:
    """Right or wrong, in the order of the question set, and the text a model generated for exact questions."""

    correct: np.ndarray
    generated: dict[str, str]


def answer(llm: LLM, questions: QuestionSet, progress: Progress) -> Answers:
    """Put every question to the model: choices by summed log-likelihood, exact ones by greedy generation."""
    correct = np.zeros(len(questions.questions), dtype=bool)
    indexed = list(enumerate(questions.questions))
    choice = [(index, question) for index, question in indexed if question.kind == "choice"]
    exact = [(index, question) for index, question in indexed if question.kind == "exact"]
    for index, chosen in zip([i for i, _ in choice], _choose(llm, [q for _, q in choice], progress), strict=True):
        correct[index] = chosen == questions.questions[index].answer
    generated: dict[str, str] = {}
    for (index, question), text in zip(exact, _generate(llm, [q for _, q in exact], progress), strict=True):
        generated[question.id] = text
        correct[index] = text.strip() == str(question.answer).strip()
    return Answers(correct, generated)


def fitting(llm: LLM, questions: QuestionSet, context: int) -> QuestionSet:
    """The questions that a context of so many tokens holds, answer included. ConfigError if it holds none."""
    fit = tuple(question for question in questions.questions if _longest(llm, question) <= context)
    if not fit:
        raise ConfigError(f"none of the {len(questions.questions):,} questions fits into a context of {context} tokens")
    return questions if len(fit) == len(questions.questions) else QuestionSet(questions.name, fit)


def _longest(llm: LLM, question: Question) -> int:
    if question.kind == "exact":
        return len(_prompt_ids(llm, question)) + question.max_tokens
    return max(len(_prompt_ids(llm, question, choice)) for choice in question.choices)


def _prompt_ids(llm: LLM, question: Question, continuation: str = "") -> list[int]:
    """The tokens of a prompt and its continuation; a whole text stands behind the token that begins one."""
    tokenizer = llm.tokenizer
    if question.prompt is not None:
        tokens = tokenizer.encode(question.prompt + continuation)
        return tokens if question.prompt or tokenizer.adds_bos else [*_beginning(llm), *tokens]
    if not tokenizer.templates.names:
        turns = [f"{message.role.title()}: {message.content}\n" for message in question.messages or ()]
        return tokenizer.encode("".join(turns) + "Assistant:" + (f" {continuation}" if continuation else ""))
    rendered = tokenizer.apply_chat_template(chat_turns(question), add_generation_prompt=True)
    return tokenizer.encode_chat(rendered + continuation)


def _beginning(llm: LLM) -> list[int]:
    """What a text begins behind: the model's BOS; failing that the end of another text, failing that a new line."""
    for token in (llm.tokenizer.bos_token_id, *sorted(llm.tokenizer.eos_token_ids)):
        if token is not None:
            return [token]
    return llm.tokenizer.encode("\n")


def _choose(llm: LLM, questions: Sequence[Question], progress: Progress) -> list[int]:
    """The index of the likeliest choice of every question."""
    rows: list[list[int]] = []
    starts: list[int] = []
    owners: list[tuple[int, int]] = []
    for number, choice in _order(questions):
        question = questions[number]
        prompt = _prompt_ids(llm, question)
        row = _prompt_ids(llm, question, question.choices[choice])
        start = _common_prefix(prompt, row)
        if start == 0 or start == len(row):
            raise ConfigError(f"question {question.id}: choice {question.choices[choice]!r} adds no token to score")
        rows.append(row)
        starts.append(start)
        owners.append((number, choice))
    scores = llm.score(rows, starts=starts, progress=lambda done, total: progress("questions", done, total))
    totals = [[0.0] * len(question.choices) for question in questions]
    for (number, choice), score in zip(owners, scores, strict=True):
        totals[number][choice] = float(np.sum(score, dtype=np.float64))
    return [int(np.argmax(total)) for total in totals]


def _order(questions: Sequence[Question]) -> Iterator[tuple[int, int]]:
    """(question, choice) pairs; the first choices of a few questions, then the others, whose prompt is cached."""
    for begin in range(0, len(questions), QUESTIONS_IN_CACHE):
        few = range(begin, min(begin + QUESTIONS_IN_CACHE, len(questions)))
        yield from ((number, 0) for number in few)
        yield from ((number, choice) for number in few for choice in range(1, len(questions[number].choices)))


def _generate(llm: LLM, questions: Sequence[Question], progress: Progress) -> list[str]:
    prompts = [_prompt_ids(llm, question) for question in questions]
    parameters = [
        SamplingParams(temperature=0.0, max_tokens=question.max_tokens, stop=question.stop) for question in questions
    ]
    outputs = llm.generate(prompts, parameters, progress=lambda done, total: progress("answers", done, total))
    return [output.outputs[0].text for output in outputs]


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that stay the same when the choice is appended: merges at the seam belong to the choice."""
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return length
