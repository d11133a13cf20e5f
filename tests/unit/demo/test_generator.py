# SPDX-License-Identifier: Apache-2.0
"""The generator is a function of its seed, and nothing that is asked in evaluation is ever trained on."""

import itertools
import json

import pytest
from questions import held_out_texts, make_questions
from small_world.episode import chat_segments
from small_world.mix import LONG_SHARES, SHORT_SHARES, stream
from small_world.prose import Prose
from small_world.world import RELATIONS, make_world

from linnet.demo import heldout_file, questions_file

SEED = 1
EPISODES = 6_000


@pytest.fixture(scope="module")
def world():
    return make_world(SEED)


@pytest.fixture(scope="module")
def prose():
    return Prose(None)


@pytest.fixture(scope="module")
def stored_questions():
    return [json.loads(line) for line in questions_file().read_text(encoding="utf-8").splitlines()]


def test_same_seed_makes_same_world_and_stream(world, prose):
    again = make_world(SEED)
    assert again == world
    for shares in (SHORT_SHARES, LONG_SHARES):
        first = [episode.segments for episode in itertools.islice(stream(world, prose, "a", shares), 300)]
        second = [episode.segments for episode in itertools.islice(stream(again, prose, "a", shares), 300)]
        assert first == second


def test_other_seeds_differ(world, prose):
    assert make_world(SEED + 1) != world
    first, second = ("".join(e.text for e in itertools.islice(stream(world, prose, s), 50)) for s in ("a", "b"))
    assert first != second


def test_every_person_is_complete_and_befriends_somebody_else(world):
    for person in world.people.values():
        assert person.friend in world.people
        assert person.friend != person.name
        assert all(getattr(person, relation) for relation in RELATIONS)


def test_stored_files_are_what_the_generator_writes(world, stored_questions):
    assert make_questions(world, SEED) == stored_questions
    assert "---\n".join(held_out_texts(world, SEED)) == heldout_file().read_text(encoding="utf-8")


def test_missing_prose_is_said_and_skipped(world, tmp_path, capsys):
    empty = Prose(tmp_path)
    assert "not found" in capsys.readouterr().out
    assert next(stream(world, empty, "a")).text


def test_no_held_out_question_or_text_is_in_the_training_stream(world, prose, stored_questions):
    texts = [episode.text for episode in itertools.islice(stream(world, prose, "wall"), EPISODES)]
    texts += [episode.text for episode in itertools.islice(stream(world, prose, "wall", LONG_SHARES), EPISODES // 40)]
    openings = {start for text in texts for start in beginnings(text)}
    for entry in stored_questions:
        assert asked_text(entry) not in openings, entry["id"]
    held_out = set(heldout_file().read_text(encoding="utf-8").split("---\n"))
    assert held_out.isdisjoint(text.removesuffix("<|endoftext|>") for text in texts)


def asked_text(entry):
    """Return everything up to the answer."""
    if "messages" in entry:
        messages = tuple((message["role"], message["content"]) for message in entry["messages"])
        return "".join(text for text, _ in chat_segments(messages)) + "<|assistant|>"
    return entry["prompt"]


def beginnings(text):
    """Yield every beginning of a training text after which an answer may follow, and its words one by one."""
    for position, character in enumerate(text):
        if character in " \n>":
            yield text[:position]
            yield text[: position + 1]
