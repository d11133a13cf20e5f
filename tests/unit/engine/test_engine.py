# SPDX-License-Identifier: Apache-2.0
"""The step: batches, events, errors that stay with their request, matchers, deadlines, lockstep scoring."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from digest_executable import DigestExecutable, mix
from engine_workload import run

from linnet.backends.interface import check_batch
from linnet.backends.reference.sampling import log_softmax
from linnet.engine import (
    Control,
    Engine,
    EngineUnavailableError,
    Finished,
    GrammarError,
    Matcher,
    ParameterError,
    Participant,
    SamplingParams,
    Submit,
    Tokens,
    limits_of,
)
from linnet.engine.buffers import BatchBuffers
from linnet.errors import CapacityError, ConfigError
from linnet.scheduler import GIVEN_BACK, Sample, SchedulerConfig, Score, StepItem, StepPlan

VOCABULARY, BLOCK = 61, 4
CONFIG = SchedulerConfig(num_blocks=64, max_model_len=64, block_size=BLOCK, token_budget=32, max_sequences=8)
GREEDY = SamplingParams(temperature=0.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(config: SchedulerConfig = CONFIG, **options: object) -> tuple[Engine, DigestExecutable, Clock]:
    nan_token = options.pop("nan_token", None)
    executable = DigestExecutable(VOCABULARY, BLOCK, nan_token=nan_token)  # type: ignore[arg-type]
    clock = Clock()
    return Engine(executable, config, check=True, clock=clock, **options), executable, clock  # type: ignore[arg-type]


def ask(request_id: int = 0, prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 5, **options: object) -> Submit:
    params = options.pop("params", GREEDY)
    return Submit(
        request_id=request_id, prompt_token_ids=prompt, params=params, max_tokens=max_tokens, **options  # type: ignore[arg-type]
    )  # fmt: skip


def oracle(prompt: tuple[int, ...], new_tokens: int) -> list[int]:
    """Greedy decoding of the digest model, written down once more without engine, blocks or batches."""
    executable = DigestExecutable(VOCABULARY, BLOCK)
    state, known = 0, list(prompt)
    for position, token in enumerate(known):
        state = mix(state, token, position)
    for _ in range(new_tokens):
        known.append(int(executable._row(state, False).argmax()))
        state = mix(state, known[-1], len(known) - 1)
    return known[len(prompt) :]


def test_greedy_decoding_equals_the_oracle() -> None:
    engine, _, _ = make()
    result = run(engine, [ask(0, (5, 6, 7), 12), ask(1, (5, 6, 7, 8, 9, 10, 11), 3)])
    assert result[0].token_ids == oracle((5, 6, 7), 12)
    assert result[1].token_ids == oracle((5, 6, 7, 8, 9, 10, 11), 3)
    assert {one.reason for one in result.values()} == {"length"}


def test_buffers_describe_the_plan() -> None:
    limits = limits_of(CONFIG)
    buffers = BatchBuffers(limits)
    one = StepItem(3, 2, 4, (9, 8, 7, 6), ((5, 2),), (Score(0, (8,)), Sample(3)))
    two = StepItem(4, 0, 1, (1,), ((7,),), ())
    batch = buffers.fill(StepPlan(0, (one, two), 5))
    check_batch(batch, limits, [CONFIG.num_blocks], VOCABULARY)
    assert batch.positions.tolist() == [2, 3, 4, 5, 0]
    assert batch.kv_slots.tolist() == [[22, 23, 8, 9, 28]]
    assert batch.query_start.tolist() == [0, 4, 5]
    assert batch.context_lengths.tolist() == [6, 1]
    assert batch.output_rows.tolist() == [0, 3]
    assert batch.block_tables.tolist() == [[[5, 2], [7, 2]]]


def test_buffers_describe_what_lies_behind_a_window() -> None:
    """Blocks that were given back are never looked at; some block of the sequence's own stands for them."""
    limits = limits_of(CONFIG)
    buffers = BatchBuffers(limits, groups=2)
    one = StepItem(3, 9, 2, (9, 8), ((5, 2, 1), (GIVEN_BACK, GIVEN_BACK, 4)), (Sample(1),))
    two = StepItem(4, 0, 1, (1,), ((7,), (0,)), ())
    batch = buffers.fill(StepPlan(0, (one, two), 3))
    check_batch(batch, limits, [CONFIG.num_blocks, 5], VOCABULARY)
    assert batch.kv_slots.tolist() == [[5, 6, 28], [17, 18, 0]]
    assert batch.block_tables.tolist() == [[[5, 2, 1], [7, 1, 1]], [[4, 4, 4], [0, 4, 4]]]


def test_stop_tokens_min_tokens_and_bias() -> None:
    engine, _, _ = make()
    whole = oracle((1, 2), 8)
    end = whole[3]
    first = whole.index(end)
    result = run(engine, [ask(0, (1, 2), 8, stop_token_ids=frozenset([end]))])
    assert result[0].token_ids == whole[: first + 1]
    assert result[0].reason == "stop"
    params = SamplingParams(temperature=0.0, min_tokens=first + 1)
    late = run(engine, [ask(0, (1, 2), 8, stop_token_ids=frozenset([end]), params=params)])[0]
    assert end not in late.token_ids[: first + 1]
    biased = run(engine, [ask(0, (1, 2), 4, params=SamplingParams(temperature=0.0, logit_bias={9: 100.0}))])
    assert biased[0].token_ids == [9, 9, 9, 9]


def test_logprobs_are_of_the_raw_distribution() -> None:
    engine, executable, _ = make()
    params = SamplingParams(temperature=0.0, logprobs=3, logit_bias={9: 100.0})
    engine.submit(ask(0, (1, 2), 1, params=params))
    tokens, _ = engine.step()
    assert isinstance(tokens, Tokens)
    logprobs = log_softmax(executable.logits())[0]
    (entry,) = tokens.logprobs
    assert entry.token_id == 9
    assert entry.logprob == np.float32(logprobs[9])
    assert [token_id for token_id, _ in entry.top] == np.argsort(-logprobs, kind="stable")[:3].tolist()


@pytest.mark.parametrize("budget", [32, 5, 1])
def test_prompt_scores(budget: int) -> None:
    config = replace(CONFIG, token_budget=budget, max_sequences=1, max_output_rows=1 if budget == 1 else 3)
    engine, executable, _ = make(config)
    prompt = tuple(range(3, 23))
    params = SamplingParams(temperature=0.0, prompt_logprobs=2)
    for start in (1, 7, 19):
        engine.submit(ask(0, prompt, 0, params=replace(params, max_tokens=0), score_start=start))
        events: list[object] = []
        while engine.has_work:
            events += engine.step()
        (finished,) = events
        assert isinstance(finished, Finished)
        scores = finished.prompt_scores
        assert scores is not None
        state, expected, greedy = 0, [], []
        for position in range(len(prompt) - 1):
            state = mix(state, prompt[position], position)
            row = executable._row(state, False)
            if position + 1 >= start:
                expected.append(log_softmax(row[None])[0][prompt[position + 1]])
                greedy.append(int(row.argmax()))
        assert scores.logprobs.tolist() == np.array(expected, np.float32).tolist()
        assert scores.greedy.tolist() == greedy
        assert scores.top_ids is not None
        assert scores.top_ids[:, 0].tolist() == greedy
        assert scores.top_ids.shape == (len(prompt) - start, 2)


def test_a_prompt_of_one_token_has_empty_scores() -> None:
    engine, _, _ = make()
    engine.submit(ask(0, (4,), 1, params=SamplingParams(prompt_logprobs=0)))
    finished = engine.step()[-1]
    assert isinstance(finished, Finished)
    assert finished.prompt_scores is not None
    assert finished.prompt_scores.logprobs.shape == (0,)


def test_two_models_in_lockstep() -> None:
    own, other = DigestExecutable(VOCABULARY, BLOCK), DigestExecutable(VOCABULARY, BLOCK, salt=99)
    engine = Engine(own, CONFIG, others=[Participant(other, other.allocate_states(CONFIG.num_blocks))], check=True)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    engine.submit(ask(0, (1, 2, 3, 4), 0, params=params, compare=True))
    engine.submit(ask(1, (1, 2, 3, 4), 0, params=params))
    done = {event.request_id: event for event in engine.step() if isinstance(event, Finished)}
    compared, plain = done[0].prompt_scores, done[1].prompt_scores
    assert compared is not None
    assert plain is not None
    assert plain.kl is None
    state, theirs = 0, 99
    for position, token in enumerate((1, 2, 3)):
        state, theirs = mix(state, token, position), mix(theirs, token, position)
        p, q = (log_softmax(own._row(s, False)[None])[0] for s in (theirs, state))
        assert compared.kl is not None
        assert compared.other_logprobs is not None
        assert compared.kl[position] == pytest.approx(float((np.exp(p) * (p - q)).sum()), rel=1e-5)
        assert compared.other_logprobs[position] == np.float32(p[(1, 2, 3, 4)[position + 1]])
    with pytest.raises(ConfigError, match="no second model"):
        make()[0].submit(ask(0, params=params, compare=True))
    with pytest.raises(ConfigError, match="same vocabulary"):
        Engine(own, CONFIG, others=[Participant(DigestExecutable(5, BLOCK), None)])


@pytest.mark.parametrize("wrong", [0, 1, 2, None])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_are_verified_in_one_step(wrong: int | None, temperature: float) -> None:
    """As many tokens as guesses were right, and one more: the same tokens as without, drawn ones too."""
    params = SamplingParams(temperature=temperature, logprobs=1, repetition_penalty=1.3, min_tokens=4)
    submit = ask(0, (1, 2, 3), 8, params=params, seed=7, stop_token_ids=frozenset({5, 6, 7, 8}))
    plain = run(make()[0], [submit])[0]
    engine, executable, _ = make()
    engine.submit(submit)
    (first,) = (event for event in engine.step() if isinstance(event, Tokens))
    guesses = plain.token_ids[1:4]
    if wrong is not None:
        guesses[wrong] = (guesses[wrong] + 1) % VOCABULARY
    engine._live[0].request.draft_token_ids = tuple(guesses)
    events = engine.step()
    assert isinstance(events[0], Tokens)
    right = 4 if wrong is None else wrong + 1
    assert [*first.token_ids, *events[0].token_ids] == plain.token_ids[: 1 + right]
    assert [entry.token_id for entry in events[0].logprobs] == list(events[0].token_ids)
    rest = list(events)
    while engine.has_work:
        rest += engine.step()
    tokens = [token_id for event in rest if isinstance(event, Tokens) for token_id in event.token_ids]
    assert [*first.token_ids, *tokens] == plain.token_ids
    assert executable.steps == 1 + 1 + len(plain.token_ids) - 1 - right


@pytest.mark.parametrize("wrong", [None, 0, 1])
def test_guesses_are_checked_under_a_grammar_too(wrong: int | None) -> None:
    submit = ask(0, (1, 2), 9, params=SamplingParams(temperature=1.5), seed=4, grammar="only:7,8,9,10,11")
    plain = run(make(grammars=FixedSets())[0], [submit])[0]
    engine, executable, _ = make(grammars=FixedSets())
    engine.submit(submit)
    first = engine.step()[0]
    assert isinstance(first, Tokens)
    guesses = plain.token_ids[1:4]
    if wrong is not None:
        guesses[wrong] = 3  # not in the grammar
    engine._live[0].request.draft_token_ids = tuple(guesses)
    events = list(engine.step())
    tokens = events[0]
    assert isinstance(tokens, Tokens)
    right = 3 if wrong is None else wrong
    assert [*first.token_ids, *tokens.token_ids] == plain.token_ids[: 2 + right]
    while engine.has_work:
        events += engine.step()
    rest = [token_id for event in events if isinstance(event, Tokens) for token_id in event.token_ids]
    assert [*first.token_ids, *rest] == plain.token_ids
    assert executable.steps == 9 - right


def test_the_prompt_is_computed_while_a_grammar_is_made_and_nothing_is_sampled() -> None:
    coming: Future[Matcher] = Future()
    engine, executable, _ = make(grammars=SimpleNamespace(matcher=lambda grammar: coming))
    engine.submit(ask(0, (1, 2), 4, grammar="only:7"))
    assert [engine.step() for _ in range(3)] == [(), (), ()]
    assert executable.steps == 3
    coming.set_result(FixedSet({7}))
    events = []
    while engine.has_work:
        events += engine.step()
    assert [event.token_ids for event in events if isinstance(event, Tokens)] == [(7,)] * 4


def test_a_grammar_that_cannot_be_made_ends_its_request_only() -> None:
    coming: Future[Matcher] = Future()
    coming.set_exception(GrammarError("no such grammar"))
    engine, _, _ = make(grammars=SimpleNamespace(matcher=lambda grammar: coming))
    result = run(engine, [ask(0, (1, 2), 4, grammar="bad"), ask(1, (1, 2), 4)])
    assert (result[0].reason, result[0].error) == ("error", "no such grammar")
    assert result[1].token_ids == oracle((1, 2), 4)


def test_a_compiler_that_fails_at_once_ends_that_request_only() -> None:
    def matcher(grammar: str) -> Future[Matcher]:
        raise RuntimeError("can't start new thread")

    engine, _, _ = make(grammars=SimpleNamespace(matcher=matcher))
    result = run(engine, [ask(0, (1, 2), 4, grammar="any"), ask(1, (1, 2), 4)])
    assert result[0].reason == "error"
    assert result[1].token_ids == oracle((1, 2), 4)


@pytest.mark.parametrize("most_tokens", [3, 9])
def test_an_answer_that_is_whole_stops(most_tokens: int) -> None:
    """Also where the last token that it may have is its last one."""
    engine, _, _ = make(grammars=FixedSets())
    result = run(engine, [ask(0, (1, 2), most_tokens, grammar="ends:7,8"), ask(1, (1, 2), 2, grammar="ends:7,8")])
    assert (result[0].reason, len(result[0].token_ids)) == ("stop", 3)
    assert (result[1].reason, len(result[1].token_ids)) == ("length", 2)


def test_without_a_compiler_grammars_are_refused() -> None:
    engine, _, _ = make()
    with pytest.raises(ConfigError, match="no compiler of grammars"):
        engine.submit(ask(0, (1, 2), 4, grammar="only:7"))
    assert not engine.has_work


def test_a_request_without_a_distribution_ends_alone() -> None:
    engine, _, _ = make(nan_token=50)
    result = run(engine, [ask(0, (1, 50, 3)), ask(1, (1, 2, 3)), ask(2, (4, 5))])
    assert result[0].reason == "error"
    assert "NaN" in (result[0].error or "")
    assert result[1].token_ids == oracle((1, 2, 3), 5)
    assert result[2].token_ids == oracle((4, 5), 5)


class FixedSet:
    """Allows some ids; ``poison`` makes accept or fill fail at the third token, or the text end with it."""

    def __init__(self, ids: set[int], poison: str = "") -> None:
        self.ids, self.poison, self.count = ids, poison, 0

    @property
    def ended(self) -> bool:
        return self.poison == "ends" and self.count == 3

    def rollback(self, tokens: int) -> None:
        self.count -= tokens
        assert self.count >= 0

    def forced(self) -> tuple[int, ...]:
        return ()

    def fill(self, allowed: np.ndarray, ends: frozenset[int]) -> bool:
        if self.ended:
            return False
        if self.poison == "fill" and self.count == 2:
            raise ConfigError("the grammar is stuck")
        for token_id in self.ids:
            allowed[token_id // 32] |= np.uint32(1 << (token_id % 32))
        return True

    def accept(self, token_id: int) -> None:
        assert token_id in self.ids
        self.count += 1
        if self.poison == "accept" and self.count == 3:
            raise RuntimeError("secret detail")


class FixedSets:
    """``only:1,2``: these ids; ``fill:`` and ``accept:`` fail there at the third token, ``ends:`` ends with it."""

    def matcher(self, grammar: str) -> "Future[Matcher]":
        name, _, ids = grammar.partition(":")
        made: Future[Matcher] = Future()
        made.set_result(FixedSet({int(token) for token in ids.split(",") if token}, name))
        return made


def test_matchers_bound_what_may_come() -> None:
    engine, _, _ = make(grammars=FixedSets())
    params = SamplingParams(temperature=1.5)
    result = run(
        engine,
        [
            ask(0, (1, 2), 20, params=params, grammar="only:7,33,60"),
            ask(1, (1, 2), 20),
            ask(2, (1, 2), 20, grammar="fill:1,2"),
            ask(3, (1, 2), 20, grammar="accept:1,2"),
            ask(4, (1, 2), 20, grammar="only:"),
        ],
    )
    assert set(result[0].token_ids) == {7, 33, 60}
    assert result[1].token_ids == oracle((1, 2), 20)
    assert (result[2].reason, result[2].error) == ("error", "the grammar is stuck")
    assert len(result[2].token_ids) == 2
    assert result[3].reason == "error"
    assert "secret" not in (result[3].error or "")
    assert result[4].reason == "error"
    assert not engine.has_work


BAD: list[tuple[dict[str, object], str]] = [
    ({"prompt": ()}, "prompt is empty"),
    ({"prompt": (1, VOCABULARY)}, "prompt token id 61; accepted are integers from 0 to 60"),
    ({"prompt": (-1,)}, "prompt token id -1"),
    ({"prompt": (1.5,)}, "prompt token id 1.5"),
    ({"prompt": (2**40,)}, "prompt token id"),
    ({"prompt": (2**70,)}, "prompt token id"),
    ({"prompt": ("a",)}, "prompt token id 'a'"),
    ({"prompt": (True, True)}, "prompt token id True"),
    ({"prompt": (1,) * 60, "max_tokens": 5}, "make 65; the context holds 64"),
    ({"prompt": (1,) * 80}, "the context holds 64"),
    ({"stop_token_ids": frozenset([61])}, "stop_token_ids has token id 61"),
    ({"params": SamplingParams(logit_bias={99: 1.0})}, "logit_bias has token id 99"),
    ({"params": SamplingParams(logprobs=62)}, "logprobs is 62"),
    ({"seed": -1}, "seed"),
    ({"timeout_s": float("nan")}, "timeout"),
    ({"timeout_s": -1.0}, "timeout"),
    ({"score_start": 0}, "score_start"),
    ({"max_tokens": 0}, "max_new_tokens is 0"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD)
def test_bad_requests_change_nothing(options: dict[str, object], sentence: str) -> None:
    engine, _, _ = make()
    with pytest.raises(ConfigError, match=sentence.replace("(", r"\(")):
        engine.submit(ask(**options))  # type: ignore[arg-type]
    assert not engine.has_work
    assert run(engine, [ask()])[0].token_ids == oracle((1, 2, 3), 5)


def test_errors_name_the_parameter() -> None:
    engine, _, _ = make()
    for options, param in (({"prompt": ()}, "prompt"), ({"prompt": (1,) * 63, "max_tokens": 9}, "max_tokens")):
        with pytest.raises(ParameterError) as caught:
            engine.submit(ask(**options))  # type: ignore[arg-type]
        assert caught.value.param == param


def test_deadlines_end_requests_in_the_queue_and_while_decoding() -> None:
    engine, _, clock = make(replace(CONFIG, max_sequences=1))
    engine.submit(ask(0, max_tokens=40, timeout_s=10.0))
    engine.submit(ask(1, max_tokens=40, timeout_s=5.0))
    events = [*engine.step()]
    clock.now += 6
    events += engine.step()
    clock.now += 6
    while engine.has_work:
        events += engine.step()
    ends = {event.request_id: event.reason for event in events if isinstance(event, Finished)}
    assert ends == {0: "timeout", 1: "queue_timeout"}
    assert engine.counters().used_blocks == 0


def test_controls_and_aborts() -> None:
    engine, _, _ = make()
    engine.submit(ask(0, max_tokens=40))
    engine.step()
    engine.handle(Control("drain"))
    with pytest.raises(EngineUnavailableError, match="draining"):
        engine.submit(ask(1))
    engine.handle(Control("abort_all"))
    (finished,) = engine.step()
    assert finished == Finished(0, "abort", 0, queued_s=0.0)
    assert not engine.abort(0)
    assert engine.counters().used_blocks == 0


def test_a_full_queue_is_a_capacity_error() -> None:
    engine, _, _ = make(replace(CONFIG, max_sequences=1, max_waiting_requests=1))
    engine.submit(ask(0))
    engine.submit(ask(1))
    with pytest.raises(CapacityError):
        engine.submit(ask(2))
    with pytest.raises(ConfigError, match="has this id already"):
        engine.submit(ask(1))


def test_prefixes_are_found_and_can_be_forgotten() -> None:
    engine, _, _ = make()
    prompt = tuple(range(20))

    def cached(salt: bytes = b"") -> int:
        engine.submit(ask(0, prompt, 2, cache_salt=salt))
        events: list[object] = []
        while engine.has_work:
            events += engine.step()
        return next(event.cached_tokens for event in events if isinstance(event, Finished))

    assert [cached(), cached(), cached(b"other"), cached(b"other")] == [0, 16, 0, 16]
    assert engine.forget_prefixes() > 0
    assert cached() == 0


def test_a_broken_kernel_fails_the_engine_and_says_so() -> None:
    engine, executable, _ = make()
    executable.break_after = 1
    engine.submit(ask())
    engine.step()
    with pytest.raises(RuntimeError, match="kernel broke"):
        engine.step()
    for action in (engine.step, lambda: engine.submit(ask(3))):
        check: Callable[[], object] = action
        with pytest.raises(EngineUnavailableError):
            check()


def test_the_end_says_how_long_a_request_had_waited() -> None:
    engine, _, clock = make(replace(CONFIG, max_sequences=1))
    engine.submit(ask(0, max_tokens=2), clock.now - 2.0)
    engine.submit(ask(1, max_tokens=1))
    engine.submit(ask(2, max_tokens=1, timeout_s=0.5))
    events = [*engine.step()]
    clock.now += 5
    while engine.has_work:
        events += engine.step()
    waited = {event.request_id: event.queued_s for event in events if isinstance(event, Finished)}
    assert waited == {0: 2.0, 1: 5.0, 2: None}


def test_a_deadline_counts_from_the_arrival() -> None:
    engine, _, clock = make()
    engine.submit(ask(0, max_tokens=40, timeout_s=1.0), clock.now - 1.0)
    (finished,) = engine.step()
    assert isinstance(finished, Finished)
    assert finished.reason == "queue_timeout"


def test_an_engine_says_when_its_memory_is_in_use() -> None:
    engine, executable, _ = make()
    seen: list[bool] = []
    execute = executable.execute
    executable.execute = lambda *arguments: (seen.append(engine.stepping), execute(*arguments))[1]  # type: ignore
    engine.submit(ask(0, max_tokens=1))
    engine.step()
    assert (seen, engine.stepping) == ([True], False)
