# SPDX-License-Identifier: Apache-2.0
"""How the tokens of one request are chosen and when it ends; every bad value is one sentence naming the parameter."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from linnet.errors import ConfigError

MOST_SAMPLES = 4096
MOST_STOPS = 256
MOST_STOP_CHARACTERS = 4096
MOST_STOP_TOKENS = 4096
MOST_BIASES = 4096
MOST_LOGPROBS = 1024
INT32 = (1 << 31) - 1


class ParameterError(ConfigError):
    """A ConfigError that knows which parameter of a request it is about."""

    def __init__(self, param: str, message: str, *, settings: Sequence[str] = ()) -> None:
        self.param = param
        super().__init__(message, settings=(param, *settings))


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Frozen and validated; raises ParameterError (a ConfigError).

    max_tokens:         new tokens at most; None: as many as the context has room for. 0 only with prompt_logprobs.
    min_tokens:         stop tokens are impossible and stop strings ignored before that many tokens.
    temperature:        0 is greedy (ties go to the lowest id).
    top_k, top_p, min_p: applied in this order after the temperature; 0 (or -1), 1 and 0 switch them off.
    repetition_penalty: over prompt and generated tokens (1 = off); presence_penalty and frequency_penalty over
                        generated tokens (0 = off).
    seed:               None: drawn by the engine. Sample i of n uses ``derive_seed(seed, i)``.
    stop:               strings that end the text; they are cut off unless include_stop_str.
    stop_token_ids:     ids that end the request besides the model's end-of-sequence ids; ignore_eos drops the latter.
    logit_bias:         token id -> value in [-100, 100] added to its logit.
    logprobs:           alternatives to report per generated token; 0 reports the chosen token only, None nothing.
    prompt_logprobs:    the same for every prompt token but the first.
    n:                  independent samples of the prompt; with use_beam_search the beams (2 or more make a search), all
                        of which are answers.
    use_beam_search:    the n likeliest answers that a search finds, best first, instead of drawn ones (temperature,
                        top_k, top_p, min_p and seed have no part in it), ranked by the sum of log-probabilities /
                        (new tokens ** length_penalty). early_stopping: True ends the search with the n-th answer,
                        False when the likeliest beam scores worse at its length, 'never' when it would at any length.
    skip_special_tokens: whether special tokens are left out of the text.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    include_stop_str: bool = False
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        _integer("prompt_logprobs", self.prompt_logprobs, 0, MOST_LOGPROBS, optional=True)
        _integer("logprobs", self.logprobs, 0, MOST_LOGPROBS, optional=True)
        _integer("max_tokens", self.max_tokens, 0 if self.prompt_logprobs is not None else 1, INT32, optional=True)
        _integer("min_tokens", self.min_tokens, 0, INT32)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ParameterError(
                "min_tokens",
                f"min_tokens is {self.min_tokens}; accepted is at most max_tokens, {self.max_tokens}",
                settings=["max_tokens"],
            )
        _number(self, "temperature", 0.0, 100.0)
        _number(self, "top_p", 0.0, 1.0, above=True)
        _integer("top_k", self.top_k, -1, INT32)
        _number(self, "min_p", 0.0, 1.0)
        _number(self, "presence_penalty", -2.0, 2.0)
        _number(self, "frequency_penalty", -2.0, 2.0)
        _number(self, "repetition_penalty", 0.0, 100.0, above=True)
        _integer("seed", self.seed, -(1 << 63), (1 << 64) - 1, optional=True)
        _integer("n", self.n, 1, MOST_SAMPLES)
        _number(self, "length_penalty", -10.0, 10.0)
        if self.early_stopping != "never" and not isinstance(self.early_stopping, bool):
            raise ParameterError(
                "early_stopping",
                f'early_stopping is {_shown(self.early_stopping)}; accepted are true, false and "never"',
            )
        for name in ("include_stop_str", "ignore_eos", "skip_special_tokens", "use_beam_search"):
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(name, f"{name} is {getattr(self, name)!r}; accepted are true and false")
        object.__setattr__(self, "stop", _stops(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids, MOST_STOP_TOKENS))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        if self.use_beam_search:
            self._check_search()

    def _check_search(self) -> None:
        """What would change the probabilities that beams are ranked by."""
        for name, neutral in (("repetition_penalty", 1.0), ("presence_penalty", 0.0), ("frequency_penalty", 0.0)):
            if getattr(self, name) != neutral:
                raise ParameterError(
                    name,
                    f"{name} is {getattr(self, name):g}; accepted with use_beam_search is {neutral:g} only: it ranks "
                    "by the model's own probabilities",
                    settings=["use_beam_search"],
                )
        if self.logit_bias:
            raise ParameterError(
                "logit_bias",
                "logit_bias cannot be combined with use_beam_search: it ranks by the model's own probabilities",
                settings=["use_beam_search"],
            )


def derive_seed(seed: int, index: int) -> int:
    """The seed of sample ``index``: the seed itself for the first, a hash of both for the others (64 bits)."""
    if index == 0:
        return seed % (1 << 64)
    text = f"linnet-sample {seed % (1 << 64)} {index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _integer(name: str, value: Any, least: int, most: int, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        bounds = f"of at least {least}" if most == INT32 else f"from {least} to {most}"
        raise ParameterError(name, f"{name} is {_shown(value)}; accepted is a whole number {bounds}")


def _number(params: SamplingParams, name: str, least: float, most: float, above: bool = False) -> None:
    value = getattr(params, name)
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
    if not valid or (above and value == least) or not math.isfinite(value):
        bound = f"a number above {least:g} and at most {most:g}" if above else f"a number from {least:g} to {most:g}"
        raise ParameterError(name, f"{name} is {_shown(value)}; accepted is {bound}")
    object.__setattr__(params, name, float(value))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _stops(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) for stop in stops):
        raise ParameterError("stop", f"stop is {_shown(value)}; accepted is a string or a list of strings")
    if len(stops) > MOST_STOPS:
        raise ParameterError("stop", f"stop has {len(stops)} strings; accepted are at most {MOST_STOPS}")
    for stop in stops:
        if not 1 <= len(stop) <= MOST_STOP_CHARACTERS:
            raise ParameterError(
                "stop", f"a stop string has {len(stop)} characters; accepted are 1 to {MOST_STOP_CHARACTERS}"
            )
    return tuple(dict.fromkeys(stops))


def _token_ids(name: str, value: Any, most: int) -> tuple[int, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise ParameterError(name, f"{name} is {_shown(value)}; accepted is a list of token ids")
    ids = tuple(value)
    if len(ids) > most:
        raise ParameterError(name, f"{name} has {len(ids)} entries; accepted are at most {most}")
    for token_id in ids:
        _integer(name, token_id, 0, INT32)
    return tuple(dict.fromkeys(ids))


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise ParameterError("logit_bias", f"logit_bias is {_shown(value)}; accepted is an object token id -> number")
    if len(value) > MOST_BIASES:
        raise ParameterError("logit_bias", f"logit_bias has {len(value)} entries; accepted are at most {MOST_BIASES}")
    biases: dict[int, float] = {}
    for token_id, bias in value.items():
        _integer("logit_bias", token_id, 0, INT32)
        if not isinstance(bias, (int, float)) or isinstance(bias, bool) or not -100 <= bias <= 100:
            raise ParameterError(
                "logit_bias", f"logit_bias of token {token_id} is {_shown(bias)}; accepted is a number from -100 to 100"
            )
        biases[token_id] = float(bias)
    return biases
