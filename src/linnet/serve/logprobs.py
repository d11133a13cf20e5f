# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities in OpenAI's two dialects, and the place of every token in the text."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from linnet.api import PromptScores, TokenLogprob
from linnet.serve.answers import LEAST_LOGPROB
from linnet.text import Tokenizer

Entry = tuple[int, float | None, tuple[tuple[int, float], ...]]
"""Token id, its log-probability (None: nothing came before it), and the likeliest tokens."""


def entries_of(logprobs: Iterable[TokenLogprob]) -> list[Entry]:
    """Generated tokens."""
    return [(one.token_id, one.logprob, one.top) for one in logprobs]


def prompt_entries(token_ids: Sequence[int], scores: PromptScores | None) -> list[Entry]:
    """Prompt tokens; the first has no log-probability. Without scores (a prompt of one token) none has."""
    entries: list[Entry] = [(token_ids[0], None, ())]
    if scores is None:
        return entries + [(token_id, None, ()) for token_id in token_ids[1:]]
    values = scores.logprobs.tolist()
    for row, token_id in enumerate(token_ids[1:]):
        top: tuple[tuple[int, float], ...] = ()
        if scores.top_ids is not None and scores.top_logprobs is not None:
            top = tuple(zip(scores.top_ids[row].tolist(), scores.top_logprobs[row].tolist(), strict=True))
        entries.append((token_id, values[row], top))
    return entries


def finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, LEAST_LOGPROB) if not math.isnan(logprob) else LEAST_LOGPROB


class TokenTexts:
    """How one token is shown."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool) -> None:
        self._tokenizer, self._as_ids = tokenizer, as_ids

    def legacy(self, token_id: int) -> str:
        """Its text, or ``bytes:\\x..`` for a part of a character, so that different tokens look different."""
        if self._as_ids:
            return f"token_id:{token_id}"
        raw = self._tokenizer.token_bytes(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def chat(self, token_id: int, logprob: float) -> dict[str, Any]:
        """The chat dialect's entry without alternatives."""
        raw = self._tokenizer.token_bytes(token_id)
        text = f"token_id:{token_id}" if self._as_ids else raw.decode("utf-8", "replace")
        return {"token": text, "logprob": finite(logprob), "bytes": list(raw)}


def chat_content(texts: TokenTexts, logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """``logprobs.content`` of a chat choice."""
    content = []
    for one in logprobs:
        entry = texts.chat(one.token_id, one.logprob)
        entry["top_logprobs"] = [texts.chat(token_id, value) for token_id, value in one.top]
        content.append(entry)
    return content


def prompt_logprobs(
    tokenizer: Tokenizer, entries: Sequence[Entry], count: int
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's ``prompt_logprobs``: for each token None (the first) or token ids with what they had, likeliest first."""
    shown: list[dict[str, dict[str, Any]] | None] = []
    for token_id, logprob, top in entries:
        if logprob is None:
            shown.append(None)
            continue
        ranked = [(one, value, rank) for rank, (one, value) in enumerate(top[:count], 1)]
        if all(one != token_id for one, _, _ in ranked):
            ranked.append((token_id, logprob, None))  # type: ignore[arg-type]
        shown.append(
            {
                str(one): {
                    "logprob": finite(value),
                    "rank": rank,
                    "decoded_token": tokenizer.token_bytes(one).decode("utf-8", "replace"),
                }
                for one, value, rank in ranked
            }
        )
    return shown


class LegacyLogprobs:
    """``logprobs`` of completion choices, piece by piece; owns the offset of the next token.

    A token's offset is the length of the text before it (an unfinished character begins at its first byte); special
    tokens that the text leaves out take no room.
    """

    def __init__(self, tokenizer: Tokenizer, texts: TokenTexts, skip_special_tokens: bool) -> None:
        self._texts = texts
        self._skip = skip_special_tokens
        self._tokenizer = tokenizer
        self._start = 0
        self._decoder = tokenizer.incremental_decoder(skip_special_tokens)

    def follow(self, prompt_token_ids: Sequence[int], start: int) -> None:
        """The next tokens are the answer to this prompt; its text begins at ``start``."""
        self._start = start
        self._decoder = self._tokenizer.incremental_decoder(self._skip).follow(prompt_token_ids)

    def prompt(self, entries: Iterable[Entry]) -> dict[str, list[Any]]:
        """The prompt's tokens, special ones shown: the echo of a scored prompt is their text."""
        self._decoder = self._tokenizer.incremental_decoder(skip_special_tokens=False)
        return self.block(entries)

    def block(self, entries: Iterable[Entry]) -> dict[str, list[Any]]:
        """The next tokens as OpenAI's four parallel lists."""
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token_id, logprob, top in entries:
            offsets.append(self._place(token_id))
            shown = self._texts.legacy(token_id)
            tokens.append(shown)
            values.append(None if logprob is None else finite(logprob))
            tops.append(None if logprob is None else self._top(token_id, shown, logprob, top))
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _place(self, token_id: int) -> int:
        """The offset of the next token. Text that waited for it (a run of byte tokens) comes before its own."""
        fresh = self._decoder.feed((token_id,))
        own = self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")
        before = len(fresh) - len(own) if own and fresh.endswith(own) else 0
        place = self._start + before
        self._start += len(fresh)
        return place

    def _top(self, chosen: int, shown: str, logprob: float, top: tuple[tuple[int, float], ...]) -> dict[str, float]:
        """The likeliest tokens and, always, the chosen one; of those that look the same all but the likeliest are shown
        by their ids, ``token_id:5``."""
        found: dict[str, float] = {}
        for token_id, value in top:
            text = self._texts.legacy(token_id)
            found[f"token_id:{token_id}" if text in found else text] = finite(value)
        if all(token_id != chosen for token_id, _ in top):
            found[f"token_id:{chosen}" if shown in found else shown] = finite(logprob)
        return found
