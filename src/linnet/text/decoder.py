# SPDX-License-Identifier: Apache-2.0
"""Decoding token by token: what is returned never has to be taken back.

``tokenizer.json`` describes its decoder as a chain of stages that work on a list of tokens; their results are
concatenated. Each stage is rebuilt here as a transducer that returns a piece as soon as no later token can change it:

* ByteLevel: bytes of all tokens are one stream; an incomplete UTF-8 character waits, an invalid one becomes U+FFFD as
  Rust's ``from_utf8_lossy`` does (maximal subparts, as Python's decoder).
* ByteFallback: a run of ``<0x..>`` tokens is text only if the *whole* run is valid UTF-8, else one U+FFFD per byte; so
  a run waits for its end.
* Replace, Fuse, Strip, Metaspace, BPEDecoder: as the ``tokenizers`` library does.
* any other stage (WordPiece, CTC, patterns): its tokens wait for the end and pass through the library's own stage.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Sequence
from string import hexdigits
from typing import Any, Protocol

from tokenizers import decoders

from linnet.errors import CheckpointError

CONTEXT_TOKENS = 64
"""Tokens of a prompt that are enough to know how its end bears on what follows."""


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable bytes stand for themselves, the others for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


BYTE_OF = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    """A token with any character outside the alphabet (an added token) stands for its own UTF-8 text."""
    codes = [BYTE_OF.get(character) for character in token]
    return token.encode() if None in codes else bytes(code for code in codes if code is not None)


def _fallback_byte(token: str) -> int | None:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">") and set(token[3:5]) <= set(hexdigits):
        return int(token[3:5], 16)
    return None


class Stage(Protocol):
    """Takes tokens (or pieces of one fused token), returns tokens that are final.

    ``settle`` forgets the text of what was fed so far (a prompt) and keeps only how it bears on what follows.
    """

    def feed(self, token: str) -> list[str]: ...
    def settle(self) -> None: ...
    def finish(self) -> list[str]: ...


class ByteLevelStage:
    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: str) -> list[str]:
        return [self._utf8.decode(_byte_level_bytes(token))]

    def settle(self) -> None:
        """Bytes of an unfinished character stay: the next token may complete it."""

    def finish(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


class ByteFallbackStage:
    def __init__(self) -> None:
        self._run = bytearray()

    def feed(self, token: str) -> list[str]:
        byte = _fallback_byte(token)
        if byte is None:
            return [*self.finish(), token]
        self._run.append(byte)
        return []

    def settle(self) -> None:
        """Only an unfinished character at the end of the run stays."""
        utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        try:
            utf8.decode(bytes(self._run))
            self._run = bytearray(utf8.getstate()[0])
        except UnicodeDecodeError:
            self._run = bytearray()

    def finish(self) -> list[str]:
        run, self._run = bytes(self._run), bytearray()
        if not run:
            return []
        try:
            return [run.decode()]
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


class PerTokenStage:
    """A stage whose result for a token depends on nothing but the token and whether it is the first."""

    def __init__(self, function: Callable[[str, bool], str]) -> None:
        self._function = function
        self._first = True

    def feed(self, token: str) -> list[str]:
        first, self._first = self._first, False
        return [self._function(token, first)]

    def settle(self) -> None:
        """Nothing waits here."""

    def finish(self) -> list[str]:
        return []


class FusedStripStage:
    """Strip of one fused token that arrives in pieces: leading characters go, trailing candidates wait."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content, self._start, self._stop = content, start, stop
        self._held = ""

    def feed(self, token: str) -> list[str]:
        while self._start and token:
            if token[0] != self._content:
                self._start = 0
            else:
                token, self._start = token[1:], self._start - 1
        text = self._held + token
        kept = len(text)
        while self._stop and kept and len(text) - kept < self._stop and text[kept - 1] == self._content:
            kept -= 1
        self._held = text[kept:]
        return [text[:kept]]

    def settle(self) -> None:
        """What waits was not the end of the text, so it belongs to the prompt."""
        self._held = ""

    def finish(self) -> list[str]:
        return [] if self._stop else [self._held]


class LastDiffersStage:
    """BPEDecoder: the suffix is a space, except at the end of the last token, where it is nothing."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: str | None = None

    def feed(self, token: str) -> list[str]:
        held, self._held = self._held, token
        return [] if held is None else [held.replace(self._suffix, " ")]

    def settle(self) -> None:
        """The space after the prompt's last word belongs to what follows."""
        if self._held is not None:
            self._held = self._suffix if self._held.endswith(self._suffix) else ""

    def finish(self) -> list[str]:
        return [] if self._held is None else [self._held.replace(self._suffix, "")]


class CollectStage:
    """Waits for everything and lets the library's own stage decode it."""

    def __init__(self, decode: Callable[[list[str]], str], fused: bool) -> None:
        self._decode, self._fused = decode, fused
        self._tokens: list[str] = []
        self._settled = 0

    def feed(self, token: str) -> list[str]:
        self._tokens.append(token)
        return []

    def settle(self) -> None:
        """The prompt's tokens stay as context and are cut off at the end."""
        self._settled = len(self._tokens)

    def finish(self) -> list[str]:
        whole, before = self._text(self._tokens), self._text(self._tokens[: self._settled])
        return [whole.removeprefix(before)]

    def _text(self, tokens: list[str]) -> str:
        if not tokens:
            return ""
        return self._decode(["".join(tokens)] if self._fused else tokens)


class DecoderSpec:
    """The decoder entry of a ``tokenizer.json``; makes fresh chains of stages."""

    def __init__(self, description: dict[str, Any] | None) -> None:
        self.stages = _flatten(description)
        self._joins_with_space = not self.stages
        self.chain()  # refuse a malformed description at load

    def chain(self) -> list[Stage]:
        """Fresh stages, in order."""
        if self._joins_with_space:
            return [PerTokenStage(lambda token, first: token if first else " " + token)]
        stages: list[Stage] = []
        fused = False
        for stage in self.stages:
            stages += self._stage(stage, fused)
            fused = fused or stage["type"] in ("Fuse", "ByteLevel")
        return stages

    def token_bytes(self, token: str) -> bytes:
        """The bytes of one token seen alone; where nothing is known about a stage, its stored form."""
        kinds = [stage["type"] for stage in self.stages]
        if "ByteLevel" in kinds:
            return _byte_level_bytes(token)
        byte = _fallback_byte(token) if "ByteFallback" in kinds else None
        if byte is not None:
            return bytes([byte])
        for stage in self.stages:
            if stage["type"] == "Replace" and "String" in stage["pattern"]:
                token = token.replace(stage["pattern"]["String"], stage["content"])
            elif stage["type"] == "Metaspace":
                token = token.replace(stage.get("replacement", "▁"), " ")
        return token.encode()

    def _stage(self, stage: dict[str, Any], fused: bool) -> list[Stage]:
        try:
            return self._build(stage, fused)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"tokenizer.json: the decoder {stage!r} is malformed ({error!r})") from None

    def _build(self, stage: dict[str, Any], fused: bool) -> list[Stage]:
        kind = stage["type"]
        if kind == "Fuse":
            return []
        if kind == "ByteLevel":
            return [ByteLevelStage()]
        if kind == "ByteFallback" and not fused:
            return [ByteFallbackStage()]
        if kind == "Strip":
            content, start, stop = stage["content"], int(stage["start"]), int(stage["stop"])
            if fused:
                return [FusedStripStage(content, start, stop)]
            return [PerTokenStage(lambda token, _: _strip(token, content, start, stop))]
        if kind == "Replace" and "String" in stage["pattern"]:
            pattern, content = stage["pattern"]["String"], stage["content"]
            if pattern and (not fused or len(pattern) == 1):
                return [PerTokenStage(lambda token, _: token.replace(pattern, content))]
        if kind == "Metaspace" and not fused:
            replacement, scheme = stage.get("replacement", "▁"), stage.get("prepend_scheme", "always")
            drops = scheme != "never" and stage.get("add_prefix_space", True)
            return [PerTokenStage(lambda token, first: token.replace(replacement, "" if first and drops else " "))]
        if kind == "BPEDecoder" and not fused and stage["suffix"]:
            return [LastDiffersStage(stage["suffix"])]
        return [CollectStage(_library_decoder(stage), fused)]


def _library_decoder(stage: dict[str, Any]) -> Callable[[list[str]], str]:
    """One stage executed by the library itself, through a tokenizer that has nothing but this decoder."""
    import tokenizers

    shell: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": stage,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }  # fmt: skip
    try:
        decoder: decoders.Decoder = tokenizers.Tokenizer.from_str(json.dumps(shell)).decoder
    except Exception as error:
        raise ValueError(str(error)) from None
    return decoder.decode


def _strip(token: str, content: str, start: int, stop: int) -> str:
    begin, end = 0, len(token)
    while begin < min(start, end) and token[begin] == content:
        begin += 1
    while end > begin and len(token) - end < stop and token[end - 1] == content:
        end -= 1
    return token[begin:end]


def _flatten(description: dict[str, Any] | None) -> list[dict[str, Any]]:
    if description is None:
        return []
    if not isinstance(description, dict) or not isinstance(description.get("type"), str):
        raise CheckpointError(f"tokenizer.json: the decoder {description!r} is malformed")
    if description["type"] != "Sequence":
        return [description]
    return [stage for part in description.get("decoders", []) for stage in _flatten(part)]


class IncrementalDecoder:
    """Streams the text of one sequence: ``feed`` ids as they come, ``finish`` once; both return final text."""

    def __init__(
        self, spec: DecoderSpec, token_of: Callable[[int], str | None], skipped: frozenset[int] = frozenset()
    ) -> None:
        self._chain = spec.chain()
        self._token_of = token_of
        self._skipped = skipped

    def follow(self, prompt_token_ids: Sequence[int]) -> "IncrementalDecoder":
        """Decode what follows a prompt: its first token is then not the first of the text (SentencePiece strips a
        space there), and may complete a character that the prompt left unfinished. Returns self, before any ``feed``.
        """
        self.feed(prompt_token_ids[-CONTEXT_TOKENS:])
        for stage in self._chain:
            stage.settle()
        return self

    def feed(self, token_ids: Iterable[int]) -> str:
        """Text that became final with these tokens; may be empty."""
        text: list[str] = []
        for token_id in token_ids:
            token = None if token_id in self._skipped else self._token_of(token_id)
            if token is not None:
                text += self._through(0, [token])
        return "".join(text)

    def finish(self) -> str:
        """What was still waiting. The decoder must not be fed afterwards."""
        text: list[str] = []
        for index, stage in enumerate(self._chain):
            text += self._through(index + 1, stage.finish())
        return "".join(text)

    def _through(self, index: int, tokens: list[str]) -> list[str]:
        for stage in self._chain[index:]:
            tokens = [piece for token in tokens for piece in stage.feed(token)]
        return tokens
