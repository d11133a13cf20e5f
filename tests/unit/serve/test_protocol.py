# SPDX-License-Identifier: Apache-2.0
"""Records and sampling parameters: defaults, names in errors, caps."""

from typing import Any

import pytest

from linnet.api import SamplingDefaults
from linnet.serve.errors import ApiError
from linnet.serve.protocol import ChatRequest, CompletionRequest, read_request
from linnet.serve.protocol.chat import plain_messages
from linnet.serve.sampling import sampling_params
from linnet.settings import RequestLimits

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
LIMITS = RequestLimits()


def completion(**fields: Any) -> CompletionRequest:
    return read_request(CompletionRequest, {"model": "m", "prompt": "x", **fields})


def test_defaults_are_those_of_openai() -> None:
    params = sampling_params(completion(), LIMITS, SamplingDefaults())
    assert (params.max_tokens, params.temperature, params.top_p, params.n, params.logprobs) == (16, 1.0, 1.0, 1, None)
    chat = sampling_params(read_request(ChatRequest, CHAT), LIMITS, SamplingDefaults())
    assert chat.max_tokens is None


def test_null_means_not_given_for_every_optional_parameter() -> None:
    for kind, base in ((CompletionRequest, {"model": "m", "prompt": "x"}), (ChatRequest, CHAT)):
        optional = {name: None for name, field in kind.model_fields.items() if not field.is_required()}
        refused = dict.fromkeys(kind.REFUSED)
        request = read_request(kind, {**base, **optional, **refused})
        assert sampling_params(request, LIMITS, SamplingDefaults()) == sampling_params(
            read_request(kind, base), LIMITS, SamplingDefaults()
        )


def test_every_refused_parameter_is_named_with_a_reason() -> None:
    for kind, base in ((CompletionRequest, {"model": "m", "prompt": "x"}), (ChatRequest, CHAT)):
        for name, (neutral, _) in kind.REFUSED.items():
            for value in neutral:
                read_request(kind, {**base, name: value})
            with pytest.raises(ApiError) as caught:
                read_request(kind, {**base, name: {"surely": "not neutral"}})
            assert caught.value.param == name
            assert caught.value.code == "unsupported_parameter"


def test_errors_use_the_clients_names() -> None:
    for change, name in (
        ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"include_stop_str_in_output": "yes"}, "include_stop_str_in_output"),
    ):
        with pytest.raises(ApiError) as caught:
            sampling_params(read_request(ChatRequest, {**CHAT, **change}), LIMITS, SamplingDefaults())
        assert caught.value.param == name
        assert name in caught.value.message


def test_echo_with_logprobs_scores_the_prompt() -> None:
    params = sampling_params(completion(echo=True, logprobs=2, max_tokens=0), LIMITS, SamplingDefaults())
    assert (params.prompt_logprobs, params.max_tokens) == (2, 0)
    assert sampling_params(completion(echo=True, max_tokens=0), LIMITS, SamplingDefaults()).prompt_logprobs == 0
    assert sampling_params(completion(echo=True), LIMITS, SamplingDefaults()).prompt_logprobs is None
    with pytest.raises(ApiError):
        sampling_params(completion(max_tokens=0), LIMITS, SamplingDefaults())


def test_messages_become_plain() -> None:
    chat = read_request(
        ChatRequest,
        {
            "model": "m",
            "messages": [
                {"role": "developer", "content": "a"},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}],
                    "name": "n",
                },
                {"role": "assistant", "content": "d", "refusal": None, "tool_calls": None},
            ],
        },
    )
    assert plain_messages(chat.messages) == [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}], "name": "n"},
        {"role": "assistant", "content": "d"},
    ]


def test_odd_parameter_names_are_shown_safely() -> None:
    for name in ("x" * 10_000, "a\nb", "‮evil"):
        with pytest.raises(ApiError) as caught:
            completion(**{name: 1})
        assert len(caught.value.message) < 200
        assert caught.value.message.isprintable()
