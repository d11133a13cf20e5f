# SPDX-License-Identifier: Apache-2.0
"""JSON as RFC 8259 means it, within bounds, in bounded time."""

import contextlib
import json
import time
from typing import Any

import pytest

from linnet.serve.body import MOST_DEPTH, parse_object, too_deep
from linnet.serve.errors import ApiError


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + closing * depth


@pytest.mark.parametrize("value", [{}, {"a": [1, 2.5, None, True, "x"]}, {"é": "😀"}, {"a": {"b": {"c": [[]]}}}])
def test_plain_objects_pass(value: dict[str, Any]) -> None:
    assert parse_object(json.dumps(value).encode()) == value
    assert parse_object(json.dumps(value, ensure_ascii=False).encode()) == value


def test_depth_is_exact_and_blind_to_strings() -> None:
    assert not too_deep(nested(MOST_DEPTH))
    assert too_deep(nested(MOST_DEPTH + 1))
    assert too_deep(b'{"a":' * (MOST_DEPTH + 1) + b"1" + b"}" * (MOST_DEPTH + 1))
    assert not too_deep(b'{"a": "' + b"[" * 10_000 + b'"}')
    assert not too_deep(rb'{"a": "\"' + b"[" * 10_000 + b'"}')
    assert too_deep(rb'{"a": "\\"' + b"[" * 10_000)
    assert not too_deep(b"[" + b"[]," * 10_000 + b"[]]")


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * (1 << 20),
        b'"' * (1 << 20),
        b"\\" * (1 << 20),
        b"[" * (1 << 20),
        b"[]" * (1 << 20),
        b"]" * (1 << 20),
        (b"[" * 60 + b"]" * 60) * 10_000,
        b'{"a":' * (1 << 17),
        b'{"prompt": "' + b"\\ud83d\\ude00" * (1 << 16) + b'"}',
    ],
)
def test_hostile_megabytes_are_judged_quickly(body: bytes) -> None:
    began_s = time.process_time()
    with contextlib.suppress(ApiError):
        parse_object(body)
    assert time.process_time() - began_s < 1.0


def test_the_place_of_a_lone_surrogate_is_named() -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(b'{"messages": [{"content": "\\udcff"}]}')
    assert caught.value.param == "messages[0].content"


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 21, "-" + "9" * 20])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(ApiError):
        parse_object(f'{{"a": {text}}}'.encode())


def test_errors_do_not_show_the_body() -> None:
    for body in (b'{"a": "sentinel" x}', b'{"sentinel', b'"sentinel"'):
        with pytest.raises(ApiError) as caught:
            parse_object(body)
        assert "sentinel" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"temperature": NaN}', "temperature"),
        (b'{"a": 1, "top_p": -Infinity}', "top_p"),
        (b'{"logit_bias": {"5": 1e400}}', "logit_bias.5"),
        (b'{"prompt": [[1], [2, ' + b"9" * 21 + b"]]}", "prompt[1][1]"),
        (b"[NaN]", "[0]"),
        (b"NaN", None),
    ],
)
def test_the_place_of_a_number_that_is_none_is_named(body: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(body)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, "invalid_json")


def test_integers_of_64_bits_pass() -> None:
    assert parse_object(b'{"seed": 18446744073709551615}') == {"seed": 2**64 - 1}
