# SPDX-License-Identifier: Apache-2.0
"""How answers are written: compact JSON, strict (no NaN), UTF-8."""

import json
from typing import Any

from starlette.responses import Response

from linnet.serve.errors import ApiError

LEAST_LOGPROB = -9999.0
"""JSON has no infinity; a token that is impossible gets this, as at OpenAI."""


def encode(value: Any) -> bytes:
    """Compact UTF-8 JSON; a NaN would be our defect and raises ValueError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def encode_answer(answer: dict[str, Any]) -> bytes:
    """``encode``, one choice or vector at a time: the encoder holds the interpreter, and a thousand would be felt."""
    many = next((name for name in ("choices", "data", "results") if name in answer), None)
    if many is None:
        return encode(answer)
    rest = encode({name: value for name, value in answer.items() if name != many})
    return rest[:-1] + f',"{many}":['.encode() + b",".join(encode(one) for one in answer[many]) + b"]}"


class JsonAnswer(Response):
    """A JSON response; bytes are taken as encoded already."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else encode(content)


def error_answer(error: ApiError) -> JsonAnswer:
    """The response of an ApiError."""
    return JsonAnswer(error.body(), status_code=error.status, headers=error.headers)
