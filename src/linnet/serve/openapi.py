# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document of the routes that there are: bodies from the records that read them, errors from one schema."""

import warnings
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

import linnet
from linnet.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from linnet.serve.protocol.adapters import LoadAdapterRequest, UnloadAdapterRequest
from linnet.serve.protocol.record import Record
from linnet.serve.protocol.responses import ResponsesRequest
from linnet.serve.protocol.scoring import RerankRequest, ScoreRequest

BODIES: Mapping[str, type[Record]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/score": ScoreRequest,
    "/v1/rerank": RerankRequest,
    "/v1/load_lora_adapter": LoadAdapterRequest,
    "/v1/unload_lora_adapter": UnloadAdapterRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
ERRORS = {
    "400": "Something is wrong with the request; param names it.",
    "401": "No valid API key.",
    "403": "A Host or Origin that is not served.",
    "404": "There is no such model or address.",
    "408": "The body did not arrive in time.",
    "409": "The session is in another turn.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "The server is full; Retry-After says when to try again.",
    "431": "The head of the request is too large.",
    "500": "A defect of the server's; the message holds the request id.",
    "503": "The server ends, or its engine is being started again.",
    "504": "The deadline of the request passed.",
}
TEXT = {"type": ["string", "null"]}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": TEXT, "code": TEXT},
        }
    },
}
STREAMED = ("/v1/completions", "/v1/chat/completions", "/v1/responses")


def document(app: FastAPI, keys_required: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of everything that is routed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate Operation ID")  # they get ours
        found = get_openapi(title="Linnet", version=linnet.__version__, routes=app.routes)
    records = {record for path, record in BODIES.items() if path in found["paths"]}
    names, schemas = models_json_schema([(record, "validation") for record in records],
                                        ref_template="#/components/schemas/{model}")  # fmt: skip
    components = {"schemas": {**schemas.get("$defs", {}), "Error": ERROR}}
    if keys_required:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    found["components"] = components
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            operation["operationId"] = f"{method} {path}"
            operation["responses"] = _answers(path, operation["responses"])
            if path in BODIES:
                schema = names[(BODIES[path], "validation")]
                operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found


def _answers(path: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What FastAPI says of success, and our errors."""
    answers: dict[str, Any] = {status: answer for status, answer in given.items() if status < "400"}
    if path in STREAMED:
        answers["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    if path == "/" or path.startswith("/page"):
        answers["200"]["content"] = {"*/*": {}}
    if path == "/metrics":
        answers["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {status: {"description": text, "content": content} for status, text in ERRORS.items()}
    if path == "/health":
        errors["503"] = {"description": "Not ready; status says why.", "content": {"application/json": {"schema": {}}}}
    return {**answers, **errors}
