# SPDX-License-Identifier: Apache-2.0
"""Parameters that other servers document and this one does not have: accepted where their value changes nothing.

Each with the values that its own server takes for "off", and why another value is refused.
"""

from collections.abc import Mapping
from typing import Any

Refused = Mapping[str, tuple[tuple[Any, ...], str]]
"""Name -> (values that change nothing, sentence)."""

SAMPLER = "this sampler is not here; there are temperature, top_k, top_p, min_p and the penalties"
SWITCHES = (True, False)

OF_VLLM: Refused = {
    "spaces_between_special_tokens": ((True,), "special tokens are written as the tokenizer writes them"),
    "allowed_token_ids": ((), "use logit_bias"),
    "logits_processors": (([],), "no code comes with a request"),
    "detokenize": ((True,), "ask for return_token_ids beside the text"),
    "documents": (([],), "put them into the messages"),
    "mm_processor_kwargs": (({},), "there are no images here"),
    "kv_transfer_params": ((), "keys and values stay in this server"),
    "vllm_xargs": (({},), "these are vLLM's own"),
    "guided_decoding_backend": (("auto",), "there is one only"),
    "guided_whitespace_pattern": ((), "white space between the parts of JSON is the model's"),
}
OF_LOCAL_SERVERS: Refused = {
    "cache_prompt": (SWITCHES, ""),
    "timings_per_token": ((False,), "times are on the metrics page"),
    "return_progress": ((False,), "a stream tells its tokens only"),
    "post_sampling_probs": ((False,), "log-probabilities are those before sampling"),
    "response_fields": (([],), "answers have all of their fields"),
    "repeat_penalty": ((1.0,), "use repetition_penalty"),
    "repeat_last_n": ((-1, 0, 64), "penalties look at the whole text"),
    "penalize_nl": (SWITCHES, ""),
    "n_probs": ((0,), "use logprobs"),
    "n_keep": ((0, -1), "a context is not shifted"),
    "n_predict": ((-1,), "use max_tokens"),
    "n_indent": ((0,), "indentation is not counted"),
    "n_cache_reuse": ((0,), "blocks of known prefixes are reused always"),
    "min_keep": ((0, 1), SAMPLER),
    "t_max_predict_ms": ((0,), "use timeout_s"),
    "id_slot": ((-1,), "the scheduler finds a place"),
    "typical_p": ((1.0,), SAMPLER),
    "tfs_z": ((1.0,), SAMPLER),
    "top_n_sigma": ((-1.0, 0.0), SAMPLER),
    "mirostat": ((0,), SAMPLER),
    "mirostat_tau": ((5.0,), SAMPLER),
    "mirostat_eta": ((0.1,), SAMPLER),
    "dynatemp_range": ((0.0,), SAMPLER),
    "dynatemp_exponent": ((1.0,), SAMPLER),
    "xtc_probability": ((0.0,), SAMPLER),
    "xtc_threshold": ((0.1,), SAMPLER),
    "dry_multiplier": ((0.0,), SAMPLER),
    "dry_base": ((1.75,), SAMPLER),
    "dry_allowed_length": ((2,), SAMPLER),
    "dry_penalty_last_n": ((-1, 0, 64), SAMPLER),
    "dry_sequence_breakers": (([], ["\n", ":", '"', "*"]), SAMPLER),
    "samplers": (([],), SAMPLER),
    "image_data": (([],), "there are no images here"),
}
NEUTRAL: Refused = {**OF_VLLM, **OF_LOCAL_SERVERS}


def changes_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether a value is one of these; 1 and 1.0 are one number, and true is none."""
    return any(_kind(value) is _kind(one) and value == one for one in neutral)


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)
