# SPDX-License-Identifier: Apache-2.0
"""Streaming equals decoding at once, byte for byte, on random ids; nothing that was let out is ever wrong."""

import json
import os
import random
from pathlib import Path

import pytest
from tiny_llama import byte_level_tokenizer, sentencepiece_tokenizer

from linnet.text import Tokenizer

TRIALS = int(os.environ.get("LINNET_TEXT_TRIALS", "300"))
MODELS = Path(__file__).resolve().parents[4] / "shared" / "models"


def with_decoder(decoder: dict | None) -> dict:
    return {**sentencepiece_tokenizer(), "decoder": decoder}


SEQUENCE = {
    "type": "Sequence",
    "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 2, "stop": 1}],
}
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": True}
REPLACE = {"type": "Replace", "pattern": {"String": "the"}, "content": ""}
TOKENIZERS = {
    "byte level": byte_level_tokenizer(),
    "byte fallback": sentencepiece_tokenizer(),
    "byte fallback without strip": sentencepiece_tokenizer(strip=False),
    "metaspace": with_decoder({**METASPACE, "prepend_scheme": "always"}),
    "metaspace, never": with_decoder({**METASPACE, "prepend_scheme": "never"}),
    "no decoder": with_decoder(None),
    "word piece": with_decoder({"type": "WordPiece", "prefix": "th", "cleanup": True}),
    "bpe suffix": with_decoder({"type": "BPEDecoder", "suffix": "e"}),
    "pattern": with_decoder({"type": "Replace", "pattern": {"Regex": "[a-e]+"}, "content": "*"}),
    "long replace after fuse": with_decoder({"type": "Sequence", "decoders": [{"type": "Fuse"}, REPLACE]}),
    "strip of a fused token": with_decoder(SEQUENCE),
    "strip of tokens": with_decoder({"type": "Strip", "content": "t", "start": 1, "stop": 1}),
}


def random_ids(rng: random.Random, size: int) -> list[int]:
    """Half anything, half bytes in a row (some of them forming characters)."""
    ids: list[int] = []
    for _ in range(rng.randrange(12)):
        if rng.random() < 0.5:
            ids.append(rng.randrange(size + 3))
        else:
            text = "".join(rng.choice("aé€😀 ̈\u202e漢") for _ in range(rng.randrange(1, 4))).encode()
            cut = text[: rng.randrange(len(text)) + 1] if rng.random() < 0.5 else text
            ids += [3 + byte for byte in cut]
    return ids


def check(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    whole = tokenizer.decode(ids, skip)
    decoder, out = tokenizer.incremental_decoder(skip), ""
    for token_id in ids:
        out += decoder.feed([token_id])
        assert whole.startswith(out), f"{ids}: {out!r} was let out, the text is {whole!r}"
    assert out + decoder.finish() == whole, f"{ids}"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_streaming_equals_decoding_at_once(name: str) -> None:
    tokenizer = Tokenizer(json.dumps(TOKENIZERS[name]))
    rng = random.Random(f"linnet {name}")
    for _ in range(TRIALS):
        check(tokenizer, random_ids(rng, tokenizer.vocabulary_size), rng.random() < 0.5)


@pytest.mark.parametrize("model", ["novels7M", "stories260K-hf"])
def test_streaming_equals_decoding_at_once_on_trained_tokenizers(model: str) -> None:
    if not (MODELS / model).is_dir():
        pytest.skip("the shared models are not on this machine")
    tokenizer = Tokenizer.from_directory(MODELS / model)
    rng = random.Random(model)
    for _ in range(TRIALS):
        check(tokenizer, random_ids(rng, tokenizer.vocabulary_size), rng.random() < 0.5)


def test_a_character_waits_for_its_last_byte() -> None:
    tokenizer = Tokenizer(json.dumps(byte_level_tokenizer()))
    decoder = tokenizer.incremental_decoder()
    ids = [tokenizer.token_id(token) for token in ("ð", "Ł", "ĺ", "Ģ", "a")]
    assert [decoder.feed([token_id]) for token_id in ids] == ["", "", "", "😀", "a"]  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["byte level", "byte fallback", "metaspace", "no decoder", "word piece", "bpe suffix"])
def test_what_follows_a_prompt_is_the_rest_of_the_whole_text(name: str) -> None:
    tokenizer = Tokenizer(json.dumps(TOKENIZERS[name]))
    rng = random.Random(name)
    words = [i for i in range(259, tokenizer.vocabulary_size) if "\ufffd" not in tokenizer.decode([i])]
    for _ in range(TRIALS):
        prompt = [rng.choice(words) for _ in range(rng.randrange(1, 6))]
        answer = [rng.choice(words) for _ in range(rng.randrange(1, 6))]
        decoder = tokenizer.incremental_decoder().follow(prompt)
        text = "".join(decoder.feed([token_id]) for token_id in answer) + decoder.finish()
        whole = tokenizer.decode(prompt + answer)
        if name == "bpe suffix":  # the last token's suffix is nothing, so the prompt's own text ends otherwise
            assert whole.endswith(text)
        else:
            assert whole == tokenizer.decode(prompt) + text


def test_a_character_of_the_prompt_is_never_repeated() -> None:
    tokenizer = Tokenizer(json.dumps(sentencepiece_tokenizer()))
    face = [3 + byte for byte in "😀".encode()]
    decoder = tokenizer.incremental_decoder().follow(face)
    assert decoder.feed(face) + decoder.finish() == "😀"
    decoder = tokenizer.incremental_decoder().follow([*face, *face[:2]])
    assert decoder.feed(face[2:]) + decoder.finish() == "😀"
