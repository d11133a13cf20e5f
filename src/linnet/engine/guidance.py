# SPDX-License-Identifier: Apache-2.0
"""Grammars through llguidance: compiled once, copied for each request, asked for a mask at each token.

Imported where the first grammar is compiled, in a thread of its own: the library and the tree of the vocabulary take
memory that a server without structured output does not need.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import any_to_lark

from linnet.engine.matcher import GrammarError, mask_words
from linnet.engine.vocabulary import Vocabulary
from linnet.errors import LinnetError

MOST_KEPT = 64
"""Compiled grammars that are kept for the next request with one of them."""
MOST_KEPT_BYTES = 1 << 20
"""Of their texts, together: what a compiled one takes is a multiple of it."""
MOST_FORCED_BYTES = 64
"""That are guessed ahead where a grammar leaves one way. The last token of them is not: it may go on beyond."""

_LEXER_FUEL, _LEXER_STATES = 400_000, 50_000
"""Of one grammar, in the library's units: fuel is about 20 ns, a state some kilobytes."""

_MASK_ITEMS = 500_000
"""Of the parser while one mask is filled, about 80 ns each: ten times what a large schema needs where tokens go on
from the end of one of its strings into the next key."""


_OPTIONS = '%llguidance {"no_forcing": true}\n'
"""A mask is to hold every token with which the text can go on, in whatever pieces the model likes to write it, not only
those that a tokenizer would cut."""


class GrammarRunError(LinnetError):
    """A grammar that cost more, at some token, than one token may."""

    code = "grammar_too_complex"
    http_status = 400


class _Bytes:
    """The vocabulary as llguidance asks for it. Nothing is cut into tokens for it: its grammars force nothing."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id, self.bos_token_id = (vocabulary.eos_ids or (vocabulary.size - 1,))[0], None
        self.tokens, self.special_token_ids = vocabulary.tokens(), list(vocabulary.special_ids)

    def __call__(self, text: bytes) -> list[int]:
        return []


class Compiler:
    """For one vocabulary. One thread at a time."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        wrapped = llguidance.TokenizerWrapper(_Bytes(vocabulary))
        self.tokenizer = llguidance.LLTokenizer(
            wrapped, n_vocab=vocabulary.size, eos_token=list(vocabulary.eos_ids) or None
        )
        self._eos_ids = frozenset(vocabulary.eos_ids)
        self._kept: OrderedDict[bytes, tuple[llguidance.LLMatcher, int]] = OrderedDict()
        self._kept_bytes = 0

    def matcher(self, grammar: str) -> "TokenMatcher":
        """At its beginning. Raises GrammarError."""
        return TokenMatcher(self._compiled(grammar).deep_copy(), self.tokenizer, self._eos_ids)

    def _compiled(self, grammar: str) -> llguidance.LLMatcher:
        name = sha256(grammar.encode()).digest()
        found = self._kept.get(name)
        if found is not None:
            self._kept.move_to_end(name)
            return found[0]
        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=_LEXER_FUEL,
            max_lexer_states=_LEXER_STATES,
            step_max_items=_MASK_ITEMS,
            verbose_errors=False,
        )
        made = llguidance.LLMatcher(self.tokenizer, _in_lark(grammar), log_level=0, limits=limits)
        if made.is_error():
            raise GrammarError(sentence(made.get_error()))
        self._begin(made.deep_copy())
        self._kept[name] = made, len(grammar)
        self._kept_bytes += len(grammar)
        while len(self._kept) > MOST_KEPT or (self._kept_bytes > MOST_KEPT_BYTES and len(self._kept) > 1):
            self._kept_bytes -= self._kept.popitem(last=False)[1][1]
        return made

    def _begin(self, matcher: llguidance.LLMatcher) -> None:
        """Raises GrammarError for one that no text matches, as far as its first token tells."""
        mask = np.zeros(mask_words(self.tokenizer.vocab_size), np.uint32)
        TokenMatcher(matcher, self.tokenizer, self._eos_ids).fill(mask, self._eos_ids)


class TokenMatcher:
    """A Matcher. See there."""

    def __init__(
        self, matcher: llguidance.LLMatcher, tokenizer: llguidance.LLTokenizer, eos_ids: frozenset[int]
    ) -> None:
        self._matcher, self._tokenizer, self._eos_ids = matcher, tokenizer, eos_ids

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def fill(self, allowed: np.ndarray, ends: frozenset[int]) -> bool:
        """See ``Matcher``. Raises GrammarError where nothing may come and the text is not whole."""
        if self.ended:
            return False
        self._matcher.unsafe_compute_mask_ptr(allowed.ctypes.data, allowed.nbytes)
        self._check()
        for token_id in self._eos_ids - ends:
            allowed[token_id // 32] &= ~np.uint32(1 << (token_id % 32))
        if not self._matcher.is_stopped():
            return True
        allowed[:] = 0
        return False

    def accept(self, token_id: int) -> None:
        """See ``Matcher``."""
        if token_id not in self._eos_ids:
            self._matcher.consume_token(token_id)
            self._check()

    def rollback(self, tokens: int) -> None:
        """See ``Matcher``."""
        if tokens and not self._matcher.rollback(tokens):
            self._check()

    def copy(self) -> "TokenMatcher":
        """See ``Matcher``."""
        return TokenMatcher(self._matcher.deep_copy(), self._tokenizer, self._eos_ids)

    def forced(self) -> Sequence[int]:
        """See ``Matcher``: the text that must come, in the longest tokens there are."""
        text = self._matcher.compute_ff_bytes()[:MOST_FORCED_BYTES].decode("utf-8", "ignore")
        return self._tokenizer.greedy_tokenize(text)[:-1] if len(text) > 1 else ()

    def _check(self) -> None:
        if not self._matcher.is_error():
            return
        error = self._matcher.get_error()
        if error.startswith("NoExtension"):
            raise GrammarError("no text matches it, or none goes on from here")
        raise GrammarRunError(f"the grammar is too complex: {sentence(error)}")


def _in_lark(grammar: str) -> str:
    """With our options; a grammar in llama.cpp's notation is translated. Raises GrammarError."""
    if "::=" not in grammar:
        return _OPTIONS + grammar
    try:
        return _OPTIONS + any_to_lark(grammar).replace("%llguidance {}", "", 1)
    except Exception as error:
        raise GrammarError(f"the grammar is not understood as GBNF: {sentence(str(error))}") from None


def sentence(error: str) -> str:
    """What the library says is wrong, in one line, without the places of a text that the client has not written."""
    found = re.search(r"Unimplemented keys: \[(.*?)\]", error)
    if found is not None:
        keywords = sorted(found.group(1).replace('"', "").split(", "))
        return f"the keyword {' and '.join(keywords)} is not supported"
    if "oneOf constraints are not supported" in error:
        return "the keyword oneOf is supported only where no value can match two of its branches"
    for pattern, said in _SAID:
        found = re.search(pattern, error)
        if found is not None:
            return said.format(found.group(1)[:100])
    first = re.split(r"\n\s*\d+ \|", error.strip())[0].split("\n<")[0]
    first = re.sub(r"^(failed to compile JSON schema: )+", "", re.sub(r"^(at )?\d+\(\d+\): ", "", first))
    return " ".join(first.split())[:300]


_SAID = (
    (r"(intersection) stack level exceeded", "the keyword allOf is not supported where it merges schemas so deeply"),
    (r"(min/maxProperties) only", "the keyword {!r} is supported only where every key in properties is required"),
    (r"Unknown format: (\S+)", "the keyword format is not supported with the value {!r}"),
    (r"Resource '([^']*)' is not present", "the keyword $ref is supported within the schema only; it names {!r}"),
    (r"Invalid type: (\S+)", "the keyword type has {!r}; accepted are the types of JSON"),
)
