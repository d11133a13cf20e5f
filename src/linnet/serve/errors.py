# SPDX-License-Identifier: Apache-2.0
"""Every error answer: its status, its OpenAI error object and its headers, in one table of constructors.

``x-should-retry`` is true only where the same request may succeed later, so that a poison request is not replayed.
"""

import math
from collections.abc import Mapping
from typing import Any

from linnet.api import ModerationError
from linnet.api.adapters import AdapterLimitError
from linnet.api.sessions import SessionsFullError
from linnet.engine import EngineLostError, ErrorInfo, LengthError, error_info
from linnet.errors import LinnetError

RETRIED = frozenset({429, 503})


class ApiError(Exception):
    """An answer that is not a success. ``status`` 499: nobody is left to read it."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.code, self.param = status, kind, message, code, param
        self.headers = {"x-should-retry": "true" if status in RETRIED else "false", **(headers or {})}

    def body(self) -> dict[str, Any]:
        """The OpenAI error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: something is wrong with the request itself."""
    return ApiError(400, "invalid_request_error", message, code=code, param=param)


def unsupported(param: str, reason: str) -> ApiError:
    """400: a parameter that OpenAI's API has and this server cannot honour."""
    return invalid(reason, param, "unsupported_parameter")


def unauthorised() -> ApiError:
    """401: missing or wrong key; the answer does not say which."""
    return ApiError(
        401,
        "authentication_error",
        "this server needs a valid API key: Authorization: Bearer KEY",
        code="invalid_api_key",
        headers={"WWW-Authenticate": 'Bearer realm="linnet"'},
    )


def forbidden(message: str) -> ApiError:
    """403: a Host or Origin that is not on the list."""
    return ApiError(403, "permission_error", message, code="forbidden")


def too_long(error: LengthError, names: Mapping[str, str]) -> ApiError:
    """400: prompt and answer do not fit. ``names`` renames parameters to those the client used."""
    message = (
        f"This model's maximum context length is {error.most} tokens; {error.prompt_tokens} prompt tokens and "
        f"{error.new_tokens} new ones are more"
    )
    return invalid(message, names.get(error.param, error.param), "context_length_exceeded")


def text_too_long(characters: int, most_tokens: int, param: str) -> ApiError:
    """400: a text that is more tokens than fit, however many; in the words that clients look for."""
    message = f"This model's maximum context length is {most_tokens} tokens; a text of {characters} characters is more"
    return invalid(message, param, "context_length_exceeded")


def not_found() -> ApiError:
    """404: no such route."""
    return ApiError(404, "invalid_request_error", "there is nothing at this address", code="not_found")


def model_not_found(name: str, names: tuple[str, ...], param: str = "model") -> ApiError:
    """404: what ``param`` says is not one of the served names."""
    shown = name if len(name) <= 64 else name[:61] + "..."
    message = f"the model {shown!r} does not exist here; served is {', '.join(names)}"
    return ApiError(404, "invalid_request_error", message, code="model_not_found", param=param)


def too_large(most: int) -> ApiError:
    """413: the body is larger than accepted."""
    return ApiError(
        413,
        "invalid_request_error",
        f"the request body is larger than {most} bytes",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def invalid_http(message: str = "this is not a valid HTTP/1.1 request", code: str = "invalid_http") -> ApiError:
    """400: bytes that are no request, or could be read as two; the connection ends."""
    return ApiError(400, "invalid_request_error", message, code=code, headers={"Connection": "close"})


def head_too_large(most: int) -> ApiError:
    """431: the request line and its header fields."""
    message = f"the head of the request is larger than {most} bytes, or has too many fields"
    return ApiError(431, "invalid_request_error", message, code="head_too_large", headers={"Connection": "close"})


def media_type(message: str) -> ApiError:
    """415: not JSON, or compressed."""
    return ApiError(
        415, "invalid_request_error", message, code="unsupported_media_type", headers={"Connection": "close"}
    )


def queue_full(what: str, retry_after_s: int) -> ApiError:
    """429: the bounded queue is full; the same request may be sent again."""
    return ApiError(
        429,
        "overloaded_error",
        f"the server is full ({what}); try again in about {retry_after_s} s",
        code="queue_full",
        headers={"Retry-After": str(retry_after_s)},
    )


def sessions_full(error: SessionsFullError) -> ApiError:
    """429: the key has as many sessions as it may have. Deleting one helps, asking again does not."""
    headers = {"Retry-After": str(max(1, min(120, math.ceil(error.retry_after_s)))), "x-should-retry": "false"}
    return ApiError(429, "overloaded_error", str(error), code=error.code, param=error.param, headers=headers)


def adapters_full(error: AdapterLimitError) -> ApiError:
    """429: as many adapters as there is room for. Asking again helps only where one is still being used up."""
    headers = {"Retry-After": "1" if error.soon else "120", "x-should-retry": "true" if error.soon else "false"}
    return ApiError(429, "overloaded_error", str(error), code=error.code, param="lora_name", headers=headers)


def unavailable(message: str, retry_after_s: int = 5) -> ApiError:
    """503: draining, stopped or broken."""
    return ApiError(503, "unavailable", message, code="unavailable", headers={"Retry-After": str(retry_after_s)})


def lost() -> ApiError:
    """503: the engine ended with this request in it, which may be the reason; clients are not to send it again."""
    message = "the engine ended while it had this request"
    return ApiError(503, "unavailable", message, code="engine_lost", headers={"x-should-retry": "false"})


def timed_out(waiting: bool = False) -> ApiError:
    """504: the request's deadline passed; ``waiting``: before anything of it was computed."""
    if waiting:
        return ApiError(504, "timeout", "the deadline of this request passed while it waited", code="queue_timeout")
    return ApiError(504, "timeout", "the deadline of this request has passed", code="timeout")


def gone() -> ApiError:
    """The client left; the status is nginx's, for the metrics only."""
    return ApiError(499, "client_closed_request", "the client closed the connection", code="client_closed_request")


def broken_template(sentence: str) -> ApiError:
    """500: the served checkpoint's chat template does not compile; only completions can be served."""
    message = f"the model cannot chat: its {sentence}"
    return ApiError(500, "internal_error", message, code="chat_template_error", param="messages")


def internal(request_id: str) -> ApiError:
    """500: our defect; nothing but the request id goes out."""
    return ApiError(500, "internal_error", f"internal error; request id {request_id}", code="internal_error")


def from_info(info: ErrorInfo, request_id: str, names: Mapping[str, str] | None = None) -> ApiError:
    """What the engine said about a request. ``names`` renames its parameters to those the client used."""
    if info.http_status == 400:
        param = None if info.param is None else (names or {}).get(info.param, info.param)
        return invalid(info.message, param)
    if info.http_status in (404, 409):
        return ApiError(info.http_status, "invalid_request_error", info.message, code=info.code, param=info.param)
    if info.http_status == 429:
        return queue_full("its queue", 1)
    if info.code == EngineLostError.code:
        return lost()
    if info.http_status == 503:
        return unavailable("the engine is not available")
    error = internal(request_id)
    if info.code in ("no_distribution", ModerationError.code):
        error.code, error.message = info.code, f"{info.message}; request id {request_id}"
    return error


def from_exception(error: LinnetError, request_id: str, names: Mapping[str, str] | None = None) -> ApiError:
    """A LinnetError raised on our side of the engine."""
    if isinstance(error, SessionsFullError):
        return sessions_full(error)
    return from_info(error_info(error), request_id, names)
