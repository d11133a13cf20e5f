# SPDX-License-Identifier: Apache-2.0
"""Sampling that a checkpoint recommends in ``generation_config.json``, or a GGUF file in its metadata: what holds where
a request says nothing.

One rule for ``LLM``, the server and the commands: what is asked for wins, then what the checkpoint recommends, then
what the asking interface does by itself. The fields are those that vLLM takes
(``ModelConfig.get_diff_sampling_param``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linnet.engine import ParameterError, SamplingParams
from linnet.errors import CheckpointError, ConfigError
from linnet.gguf import GgufModel, gguf_of
from linnet.text.files import optional_json_object, read_json_object

FILE = "generation_config.json"
SAMPLED = ("temperature", "top_p", "top_k", "min_p")
"""Without effect where the checkpoint says ``do_sample: false``: it recommends the likeliest token then."""
WHOLE = ("top_k", "max_new_tokens")
GGUF_KEYS = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""``general.sampling.*`` of a GGUF file -> the same in generation_config.json."""

CHAT_MAX_TOKENS = 4096
"""Most new tokens of a chat answer when neither the request nor the checkpoint names a number."""


@dataclass(frozen=True)
class SamplingDefaults:
    """``values``: names of SamplingParams with what is recommended. ``max_tokens``: the recommended longest answer."""

    values: Mapping[str, float | int] = field(default_factory=dict)
    max_tokens: int | None = None

    def params(self, given: Mapping[str, Any], otherwise: Mapping[str, Any] | None = None) -> SamplingParams:
        """Each parameter as ``given`` unless that is None, else as recommended, else as ``otherwise`` says.

        ``max_tokens`` is only what is given: a recommended length is no demand (see ``new_tokens``). Raises
        ParameterError.
        """
        asked = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(**{**(otherwise or {}), **self.values, **asked})

    def __str__(self) -> str:
        """``temperature 0.6, top_p 0.9``; empty when nothing is recommended."""
        values = dict(self.values) if self.max_tokens is None else {**self.values, "max_tokens": self.max_tokens}
        return ", ".join(f"{name} {value:g}" for name, value in values.items())


def read_sampling_defaults(model: Path, source: str | Path = "auto") -> SamplingDefaults:
    """What a model directory or GGUF file recommends.

    source: 'auto': its own ``generation_config.json`` or metadata, if it has one; 'none': nothing; else the folder of
    another one.

    Raises CheckpointError for a value that no sampler accepts, ConfigError for a source that is none of these.
    """
    if source == "none":
        return SamplingDefaults()
    file = gguf_of(model) if source == "auto" else None
    if file is not None:
        path, config = file, _of_gguf(file)
    elif source == "auto":
        path = model / FILE
        config = optional_json_object(path)
    else:
        path = Path(source) / FILE
        if not path.is_file():
            raise ConfigError(
                f"generation_config is {str(source)!r}; accepted are auto, none and a folder that holds {FILE}",
                settings=("generation_config",),
            )
        config = read_json_object(path)
    try:
        return _of(config)
    except ParameterError as error:
        sentence = str(error).replace("max_tokens", "max_new_tokens")
        raise CheckpointError(
            f"{path}: {sentence}; generation_config none ignores it", settings=("generation_config",)
        ) from None


def new_tokens(params: SamplingParams, room: int, default: int | None) -> int:
    """How many new tokens a request may have, in the ``room`` that its prompt leaves in the context.

    ``params.max_tokens`` if given; else ``default`` (but min_tokens at least) as far as there is room; else the room.
    """
    if params.max_tokens is not None:
        return params.max_tokens
    return max(room if default is None else min(max(default, params.min_tokens), room), 0)


def _of_gguf(file: Path) -> dict[str, Any]:
    with GgufModel(file) as model:
        found = {name: model.metadata.number(f"general.sampling.{key}") for key, name in GGUF_KEYS.items()}
    return {name: value for name, value in found.items() if value is not None}


def _of(config: Mapping[str, Any]) -> SamplingDefaults:
    """Raises ParameterError."""
    found: dict[str, Any] = {}
    for name in (*SAMPLED, "repetition_penalty", "max_new_tokens"):
        value = config.get(name)
        if value is not None:
            found[name] = int(value) if name in WHOLE and isinstance(value, float) and value.is_integer() else value
    max_tokens = found.pop("max_new_tokens", None)
    checked = SamplingParams(**found, max_tokens=max_tokens)
    values = {name: getattr(checked, name) for name in found}
    if config.get("do_sample") is False:
        values = {"temperature": 0.0} | {name: value for name, value in values.items() if name not in SAMPLED}
    elif config.get("do_sample") is True:
        values = {"temperature": 1.0} | values
    return SamplingDefaults(values, checked.max_tokens)
