# SPDX-License-Identifier: Apache-2.0
"""What an answer is to look like, in the spellings of OpenAI, vLLM and llama.cpp."""

from collections.abc import Iterator, Mapping
from typing import Any

from linnet.api import StructuredOutput
from linnet.serve.errors import invalid, unsupported
from linnet.serve.protocol.record import Record

_VLLM = {
    "json": "json_schema",
    "json_object": "json_object",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "structural_tag": "structural_tag",
}
"""Fields of ``structured_outputs`` -> kinds."""
_ALONE = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json_schema",
    "grammar": "grammar",
}
"""Parameters that are a kind each: vLLM's older ones, llama.cpp's."""


class StructuredFields(Record):
    """Give one of them."""

    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: Any = None
    grammar: str | None = None


def structured_of(request: StructuredFields) -> tuple[StructuredOutput, str] | None:
    """What is asked for, and the parameter that asks; None for text of any form. Raises ApiError 400."""
    found = list(_found(request))
    if len(found) > 1:
        raise invalid(f"{found[0][1]} and {found[1][1]} cannot both be given: an answer has one form", found[1][1])
    return found[0] if found else None


def _found(request: StructuredFields) -> Iterator[tuple[StructuredOutput, str]]:
    if request.response_format is not None:
        wanted = _of_response_format(request.response_format)
        if wanted is not None:
            yield wanted
    if request.structured_outputs is not None:
        yield from _of_structured_outputs(request.structured_outputs)
    for name, kind in _ALONE.items():
        value = getattr(request, name)
        if value is not None and not (name == "grammar" and value == ""):
            yield StructuredOutput(kind, value), name  # type: ignore[arg-type]


def _of_response_format(value: Any) -> tuple[StructuredOutput, str] | None:
    name = "response_format"
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise invalid("response_format must be an object with a type", name, "invalid_type")
    kind = value["type"]
    if kind == "text":
        return None
    if kind == "structural_tag":
        return StructuredOutput("structural_tag", value), name
    if kind == "json_object":
        schema = value.get("schema")  # llama.cpp's
        wanted = StructuredOutput("json_object") if schema is None else StructuredOutput("json_schema", schema)
        return wanted, name
    if kind == "json_schema":
        inner = value.get("json_schema")
        holder = value if inner is None else inner
        if not isinstance(holder, Mapping) or "schema" not in holder:
            raise invalid("response_format.json_schema must be an object with a schema", f"{name}.json_schema")
        return StructuredOutput("json_schema", holder["schema"]), name
    raise unsupported(
        f"{name}.type", f"{name}.type is not supported; accepted: text, json_object, json_schema, structural_tag"
    )


def _of_structured_outputs(value: Any) -> Iterator[tuple[StructuredOutput, str]]:
    name = "structured_outputs"
    if not isinstance(value, Mapping):
        raise invalid(f"{name} must be an object", name, "invalid_type")
    for key, one in value.items():
        if one is None or one is False:
            continue
        if key not in _VLLM:
            raise unsupported(f"{name}.{key[:60]}", f"{name}.{key[:60]} is not supported; accepted: {', '.join(_VLLM)}")
        yield StructuredOutput(_VLLM[key], None if key == "json_object" else one), f"{name}.{key}"  # type: ignore[arg-type]
