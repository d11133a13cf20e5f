# SPDX-License-Identifier: Apache-2.0
"""What the two generating endpoints share, and how a JSON object becomes a record or an error that names the parameter.

Types are strict: a string is not a number, true is not 1; but 16.0 is an integer, as JSON has one kind of number.
``null`` means "not given" for every optional parameter.
Ranges are SamplingParams' business; the caps of this server are checked in ``sampling``.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from linnet.serve.errors import invalid, unsupported
from linnet.serve.protocol.neutral import changes_nothing
from linnet.serve.protocol.record import Record
from linnet.serve.protocol.structured import StructuredFields


def whole(value: Any) -> Any:
    """An integral number as the integer that it is; anything else as it was."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 1 << 63 else value


Integer = Annotated[int, BeforeValidator(whole)]


class StreamOptions(Record):
    """``include_usage``: a last chunk with the usage; ``continuous_usage_stats``: every chunk has what was used so far.

    ``include_obfuscation``: accepted; no padding is ever added.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class GenerationRequest(StructuredFields):
    """Parameters that completions and chat have in common."""

    model: str = Field(max_length=4096)
    n: Integer | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Integer | None = None
    stop: Any = None
    logit_bias: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # As in vLLM.
    top_k: Integer | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Integer | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Any = None
    bad_words: list[str] | None = None
    truncate_prompt_tokens: Integer | None = Field(default=None, ge=-1)
    prompt_logprobs: Integer | None = None
    include_stop_str_in_output: bool | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: Any = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    cache_salt: str | None = Field(default=None, max_length=1024)
    priority: Integer | None = Field(default=None, ge=-(1 << 31), le=(1 << 31) - 1)

    # Linnet's own.
    timeout_s: float | None = None
    session: str | None = None
    session_turns: Integer | None = Field(default=None, ge=0)
    prompt_modules: list[str] | None = None

    # Accepted and without effect: they cannot change what is generated.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options is not None and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream tells the usage so far."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


R = TypeVar("R", bound=Record)


def read_request(kind: type[R], value: Mapping[str, Any]) -> R:
    """The record in a parsed body. Raises ApiError 400 naming the first parameter that is wrong."""
    fields = dict(value)
    for name, (neutral, reason) in kind.REFUSED.items():
        if name in fields:
            given = fields.pop(name)
            if given is not None and not changes_nothing(given, neutral):
                raise unsupported(name, f"{name} is not supported: {reason}")
    try:
        request = kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = _place(first["loc"])
        if first["type"] == "extra_forbidden":
            raise invalid(f"unknown parameter {param}", param, "unknown_parameter") from None
        if first["type"] == "missing":
            raise invalid(f"{param} is required", param, "missing_required_parameter") from None
        message = first["msg"]
        raise invalid(f"{param}: {message[0].lower()}{message[1:]}", param, "invalid_type") from None
    if isinstance(request, GenerationRequest) and request.stream_options is not None and not request.stream:
        raise invalid("stream_options is accepted only with stream: true", "stream_options")
    return request


def _place(location: tuple[int | str, ...]) -> str:
    """``("messages", 0, "role")`` -> ``messages[0].role``; long or odd names are cut, since clients choose them."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if len(part) <= 64 and part.isprintable() else ascii(part[:61]) + "..."
            text += f".{shown}" if text else shown
    return text
