# SPDX-License-Identifier: Apache-2.0
"""Stop strings and the text of one sample: the result depends on the text, never on how it was cut."""

import json
import os
import random

import pytest
from tiny_llama import byte_level_tokenizer, sentencepiece_tokenizer

from linnet.api import SampleStream, SamplingParams, StopFinder, TokenLogprob
from linnet.engine import ErrorInfo, Finished, Tokens
from linnet.text import Tokenizer

TRIALS = int(os.environ.get("LINNET_TEXT_TRIALS", "300"))


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Try every end in order; among the stops that end there, the longest."""
    for end in range(len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            longest = max(matches, key=len)
            return text[: end - len(longest)], longest
    return text, None


def pieces(rng: random.Random, text: str) -> list[str]:
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(6)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def test_stops_are_found_however_the_text_is_cut() -> None:
    rng = random.Random(5)
    for _ in range(TRIALS * 10):
        stops = ["".join(rng.choice("ab") for _ in range(rng.randrange(1, 6))) for _ in range(rng.randrange(4))]
        text = "".join(rng.choice("abc") for _ in range(rng.randrange(20)))
        finder, out = StopFinder(list(dict.fromkeys(stops))), ""
        expected, matched = oracle(text, stops)
        for piece in pieces(rng, text):
            out += finder.feed(piece)
            assert expected.startswith(out), "the beginning of a stop string was let out"
        out += finder.finish()
        assert (out, finder.matched) == (expected, matched), (text, stops)


def tokenizers() -> dict[str, Tokenizer]:
    return {
        "byte level": Tokenizer(json.dumps(byte_level_tokenizer())),
        "byte fallback": Tokenizer(json.dumps(sentencepiece_tokenizer())),
    }


@pytest.mark.parametrize("name", ["byte level", "byte fallback"])
def test_streams_of_random_tokens(name: str) -> None:
    tokenizer = tokenizers()[name]
    rng = random.Random(name)
    stops = ["the", "é", "😀", " a", "\ufffd", "in the", "on", "xa"]
    for _ in range(TRIALS):
        ids = [rng.randrange(tokenizer.vocabulary_size) for _ in range(rng.randrange(1, 40))]
        chosen = rng.sample(stops, rng.randrange(3))
        include, skip = rng.random() < 0.3, rng.random() < 0.5
        params = SamplingParams(stop=chosen, include_stop_str=include, skip_special_tokens=skip, logprobs=0)
        stream = SampleStream(tokenizer, params, index=2)
        shown, used = "", 0
        expected, matched = oracle(tokenizer.decode(ids, skip), chosen)
        if matched is not None and include:
            expected += matched
        for token_id in ids:
            piece = stream.feed(Tokens(0, (token_id,), (TokenLogprob(token_id, -1.0),)))
            used += len(piece.token_ids)
            shown += piece.text
            assert expected.startswith(shown)
            if stream.stopped:
                break
        shown += stream.finish(Finished(0, "abort" if stream.stopped else "length")).text
        completion = stream.completion()
        assert completion.text == shown == expected
        assert completion.finish_reason == ("stop" if matched is not None else "length")
        assert completion.stop_reason == matched
        assert completion.token_ids == tuple(ids[:used])
        assert completion.logprobs is not None
        assert len(completion.logprobs) == used


def test_a_stop_token_is_not_shown() -> None:
    tokenizer = tokenizers()["byte level"]
    end = tokenizer.token_id("Ġthe")
    assert end is not None
    for include, text in ((False, "a"), (True, "a the")):
        params = SamplingParams(include_stop_str=include)
        stream = SampleStream(tokenizer, params, frozenset([end]))
        for token_id in (*tokenizer.encode("a"), end):
            stream.feed(Tokens(0, (token_id,)))
        stream.finish(Finished(0, "stop", cached_tokens=3))
        completion = stream.completion()
        assert (completion.text, completion.stop_reason, completion.token_ids[-1]) == (text, end, end)
        assert stream.cached_tokens == 3


def test_stop_strings_wait_for_min_tokens() -> None:
    tokenizer = tokenizers()["byte level"]
    stream = SampleStream(tokenizer, SamplingParams(stop="b", min_tokens=3))
    text = "".join(stream.feed(Tokens(0, (token_id,))).text for token_id in tokenizer.encode("abaXb", False))
    assert (text, stream.stopped) == ("abaX", True)


def test_tokens_after_a_stop_are_ignored() -> None:
    tokenizer = tokenizers()["byte level"]
    stream = SampleStream(tokenizer, SamplingParams(stop="b"))
    for token_id in tokenizer.encode("abcd", False):
        stream.feed(Tokens(0, (token_id,)))
    piece = stream.finish(Finished(0, "error", error=ErrorInfo("x", "late")))
    assert (piece.finish_reason, stream.error, stream.text) == ("stop", None, "a")
    assert len(stream.token_ids) == 2
