# SPDX-License-Identifier: Apache-2.0
"""The general questions: every right answer is right and the only one, nothing repeats, no trick earns points."""

import contextlib
import io
import re
from collections import Counter

import numpy as np
import pytest

from linnet.evals.general import KINDS, general_questions
from linnet.evals.general.code import SHOWN
from linnet.evals.questions import Question

SEEDS = (0, 1, 2)
QUESTIONS = [question for seed in SEEDS for question in general_questions(seed).questions]


def of(ability: str) -> list[Question]:
    return [question for question in QUESTIONS if question.ability == ability]


def right(question: Question) -> str:
    return question.choices[int(question.answer)].strip()


def test_the_set_of_a_version_never_changes() -> None:
    """Scores of two days compare only if the questions are the same: a change needs a new VERSION and this digest."""
    questions = general_questions()
    assert questions.name == "general-1"
    assert questions.digest == general_questions().digest
    assert questions.digest != general_questions(1).digest
    assert questions.digest == "6834c973bd8089891d0e9b15ba8195a2f1e1926718f1395390f8f8007e4b99c2"


def test_two_thousand_questions_of_every_ability_and_level() -> None:
    questions = general_questions()
    counts = Counter(question.ability for question in questions.questions)
    assert counts == {name: count for name, _, count in KINDS}
    assert 1900 <= sum(counts.values()) <= 2200
    for name in questions.abilities:
        first = [question.level for question in questions.questions if question.ability == name][:24]
        assert len(set(first)) >= 2, f"{name}: the first questions are all of one level"


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_repeats_and_every_question_is_well_formed(seed: int) -> None:
    questions = general_questions(seed).questions
    assert all(question.problem() is None for question in questions)
    assert all(len(set(question.choices)) == len(question.choices) for question in questions)
    texts = [(question.prompt, question.messages, tuple(sorted(question.choices))) for question in questions]
    assert [text for text, count in Counter(texts).items() if count > 1] == []
    assert len({question.id for question in questions}) == len(questions)


def test_no_place_is_likelier_to_be_right() -> None:
    for choices in (2, 3, 4):
        places = Counter(int(q.answer) for q in QUESTIONS if len(q.choices) == choices)
        expected = sum(places.values()) / choices
        assert all(abs(places[place] - expected) < 4 * np.sqrt(expected) for place in range(choices))


@pytest.mark.parametrize("longest", [True, False])
def test_length_tells_little(longest: bool) -> None:
    """Who always takes the longest or the shortest choice stays near chance over all questions."""
    score = chance = 0.0
    for question in QUESTIONS:
        lengths = [len(choice) for choice in question.choices]
        extreme = max(lengths) if longest else min(lengths)
        taken = [number for number, length in enumerate(lengths) if length == extreme]
        score += (question.answer in taken) / len(taken)
        chance += 1 / len(question.choices)
    assert abs(score - chance) / len(QUESTIONS) < 0.05


def number(text: str) -> int:
    found = re.search(r"-?\d+", text)
    assert found is not None, text
    return int(found.group())


def test_arithmetic_is_right() -> None:
    """Computed anew from the text that the model reads."""
    operations = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}
    for question in of("arithmetic"):
        line = str(question.prompt).splitlines()[-1] if "Answer:" not in str(question.prompt) else ""
        if "Answer:" in str(question.prompt):
            line = str(question.prompt).splitlines()[-2].removeprefix("Question: What is ").removesuffix("?")
            for word, sign in operations.items():
                line = line.replace(word, sign)
        elif "has" in line:
            x, y = map(int, re.findall(r"\d+", line))
            line = f"{x} + {y}" if "more" in line else f"{x} - {y}"
        value = eval(line.removesuffix("="))
        assert number(right(question)) == value, question
        assert value not in [number(c) for i, c in enumerate(question.choices) if i != question.answer]


def test_code_prints_what_is_said() -> None:
    for question in of("code"):
        program = str(question.prompt).removeprefix(SHOWN).removesuffix("# prints:")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(program, {})
        assert printed.getvalue() == right(question) + "\n", question


def test_ordering_and_counting_are_right() -> None:
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    seen = Counter[str]()
    for question in of("ordering") + of("counting"):
        text, answer = str(question.prompt), right(question)
        if match := re.match(r"The day that comes (two days |three days )?(after|before) (\w+) is", text):
            steps = {"": 1, "two days ": 2, "three days ": 3}[match[1] or ""] * (1 if match[2] == "after" else -1)
            assert answer == days[(days.index(match[3]) + steps) % 7]
            seen["day"] += 1
        elif match := re.match(r"Numbers: (.*)\nFrom the (smallest|largest)", text):
            numbers = sorted(map(int, match[1].split(", ")), reverse=match[2] == "largest")
            assert answer == ", ".join(map(str, numbers))
            seen["sorted"] += 1
        elif match := re.match(r"Words: (.*)\nQuestion: Which word comes (first|last)", text):
            assert answer == (min if match[2] == "first" else max)(match[1].split(", "))
            seen["alphabet"] += 1
        elif re.fullmatch(r"(\d+, )+\d+,", text):
            numbers = [int(part) for part in text.split(",") if part.strip()]
            assert {after - before for before, after in zip(numbers, [*numbers[1:], int(answer)], strict=True)} == {
                numbers[1] - numbers[0]
            }
            seen["count on"] += 1
        elif match := re.match(r"List: (.*)\.\nQuestion: How many words", text):
            assert int(answer) == len(match[1].split(", "))
            seen["listed"] += 1
        elif match := re.match(r"List: (.*)\.\nQuestion: How many \w+ are (\w+)", text):
            assert int(answer) == match[1].split().count(match[2])
            seen["colour"] += 1
        elif "How many letters" in text:
            assert int(answer) == len(re.findall(r"word (\w+)\?", text)[-1])
            seen["letters"] += 1
    assert len(seen) == 7 and min(seen.values()) > 10, seen  # noqa: PT018


def test_recall_is_right() -> None:
    seen = Counter[str]()
    for question in of("recall"):
        text, answer = str(question.prompt), right(question)
        has = dict(re.findall(r"(\w+) has the (\w+)\.", text))
        colours = dict(re.findall(r"The (\w+) is (\w+)\.", text))
        if match := re.search(r"What does (\w+) have", text):
            assert answer == has[match[1]]
        elif match := re.search(r"Who has the (\w+)\?", text):
            assert has[answer] == match[1]
        elif match := re.search(r"the thing that (\w+) has", text):
            assert answer == colours[has[match[1]]]
        elif match := re.search(r"Where is (\w+) now", text):
            assert answer == re.findall(rf"{match[1]} (?:is in|goes to) the (\w+)", text)[-1]
        elif match := re.search(r"The number of the (.*) is$", text):
            assert answer == dict(re.findall(r"(.*): (\d+)", text))[match[1]]
        elif match := re.match(r"List: (.*)\nThe same list: (.*),$", text):
            assert answer == match[1].split(", ")[len(match[2].split(", "))]
        else:
            match = re.match(r"Number: (\d+)\nThe same number: (\d+)$", text)
            assert match is not None
            assert match[1] == match[2] + answer
        seen[text.split(":")[0][:6]] += 1
    assert len(seen) > 4


def test_a_fact_has_one_object_in_its_relation() -> None:
    """A right answer of a question is never offered as a wrong one of the same question in other words."""
    facts: dict[str, set[str]] = {}
    for question in of("facts"):
        facts.setdefault(str(question.prompt), set()).add(right(question))
    assert [prompt for prompt, answers in facts.items() if len(answers) > 1] == []


def test_refusal_pairs_cancel_a_fixed_answer() -> None:
    """A model that always says one of the answers gets half of the questions."""
    for seed in SEEDS:
        questions = [q for q in general_questions(seed).questions if q.ability == "refusal"]
        refused = sum("n't" in right(question) for question in questions)
        assert refused == len(questions) / 2
