# SPDX-License-Identifier: Apache-2.0
"""Beam search, where it ends and what it refuses; that its answers are right is tests/golden/test_beam_search.py."""

from dataclasses import replace

import pytest

from linnet.engine import EngineFacts, ParameterError, SamplingParams, Submit
from linnet.engine.beams import BeamGroup
from linnet.scheduler import Request, Scheduler, SchedulerConfig, StepResult, Tokens

CONFIG = SchedulerConfig(num_blocks=64, max_model_len=256, block_size=16, max_sequences=8, token_budget=64)
FACTS = EngineFacts(vocabulary_size=100, scheduling=CONFIG)


def submit(**params: object) -> Submit:
    return Submit(
        request_id=0,
        prompt_token_ids=(1, 2, 3),
        params=SamplingParams(use_beam_search=True, **{"n": 3, **params}),  # type: ignore[arg-type]
        max_tokens=4,
        stop_token_ids=frozenset({9}),
    )


def group(one: Submit) -> tuple[BeamGroup, list[Request]]:
    beams = BeamGroup(one)
    requests = [
        Request(request_id=index, prompt_token_ids=(1, 2, 3), max_new_tokens=4) for index in range(one.params.n)
    ]
    for request in requests:
        beams.join(request)
    return beams, requests


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"params": SamplingParams(use_beam_search=True, n=9)}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop_token_ids": frozenset(range(65))}, "stop_token_ids"),
        ({"max_tokens": 250, "params": SamplingParams(use_beam_search=True, n=8)}, "n"),
    ],
)
def test_what_can_never_run_is_refused(change: dict[str, object], param: str) -> None:
    FACTS.validate(submit())
    with pytest.raises(ParameterError) as caught:
        FACTS.validate(replace(submit(), **change))  # type: ignore[arg-type]
    assert caught.value.param == param


def test_every_beam_needs_a_token_of_its_own() -> None:
    """Three beams and a stop token of three: one beam would have nothing to go on with."""
    with pytest.raises(ParameterError, match="at most 2"):
        replace(FACTS, vocabulary_size=3).validate(
            replace(submit(), prompt_token_ids=(1,), stop_token_ids=frozenset({2}))
        )


def test_nothing_happens_until_every_beam_has_an_offer() -> None:
    beams, _ = group(submit())
    for request_id in (0, 2):
        beams.offer(request_id, [5, 6, 7, 8], [-0.1, -0.2, -0.3, -0.4])
    assert beams.choose() == {}
    assert not beams.ended
    for request_id in (0, 1, 2):
        beams.offer(request_id, [5, 6, 7, 8], [-0.1, -0.2, -0.3, -0.4])
    assert {one: tokens.token_ids for one, tokens in beams.choose().items()} == {0: (5,), 1: (6,), 2: (7,)}


def test_a_likelier_beam_takes_the_place_of_a_poor_one() -> None:
    beams, requests = group(submit())
    for request in requests:
        beams.offer(request.request_id, [5, 6, 7, 8], [-0.1, -2.0, -9.0, -10.0])
    for tokens in beams.choose().values():
        requests[tokens.request_id].append(tokens.token_ids[0])
    for request in requests:
        beams.offer(request.request_id, [5, 6, 7, 8], [-0.5, -0.6, -0.7, -0.8])
    assert {one: (tokens.origin, tokens.token_ids) for one, tokens in beams.choose().items()} == {
        0: (0, (5,)), 1: (0, (6,)), 2: (0, (7,))
    }  # fmt: skip


def test_as_many_alternatives_as_asked_for_are_told() -> None:
    assert BeamGroup(submit(logprobs=20)).alternatives == 20
    assert BeamGroup(submit()).alternatives == 4
    beams, requests = group(submit(logprobs=2))
    for request in requests:
        beams.offer(request.request_id, [9, 6, 7, 8], [-0.1, -0.2, -0.3, -0.4])
    beams.choose()
    assert not beams.ended


@pytest.mark.parametrize("penalty", [11, -11])
def test_a_length_penalty_beyond_all_numbers_is_refused(penalty: float) -> None:
    with pytest.raises(ParameterError, match="length_penalty"):
        SamplingParams(use_beam_search=True, length_penalty=penalty)


def test_a_search_waits_for_seats_of_all_its_beams() -> None:
    """Of eight seats one is taken for long: a search of eight beams computes nothing until it is free."""
    scheduler = Scheduler(CONFIG)
    scheduler.add(Request(request_id=100, prompt_token_ids=(5,), max_new_tokens=30))
    for one in range(8):
        scheduler.add(
            Request(request_id=one, prompt_token_ids=(1, 2, 3), max_new_tokens=2, fork_of=0 if one else None, gang=0)
        )
    computed = 0
    step = 0
    while scheduler.has_work:
        plan = scheduler.schedule(float(step))
        assert plan is not None
        beams = [item.request_id for item in plan.items if item.request_id < 100]
        computed += sum(item.n for item in plan.items if item.request_id < 100)
        tokens = {one: Tokens(one, (7,)) for one in beams if len(beams) == 8}
        tokens |= {100: Tokens(100, (7,))} if any(item.request_id == 100 for item in plan.items) else {}
        scheduler.commit(plan, StepResult(tokens), step + 0.5)
        step += 1
    assert computed < 30
