# SPDX-License-Identifier: Apache-2.0
"""Which requests could ever run under a config: everything else is refused before it is queued."""

from math import isfinite

from linnet.errors import ConfigError

from .config import SchedulerConfig
from .request import Request, RequestState


def validate(request: Request, config: SchedulerConfig) -> None:
    """Raise ConfigError, saying what would be accepted, for a request that no amount of waiting can serve.

    Token ids are not looked at: the engine knows the vocabulary. Mutates nothing.
    """
    name = f"request {request.request_id}"
    if request.state is not RequestState.WAITING or request.sequence != -1:
        raise ConfigError(f"{name}: it was added before; every request is added once")
    if not request.prompt_token_ids:
        raise ConfigError(f"{name}: the prompt is empty; accepted is 1 token or more")
    least = 0 if request.score_prompt else 1
    if request.max_new_tokens < least:
        raise ConfigError(f"{name}: max_new_tokens is {request.max_new_tokens}; accepted is {least} or more")
    if request.hidden and not (request.score_prompt and request.max_new_tokens == 0):
        raise ConfigError(f"{name}: hidden states come with score_prompt and max_new_tokens 0 only")
    if config.whole_prompts and request.max_new_tokens > 0:
        raise ConfigError(f"{name}: max_new_tokens is {request.max_new_tokens}; accepted with whole_prompts is 0")
    if not 0 <= request.min_new_tokens <= request.max_new_tokens:
        raise ConfigError(
            f"{name}: min_new_tokens is {request.min_new_tokens}; accepted is 0 to max_new_tokens, "
            f"{request.max_new_tokens}"
        )
    for field_name, time_s in (("arrival_s", request.arrival_s), ("deadline_s", request.deadline_s)):
        if time_s is not None and not isfinite(time_s):
            raise ConfigError(f"{name}: {field_name} is {time_s}; accepted is a finite number of seconds")
    asked = f"{request.prompt_tokens} prompt tokens + max_new_tokens {request.max_new_tokens}"
    if config.excess_tokens(request.prompt_tokens, request.max_new_tokens) > 0:
        total = request.prompt_tokens + request.max_new_tokens
        raise ConfigError(f"{name}: {asked} = {total}; accepted is at most {config.max_model_len} (max_model_len)")
    for group, held in zip(config.groups, config.held_blocks(request.most_slots), strict=True):
        if held > group.num_blocks:
            behind = "" if group.window is None else f" of layers that see {group.window} tokens"
            raise ConfigError(
                f"{name}: {asked} need {min(request.most_slots, held * config.block_size)} token slots{behind}; the "
                f"whole KV cache has {group.num_blocks * config.block_size} ({group.num_blocks} blocks of "
                f"{config.block_size})"
            )
