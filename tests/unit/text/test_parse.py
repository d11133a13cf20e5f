# SPDX-License-Identifier: Apache-2.0
"""Both ways of reading tokenizer.json give the same tokenizer, and what the short one refuses the library decides."""

import gc
import json
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from linnet.errors import CheckpointError
from linnet.text import Tokenizer, parse

TEXT = "hello low lower <s> x<pad> hell"


def pairs(text: str) -> list[tuple[str, str]]:
    return [tuple(pair.split("+")) for pair in text.split()]  # type: ignore[misc]


MERGES = pairs("h+e l+o l+l lo+w he+r")
VOCABULARY = {
    piece: index for index, piece in enumerate(["h", "e", "l", "o", "w", "r", "he", "lo", "ll", "low", "her"])
}


def made(**options: Any) -> dict[str, Any]:
    """A BPE tokenizer.json with added tokens of every kind, one of them in the vocabulary already."""
    extra = {options[name]: len(VOCABULARY) for name in ("unk_token",) if name in options}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=VOCABULARY | extra, merges=MERGES, **options))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<pad>", lstrip=True, normalized=False), AddedToken("low", single_word=True), "x"])
    tokenizer.add_special_tokens([AddedToken("<mask>", rstrip=True, normalized=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 11)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(pad_id=3)
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_merges": True},
        {"unk_token": "<unk>", "fuse_unk": True},
        {"unk_token": "<unk>", "byte_fallback": True},
        {"dropout": 0.25},
        {"end_of_word_suffix": "r"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.parametrize("old_merges", [False, True])
def test_the_short_way_gives_what_the_library_gives(options: dict[str, Any], old_merges: bool) -> None:
    content = made(**options)
    if old_merges:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    text = json.dumps(content).encode()
    theirs = tokenizers.Tokenizer.from_str(text.decode())
    found = parse._as_bpe(text)
    assert found is not None, "the short way did not take it"
    ours, size = found
    assert ours.to_str() == theirs.to_str()
    assert ours.get_vocab(with_added_tokens=True) == theirs.get_vocab(with_added_tokens=True)
    assert size == 1 + max(theirs.get_vocab(with_added_tokens=False).values())
    if "dropout" not in options:
        assert ours.encode(TEXT).ids == theirs.encode(TEXT).ids


def changed(**model: Any) -> bytes:
    content = made()
    content["model"] |= model
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "text",
    [
        changed(type="WordLevel", unk_token="h"),
        changed(novelty=1),
        changed(merges=["h e l"]),
        changed(merges=["#version: 0.2"]),
        changed(merges=[["h", "nowhere"]]),
        changed(vocab={"h": -1}),
        changed(dropout=7.0),
        b'{"version": "1.0"}',
        b"[]",
        b"{",
        b"\xff{}",
        json.dumps(made() | {"normalizer": {"type": "Nonsense"}}).encode(),
        json.dumps(made() | {"added_tokens": [{"id": 1}]}).encode(),
    ],
)
def test_what_is_not_plain_goes_to_the_library(text: bytes) -> None:
    assert parse._as_bpe(text) is None
    try:
        expected = tokenizers.Tokenizer.from_str(text.decode()).to_str()
    except Exception:
        with pytest.raises(CheckpointError, match=r"^here: not (a tokenizer this version can read|UTF-8 text)"):
            parse.parse_tokenizer(text, "here")
    else:
        assert parse.parse_tokenizer(text, "here")[0].to_str() == expected


def test_a_large_vocabulary_never_meets_the_slow_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = tokenizers.Tokenizer.from_buffer

    class Counting:
        @staticmethod
        def from_buffer(data: bytes) -> tokenizers.Tokenizer:
            read.append(len(data))
            return real(data)

    content = made()
    content["model"]["vocab"] |= {f"piece{index}": 100 + index for index in range(20_000)}
    text = json.dumps(content).encode()
    monkeypatch.setattr(parse.tokenizers, "Tokenizer", Counting)
    tokenizer = Tokenizer(text)
    assert tokenizer.vocabulary_size == 20_100
    assert len(read) == 1
    assert read[0] < len(text) / 100


@pytest.mark.parametrize("text", [changed(), b"{"])
@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_left_as_it_was(text: bytes, collecting: bool) -> None:
    (gc.enable if collecting else gc.disable)()
    try:
        parse.parse_tokenizer(text, "here")
    except CheckpointError:
        pass
    finally:
        found = gc.isenabled()
        gc.enable()
    assert found is collecting
