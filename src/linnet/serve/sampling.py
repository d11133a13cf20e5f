# SPDX-License-Identifier: Apache-2.0
"""From a request's parameters to SamplingParams, under this server's caps; errors name what the client wrote."""

import re
from typing import Any

from linnet.api import GRAMMAR, ParameterError, SamplingDefaults, SamplingParams
from linnet.serve.errors import ApiError, invalid
from linnet.serve.protocol import ChatRequest, CompletionRequest, EmbeddingRequest, GenerationRequest
from linnet.serve.protocol.common import whole
from linnet.serve.protocol.completions import MAX_TOKENS
from linnet.serve.protocol.structured import structured_of
from linnet.settings import RequestLimits

_TOKEN_ID = re.compile(r"[0-9]{1,10}")


def parameter_names(request: GenerationRequest | EmbeddingRequest) -> dict[str, str]:
    """SamplingParams' names -> the names the client used."""
    names = {"include_stop_str": "include_stop_str_in_output", "timeout": "timeout_s", "prompt_logprobs": "logprobs"}
    if isinstance(request, GenerationRequest) and request.prompt_logprobs is not None:
        del names["prompt_logprobs"]
    if isinstance(request, CompletionRequest):
        if request.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
        if request.best_of is not None and request.best_of > (request.n or 1):
            names["n"] = "best_of"
    if isinstance(request, EmbeddingRequest):
        names["prompt"] = "input"
    if isinstance(request, ChatRequest):
        names |= {"prompt": "messages", "logprobs": "top_logprobs"}
        if request.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
    if isinstance(request, GenerationRequest):
        wanted = structured_of(request)
        names[GRAMMAR] = "tools" if wanted is None else wanted[1]
    return names


def sampling_params(request: GenerationRequest, limits: RequestLimits, defaults: SamplingDefaults) -> SamplingParams:
    """``defaults`` hold where the request says nothing. Raises ApiError 400."""
    greedy = request.top_p == 0  # the likeliest token is all that is left
    given: dict[str, Any] = {
        "temperature": 0.0 if greedy else request.temperature,
        "top_p": 1.0 if greedy else request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repetition_penalty": request.repetition_penalty,
        "min_tokens": request.min_tokens,
        "seed": request.seed,
        "n": request.n,
        "stop": request.stop,
        "stop_token_ids": _token_ids(request.stop_token_ids),
        "prompt_logprobs": request.prompt_logprobs,
        "ignore_eos": request.ignore_eos,
        "include_stop_str": request.include_stop_str_in_output,
        "use_beam_search": request.use_beam_search,
        "length_penalty": request.length_penalty,
        "early_stopping": request.early_stopping,
        "skip_special_tokens": request.skip_special_tokens,
        "logit_bias": None if request.logit_bias is None else _biases(request.logit_bias),
    }
    if isinstance(request, CompletionRequest):
        given |= _of_completion(request)
    elif isinstance(request, ChatRequest):
        given |= _of_chat(request)
    names = parameter_names(request)
    if request.prompt_logprobs is not None and request.stream:
        raise invalid("prompt_logprobs is not accepted with stream: true", "prompt_logprobs")
    bounds = (("n", limits.samples), ("logprobs", limits.logprobs), ("prompt_logprobs", limits.logprobs))
    for name, most in bounds:
        value = given[name]
        if isinstance(value, int) and value > most:
            shown = names.get(name, name)
            raise invalid(f"{shown} is larger than {most}, the most this server accepts", shown)
    if isinstance(request.stop, list) and len(request.stop) > limits.stops:
        raise invalid(f"stop has more than {limits.stops} strings, the most this server accepts", "stop")
    try:
        return defaults.params(given)
    except ParameterError as error:
        raise parameter_error(error, names) from None


def parameter_error(error: ParameterError, names: dict[str, str]) -> ApiError:
    """400 with the client's name of the parameter, in the sentence too."""
    name = names.get(error.param, error.param)
    message = str(error)
    if message.startswith(error.param):
        message = name + message[len(error.param) :]
    return invalid(message, name)


def grammar_error(error: ParameterError, param: str) -> ApiError:
    """400: what the parameter asks for cannot be enforced."""
    return invalid(f"{param}: {error}", param)


def _of_completion(request: CompletionRequest) -> dict[str, Any]:
    newer = request.max_completion_tokens
    max_tokens = request.max_tokens if newer is None else newer
    if max_tokens is None:
        max_tokens = MAX_TOKENS
    scored = request.logprobs if request.echo else None
    if request.echo and scored is None and max_tokens == 0:
        scored = 0  # nothing is generated: the prompt is only read
    if request.prompt_logprobs is not None:
        scored = request.prompt_logprobs if scored is None else max(request.prompt_logprobs, scored)
    given: dict[str, Any] = {"max_tokens": max_tokens, "logprobs": request.logprobs, "prompt_logprobs": scored}
    return given | _best_of(request)


def _best_of(request: CompletionRequest) -> dict[str, Any]:
    """As many samples as are chosen among, with the log-probabilities that choose."""
    count, wanted = request.best_of, request.n or 1
    if count is None or count == wanted:
        return {}
    if count < wanted:
        raise invalid(f"best_of is {count}; accepted is at least n, {wanted}", "best_of")
    if request.stream or request.use_beam_search:
        other = "stream: true" if request.stream else "use_beam_search"
        raise invalid(f"best_of above n is not accepted with {other}: the best are known at the end", "best_of")
    return {"n": count, "logprobs": request.logprobs or 0}


def _of_chat(request: ChatRequest) -> dict[str, Any]:
    max_tokens, newer = request.max_tokens, request.max_completion_tokens
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs is accepted only with logprobs: true", "top_logprobs")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return {"max_tokens": max_tokens if newer is None else newer, "logprobs": logprobs}


def _token_ids(value: Any) -> Any:
    """16.0 is an integer; SamplingParams checks the rest."""
    return [whole(one) for one in value] if isinstance(value, list) else value


def _biases(value: Any) -> dict[int, Any]:
    """JSON keys are texts; SamplingParams checks the rest."""
    if not isinstance(value, dict):
        raise invalid("logit_bias must be an object: token id -> number from -100 to 100", "logit_bias", "invalid_type")
    biases: dict[int, Any] = {}
    for key, bias in value.items():
        if not _TOKEN_ID.fullmatch(key):
            raise invalid("a key of logit_bias is not a token id", "logit_bias")
        if int(key) in biases:
            raise invalid(f"logit_bias names token {int(key)} twice", "logit_bias")
        biases[int(key)] = bias
    return biases
