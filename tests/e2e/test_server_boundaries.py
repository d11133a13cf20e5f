# SPDX-License-Identifier: Apache-2.0
"""R4: every field of every request x every odd value: 200 exactly where the table says so, else a 400 that names it.

The fields come from the records that read the requests, so a new one is refused by this test until it is tabled. A
field may be left out of the table where nothing but null is accepted of these values.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from serving import NAME, Running, tiny_directory
from test_server_bad_requests import JSON
from tiny_adapter import linears_of, write_adapter

from linnet.api import LLM
from linnet.serve.openapi import BODIES

VALUES = {
    "NaN": "NaN", "Infinity": "Infinity", "-Infinity": "-Infinity", "-1": "-1", "0": "0", "0.5": "0.5",
    "2^31": "2147483648", "2^63": "9223372036854775808", "1e308": "1e308", "text": '"1"', "true": "true",
    "[]": "[]", "{}": "{}",
}  # fmt: skip
"""As JSON, or what is sent in its place."""
BASES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/v1/responses": {"input": "x", "max_output_tokens": 1},
    "/v1/embeddings": {"input": "x"},
    "/v1/score": {"text_1": "x", "text_2": "y"},
    "/v1/rerank": {"query": "x", "documents": ["x", "y"]},
    "/v1/load_lora_adapter": {"lora_name": "1", "lora_path": "1"},
    "/v1/unload_lora_adapter": {"lora_name": "1", "lora_int_id": 1},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [5]},
}


SWITCH, WORD, NOTHING = {"true"}, {"text"}, set[str]()
FRACTION, WHOLE = {"0", "0.5"}, {"-1", "0"}
ACCEPTED: dict[str, set[str]] = {
    "temperature": FRACTION, "top_p": FRACTION, "min_p": FRACTION, "repetition_penalty": {"0.5"}, "timeout_s": {"0.5"},
    "presence_penalty": {"-1", *FRACTION}, "frequency_penalty": {"-1", *FRACTION}, "length_penalty": {"-1", *FRACTION},
    "seed": {*WHOLE, "2^31", "2^63"}, "top_k": WHOLE, "top_n": {"0", "2^31", "2^63"}, "truncate_prompt_tokens": {"-1"},
    "min_tokens": {"0"}, "prompt_logprobs": {"0"}, "logprobs": {"0"}, "top_logprobs": {"0"}, "priority": {"0"},
    "stream": SWITCH, "ignore_eos": SWITCH, "use_beam_search": SWITCH, "early_stopping": SWITCH, "echo": SWITCH,
    "include_stop_str_in_output": SWITCH, "skip_special_tokens": SWITCH, "add_special_tokens": SWITCH, "store": SWITCH,
    "return_token_ids": SWITCH, "return_tokens_as_token_ids": SWITCH, "return_token_strs": SWITCH,
    "return_documents": SWITCH, "add_generation_prompt": SWITCH, "continue_final_message": SWITCH,
    "include_reasoning": SWITCH,
    "parallel_tool_calls": SWITCH, "guided_json": {"true", "{}"}, "json_schema": {"true", "{}"},
    "structured_outputs": {"{}"}, "logit_bias": {"{}"}, "stream_options": {"{}"}, "metadata": {"{}"}, "text": {"{}"},
    "reasoning": {"{}"}, "chat_template_kwargs": {"{}"}, "stop": {"text", "[]"}, "stop_token_ids": {"[]"},
    "bad_words": {"[]"}, "prompt_modules": {"[]"}, "include": {"[]"}, "tools": {"[]"}, "tokens": {"[]"},
    "guided_regex": WORD, "cache_salt": WORD, "session": WORD, "user": WORD, "service_tier": WORD,
    "safety_identifier": WORD, "prompt_cache_key": WORD, "prompt_cache_retention": WORD, "instructions": WORD,
    "prompt": WORD, "input": WORD, "query": WORD, "text_1": WORD, "text_2": WORD,
    "lora_name": WORD, "lora_path": WORD,
}  # fmt: skip
ELSEWHERE: dict[tuple[str, str], set[str]] = {
    ("/v1/chat/completions", "logprobs"): SWITCH,
    ("/v1/responses", "tool_choice"): {"text", "{}"},  # nothing is chosen among: there are no tools
    ("/v1/unload_lora_adapter", "lora_int_id"): {*WHOLE, "2^31", "2^63"},  # the name says which
}
REQUIRED = {
    "model", "prompt", "messages", "input", "text_1", "text_2", "query", "documents", "tokens", "lora_name",
    "lora_path",
}  # fmt: skip
HEADERS = JSON | {"Authorization": "Bearer a-secret-key"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model, folder = tiny_directory(), tmp_path_factory.mktemp("adapters")
    write_adapter(folder / "1", linears_of(model))
    with (
        LLM(model, kv_bytes=4 << 20, max_adapters=1) as llm,
        Running(llm, adapters_from=folder, keys=("a-secret-key",)) as running,
    ):
        yield running
        running.wait_settled()


def asked(route: str, field: str, value: str) -> bytes:
    """A good body with one field replaced."""
    body = ({"model": NAME} if "model" in BODIES[route].model_fields else {}) | BASES[route]
    body.pop(field, None)
    if field == "stream_options":
        body["stream"] = True
    if (route, field) == ("/v1/chat/completions", "top_logprobs"):
        body["logprobs"] = True
    if (route, field) == ("/tokenize", "messages"):
        del body["prompt"]
    return f'{{"{field}": {value}, {json.dumps(body)[1:]}'.encode()


def prepare(server: Running, route: str) -> None:
    """What a good request unloads is loaded before it, and what one loads is not."""
    turns = ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"]
    if route in turns:
        other = turns[1 - turns.index(route)]
        server.http.post(other, json=BASES[other], headers=HEADERS)


def optional(route: str, field: str) -> bool:
    """Whether null means that it is not given."""
    return field not in REQUIRED or (route == "/tokenize" and field in ("model", "messages"))


@pytest.mark.parametrize("route", BODIES)
def test_every_field_takes_what_the_table_says_and_names_itself_otherwise(server: Running, route: str) -> None:
    assert set(BASES) == set(BODIES)
    wrong: list[str] = []
    for field in BODIES[route].model_fields:
        accepted = ELSEWHERE.get((route, field), ACCEPTED.get(field, NOTHING))
        kinds = VALUES | (
            {"null": "null"} if optional(route, field) and (route, field) != ("/tokenize", "messages") else {}
        )
        for kind, value in kinds.items():
            prepare(server, route)
            answer = server.http.post(route, content=asked(route, field, value), headers=HEADERS)
            good = kind in accepted or kind == "null"
            if good:
                fine = answer.status_code == 200 or (field == "timeout_s" and answer.status_code == 504)
            else:
                named = str(answer.json().get("error", {}).get("param")) if answer.status_code in (400, 404) else ""
                fine = named.split(".")[0].split("[")[0] == field
                fine &= answer.status_code == (404 if (field, kind) == ("model", "text") else 400)
            if not fine:
                wrong.append(f"{field} {kind}: {answer.status_code} {answer.text[:120]}")
            if field == "session":
                server.http.delete("/v1/sessions/1", headers=HEADERS)
    assert wrong == []


def test_enough_is_asked() -> None:
    fields = sum(len(record.model_fields) for record in BODIES.values())
    print(f"{fields} fields x {len(VALUES) + 1} values")
    assert fields > 150
