# SPDX-License-Identifier: Apache-2.0
"""The one place where messages for the engine are made: lengths, seeds, scores, grammars, what tokens are."""

import pytest
from tiny_llama import write_tiny_llama

from linnet.api import LengthError, PreparedPrompt, RequestBuilder, SamplingParams, Terms
from linnet.engine import EngineFacts, derive_seed
from linnet.scheduler import SchedulerConfig
from linnet.text import Tokenizer

CONFIG = SchedulerConfig(num_blocks=16, block_size=4, max_model_len=32, max_sequences=2, max_waiting_requests=3)
PROMPT = PreparedPrompt(None, (3, 4, 5))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_directory(write_tiny_llama(tmp_path_factory.mktemp("tiny")))


def builder(tokenizer: Tokenizer) -> RequestBuilder:
    facts = EngineFacts(vocabulary_size=tokenizer.vocabulary_size, scheduling=CONFIG)
    return RequestBuilder(tokenizer, facts, iter(range(100, 200)).__next__)


def test_facts_say_what_the_limits_come_to() -> None:
    facts = EngineFacts(vocabulary_size=9, scheduling=CONFIG)
    assert (facts.max_model_len, facts.max_requests, facts.kv_tokens) == (32, 5, 64)


@pytest.mark.parametrize(
    ("prompt_tokens", "fields", "default", "expected"),
    [
        (3, {}, None, 29),
        (3, {}, 8, 8),
        (3, {}, 99, 29),
        (3, {"min_tokens": 9}, 8, 9),
        (3, {"max_tokens": 29}, 8, 29),
        (32, {"prompt_logprobs": 0}, None, 0),
        (32, {"prompt_logprobs": 0, "max_tokens": 0}, 8, 0),
        (31, {}, 8, 1),
    ],
)
def test_how_long_an_answer_may_be(
    tokenizer: Tokenizer, prompt_tokens: int, fields: dict, default: int | None, expected: int
) -> None:
    requests, params = builder(tokenizer), SamplingParams(**fields)
    requests.check_length(prompt_tokens, params)
    prompt = PreparedPrompt(None, (5,) * prompt_tokens)
    (sample,) = requests.samples([prompt], params, Terms(default_max_tokens=default))
    assert sample.submit.max_tokens == expected


@pytest.mark.parametrize(
    ("prompt_tokens", "fields", "param"),
    [(32, {}, "prompt"), (40, {"max_tokens": 1}, "prompt"), (3, {"max_tokens": 30}, "max_tokens"),
     (33, {"prompt_logprobs": 0, "max_tokens": 0}, "prompt")],
)  # fmt: skip
def test_what_is_too_long_is_so_before_and_while_it_is_made(
    tokenizer: Tokenizer, prompt_tokens: int, fields: dict, param: str
) -> None:
    requests, params = builder(tokenizer), SamplingParams(**fields)
    prompt = PreparedPrompt(None, (5,) * prompt_tokens)
    for ask in (
        lambda: requests.check_length(prompt_tokens, params),
        lambda: requests.samples([prompt], params, Terms(default_max_tokens=8)),
    ):
        with pytest.raises(LengthError) as caught:
            ask()
        assert (caught.value.param, caught.value.prompt_tokens, caught.value.most) == (param, prompt_tokens, 32)


def test_samples_of_a_prompt_share_a_seed_and_the_first_scores_for_all(tokenizer: Tokenizer) -> None:
    params = SamplingParams(n=3, prompt_logprobs=1, max_tokens=4)
    samples = builder(tokenizer).samples([PROMPT, PROMPT], params, Terms(priority=7, cache_salt=b"s", timeout_s=2.0))
    assert [sample.submit.seed for sample in samples] == [derive_seed(s, i) for s in (100, 101) for i in range(3)]
    assert [sample.submit.params.prompt_logprobs for sample in samples] == [1, None, None] * 2
    assert [(sample.index, sample.prompt_index) for sample in samples] == [(i, i // 3) for i in range(6)]
    assert len({sample.submit.request_id for sample in samples}) == 6
    assert {(one.submit.priority, one.submit.cache_salt, one.submit.timeout_s) for one in samples} == {(7, b"s", 2.0)}
    seeded = builder(tokenizer).samples([PROMPT, PROMPT], SamplingParams(seed=5), Terms())
    assert [sample.submit.seed for sample in seeded] == [5, 5]


def test_samples_that_only_score_all_score(tokenizer: Tokenizer) -> None:
    samples = builder(tokenizer).samples([PROMPT], SamplingParams(n=2, prompt_logprobs=0, max_tokens=0), Terms())
    assert [sample.submit.params.prompt_logprobs for sample in samples] == [0, 0]


def test_a_grammar_goes_with_every_sample(tokenizer: Tokenizer) -> None:
    samples = builder(tokenizer).samples([PROMPT, PROMPT], SamplingParams(n=2), Terms(grammar="digits"))
    assert [sample.submit.grammar for sample in samples] == ["digits"] * 4


def test_a_vocabulary_says_what_tokens_stand_for(tokenizer: Tokenizer) -> None:
    vocabulary = builder(tokenizer).vocabulary
    tokens = vocabulary.tokens()
    assert len(tokens) == vocabulary.size == tokenizer.vocabulary_size
    text = "a (text) \u00e9 \u4e2d"
    assert b"".join(tokens[one] for one in tokenizer.encode(text, add_special_tokens=False)).decode() == text
    assert set(vocabulary.eos_ids) == set(tokenizer.eos_token_ids)
