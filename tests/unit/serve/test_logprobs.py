# SPDX-License-Identifier: Apache-2.0
"""Token texts, offsets and alternatives."""

import json
import math
from pathlib import Path

import pytest
from tiny_llama import byte_level_tokenizer, sentencepiece_tokenizer, write_tokenizer

from linnet.api import TokenLogprob
from linnet.serve.logprobs import LegacyLogprobs, TokenTexts, chat_content, entries_of
from linnet.text import Tokenizer


@pytest.fixture(params=["byte_level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    kind = byte_level_tokenizer() if request.param == "byte_level" else sentencepiece_tokenizer()
    return Tokenizer.from_directory(write_tokenizer(tmp_path, kind))


def scored(token_ids: list[int]) -> list[TokenLogprob]:
    return [TokenLogprob(token_id, -0.5, ((token_id, -0.5), (5, -2.0))) for token_id in token_ids]


@pytest.mark.parametrize("text", ["the rain in a", "é the é", "the 😀 in 😀😀"])
def test_offsets_point_into_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    blocks = LegacyLogprobs(tokenizer, TokenTexts(tokenizer, False), True)
    whole = blocks.block(entries_of(scored(ids)))
    offsets = whole["text_offset"]
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    shown = tokenizer.decode(ids)
    for index, (token, offset) in enumerate(zip(whole["tokens"], offsets, strict=True)):
        if not token.startswith("bytes:") and index:
            assert shown[offset : offset + len(token)] == token
    again = LegacyLogprobs(tokenizer, TokenTexts(tokenizer, False), True)
    parts = [again.block(entries_of(scored([token_id]))) for token_id in ids]
    assert [offset for part in parts for offset in part["text_offset"]] == offsets


def test_parts_of_characters_stay_apart_and_infinity_is_written(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀", add_special_tokens=False)
    texts = TokenTexts(tokenizer, False)
    assert len({texts.legacy(token_id) for token_id in ids}) == len(set(ids))
    top = tuple((token_id, -math.inf) for token_id in ids)
    block = LegacyLogprobs(tokenizer, texts, True).block(entries_of([TokenLogprob(ids[0], -math.inf, top)]))
    assert block["token_logprobs"] == [-9999.0]
    assert len(block["top_logprobs"][0]) == len(set(ids))
    content = chat_content(texts, [TokenLogprob(ids[-1], -1.0, top)])
    assert bytes(content[0]["bytes"]) == tokenizer.token_bytes(ids[-1])
    json.dumps(content, allow_nan=False)


def test_the_chosen_token_is_always_among_the_alternatives(tokenizer: Tokenizer) -> None:
    texts = TokenTexts(tokenizer, True)
    block = LegacyLogprobs(tokenizer, texts, True).block(entries_of([TokenLogprob(9, -7.0, ((5, -0.1),))]))
    assert block["top_logprobs"] == [{"token_id:5": -0.1, "token_id:9": -7.0}]
