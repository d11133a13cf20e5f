# SPDX-License-Identifier: Apache-2.0
"""A model writes its own text: documents sampled from its own distribution, for calibration and evaluation.

Half of the rows begin with the token that begins a document, half go through the chat template, where the model
writes the user's turn too (the template is cut where that turn's text belongs; Xu et al. 2024, "Magpie"). Sampled at
temperature 1 without any filter, so that a loss measured on it is the expected loss under the model's own
distribution. After Liu et al. 2023 ("LLM-QAT", 3.1) and Williams and Aletras 2024 ("Self-calibration for language
model quantization and pruning"). Every document has its own seed: the text depends on seed, purpose and numerics, not
on what runs beside it.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from linnet.api.llm import LLM
from linnet.engine import SamplingParams
from linnet.errors import ConfigError, LinnetError
from linnet.text import Tokenizer
from linnet.text.own import OwnDocument, OwnText, repetition_start

WRITER_VERSION = 1
"""Part of the cache's key: goes up whenever the same seed would give another text."""

LEAST_TOKENS = 16
"""No document ends before, so that a model that stops at once still fills a row; a shorter one only fills its end."""

LEAST_CHAT_TOKENS = 64
"""What a conversation must have beside its template; in less room an ordinary document is written."""

MOST_USER_TOKENS = 96
"""Of a user's turn, which gets half of the conversation's room at most."""

MOST_FRUITLESS = 8
"""Documents in one row that may be nothing but repetition, before the model is said to have nothing to say."""

SEQUENCES = 32
"""Rows written at the same time: enough to read each weight seldom, few enough for a small KV cache."""

DOCUMENT_START = "<|endoftext|>"
"""What many models saw between documents, though their tokenizer puts nothing before a text."""

_PLACE = "linnet-user-turn"

Purpose = Literal["calibration", "evaluation"]
"""What a text is for: no model may be measured on the text that it was calibrated on."""

Progress = Callable[[str, int, int], None]
"""Called as (stage, done, total) while work goes on; may raise to cancel."""


@dataclass(frozen=True)
class ChatFrame:
    """A template around one user's turn: ids before it, ids after it up to where the answer begins."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def write_own_text(
    llm: LLM, rows: int, length: int, seed: int, purpose: Purpose, progress: Progress = lambda stage, done, total: None
) -> OwnText:
    """``rows`` rows of ``length`` tokens that ``llm`` writes; the other purpose gets other text from the same seed.

    ConfigError: a row does not fit the model's context. LinnetError: the model gives no usable distribution, or does
    nothing but repeat itself.
    """
    if rows < 1 or not 2 <= length <= llm.max_model_len:
        raise ConfigError(
            f"{llm.name} cannot write {rows} rows of {length} tokens; accepted is 1 row or more of 2 to "
            f"{llm.max_model_len} tokens"
        )
    frame = chat_frame(llm.tokenizer)
    name = f"{purpose} {seed}"
    everything = [_Row(f"{name} {index}", length, frame if index % 2 else None) for index in range(rows)]
    unfinished: list[_Row] = everything
    told = _Told(progress, rows * length)
    while unfinished:
        kept = rows * length - sum(row.left for row in everything)
        _write_documents(llm, unfinished, partial(told.tell, kept))
        unfinished = [row for row in unfinished if row.left]
    documents = tuple(document for row in everything for document in row.documents)
    chats = any(row.chats for row in everything)
    return OwnText(documents, length, seed, chats, sum(row.cut for row in everything))


@dataclass
class _Told:
    """How much has been said to be written: never less than before, although repetitions are cut afterwards."""

    progress: Progress
    total: int
    most: int = 0

    def tell(self, kept: int, tokens: int) -> None:
        self.most = max(self.most, kept + tokens)
        self.progress("write", self.most, self.total)


def document_start(tokenizer: Tokenizer) -> int | None:
    """The id that begins a document; None where a tokenizer has no such token."""
    candidates = (tokenizer.token_id(DOCUMENT_START), tokenizer.bos_token_id, *tokenizer.eos_token_ids)
    if tokenizer.adds_bos:
        return tokenizer.bos_token_id
    return next((token_id for token_id in candidates if token_id is not None), None)


def chat_frame(tokenizer: Tokenizer) -> ChatFrame | None:
    """The default template cut at the text of a single user's turn; None where there is none or it cannot be cut."""
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": _PLACE}])
    except LinnetError:  # no template, or one that refuses a plain question
        return None
    before, found, after = text.partition(_PLACE)
    if not found or not after or _PLACE in after:
        return None
    return ChatFrame(tuple(tokenizer.encode_chat(before)), tuple(tokenizer.encode_chat(after)))


@dataclass
class _Row:
    """A row being filled; ``name`` and how many documents were begun decide every seed."""

    name: str
    length: int
    frame: ChatFrame | None
    documents: list[OwnDocument] = field(default_factory=list)
    begun: int = 0
    cut: int = 0
    chats: int = 0
    fruitless: int = 0

    @property
    def left(self) -> int:
        return self.length - sum(len(document.token_ids) for document in self.documents)

    def chat_room(self) -> int:
        """Tokens for both turns of a conversation, template not counted; 0 where there is no room for one."""
        if self.frame is None:
            return 0
        room = self.left - len(self.frame.before) - len(self.frame.after)
        return room if room >= LEAST_CHAT_TOKENS else 0

    def seed(self, part: str) -> int:
        text = f"linnet-own-text-{WRITER_VERSION} {self.name} {self.begun} {part}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")

    def take(self, prompt: tuple[int, ...], given: int, written: Sequence[int]) -> None:
        """The next document; one that only repeats itself is cut where that begins."""
        self.begun += 1
        start = repetition_start(written)
        kept = written if start is None else written[:start]
        self.cut += start is not None
        if start is None or start >= LEAST_TOKENS:
            self.documents.append(OwnDocument((*prompt, *kept), given))
        else:
            self.fruitless += 1


def _write_documents(llm: LLM, rows: Sequence[_Row], tokens_done: Callable[[int], object]) -> None:
    """One more document for every row."""
    turns = _user_turns(llm, [row for row in rows if row.chat_room()], tokens_done)
    asked = sum(map(len, turns.values()))
    prompts: list[tuple[tuple[int, ...], int]] = []
    for row in rows:
        if row.fruitless > MOST_FRUITLESS:
            raise LinnetError(f"{llm.name} only repeats itself: {row.fruitless} documents in a row had nothing else")
        turn = turns.get(row.name)
        if row.frame is None or turn is None:
            prompts.append(((_start_of(llm, row),), 1))
        else:
            row.chats += 1
            prompts.append(((*row.frame.before, *turn, *row.frame.after), len(row.frame.before)))
    writing = [(row, prompt, row.left - len(prompt)) for row, (prompt, _) in zip(rows, prompts, strict=True)]
    outputs = iter(
        llm.generate(
            [prompt for _, prompt, room in writing if room],
            [_parameters(room, LEAST_TOKENS, row.seed("document")) for row, _, room in writing if room],
            tokens_done=lambda tokens: tokens_done(asked + tokens),
        )
    )
    for (row, prompt, room), (_, given) in zip(writing, prompts, strict=True):
        row.take(prompt, given, next(outputs).outputs[0].token_ids if room else ())


def _user_turns(llm: LLM, rows: Sequence[_Row], tokens_done: Callable[[int], object]) -> dict[str, tuple[int, ...]]:
    """Row name -> what the model says as the user, without the token that ends the turn."""
    prompts, parameters = [], []
    for row in rows:
        assert row.frame is not None
        prompts.append(row.frame.before)
        most = min(MOST_USER_TOKENS, row.chat_room() // 2)
        parameters.append(_parameters(most, 1, row.seed("user"), stops=row.frame.after[:1]))
    turns = {}
    for row, output in zip(rows, llm.generate(prompts, parameters, tokens_done=tokens_done), strict=True):
        written = output.outputs[0]
        ended = written.finish_reason == "stop"
        turns[row.name] = written.token_ids[:-1] if ended else written.token_ids
    return turns


def _start_of(llm: LLM, row: _Row) -> int:
    """The token a document starts with; for tokenizers without one a token drawn by the row's seed (LLM-QAT)."""
    start = document_start(llm.tokenizer)
    return row.seed("start") % llm.tokenizer.vocabulary_size if start is None else start


def _parameters(most: int, least: int, seed: int, stops: Sequence[int] = ()) -> SamplingParams:
    return SamplingParams(
        temperature=1.0, max_tokens=most, min_tokens=min(least, most), seed=seed, stop_token_ids=stops
    )
