# SPDX-License-Identifier: Apache-2.0
"""Grammars over a small vocabulary: masks, rollback, guesses, limits, and the process that tries what may do harm."""

import random
import time
from collections.abc import Iterator

import numpy as np
import pytest
from letters import GRAMMARS, letters

from linnet.engine import CompiledGrammars, GrammarChecker, GrammarError, mask_words
from linnet.engine.guidance import MOST_KEPT, Compiler, TokenMatcher

pytestmark = pytest.mark.alone
VOCABULARY = letters(1200)
TOKENS = VOCABULARY.tokens()
ENDS = frozenset(VOCABULARY.eos_ids)
BOMB = "start: S0\n" + "\n".join(f"S{i}: S{i + 1} S{i + 1}" for i in range(40)) + '\nS40: "a"'
CHAIN = "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(60_000)) + '\nr60000: "a"'
SLOW = "start: %json " + str(
    {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}$"} for i in range(10, 40)]}
).replace("'", '"')


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(VOCABULARY)


def allowed(matcher: TokenMatcher, ends: frozenset[int] = ENDS) -> list[int]:
    mask = np.zeros(mask_words(VOCABULARY.size), np.uint32)
    some = matcher.fill(mask, ends)
    found = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
    assert some == bool(found)
    return [int(one) for one in found]


def written(ids: list[int]) -> bytes:
    return b"".join(TOKENS[one] for one in ids)


def test_a_mask_holds_every_token_that_may_come_in_whatever_pieces(compiler: Compiler) -> None:
    matcher = compiler.matcher('start: "null" | "nul!"')
    assert {TOKENS[one] for one in allowed(matcher)} == {b"n", b"nu"}
    matcher.accept(TOKENS.index(b"nu"))
    assert {TOKENS[one] for one in allowed(matcher)} == {b"l", b"l!", b"ll"}
    matcher.accept(TOKENS.index(b"ll"))
    assert matcher.ended
    assert allowed(matcher) == []


def test_an_end_is_allowed_where_the_text_may_end_and_the_request_does(compiler: Compiler) -> None:
    matcher = compiler.matcher("start: /[a-c]+/")
    assert not ENDS & set(allowed(matcher))
    matcher.accept(TOKENS.index(b"ab"))
    assert set(allowed(matcher)) >= ENDS
    assert not ENDS & set(allowed(matcher, frozenset()))
    before = allowed(matcher)
    matcher.accept(next(iter(ENDS)))
    assert allowed(matcher) == before


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_taking_back_is_as_if_it_had_never_been(compiler: Compiler, grammar: str) -> None:
    rng = random.Random(grammar)
    for _ in range(20):
        matcher, path = compiler.matcher(grammar), []
        masks = []
        while (found := allowed(matcher)) and len(path) < 25:
            masks.append(found)
            token_id = rng.choice(found)
            if token_id in ENDS:
                break
            path.append(token_id)
            matcher.accept(token_id)
        back = rng.randrange(len(path) + 1)
        matcher.rollback(back)
        for token_id, mask in zip(path[len(path) - back :], masks[len(path) - back :], strict=False):
            assert allowed(matcher) == mask
            matcher.accept(token_id)


def test_guesses_are_what_must_come(compiler: Compiler) -> None:
    matcher = compiler.matcher('start: "abcdef" /[0-9]+/')
    guess = list(matcher.forced())
    assert guess
    assert b"abcdef".startswith(written(guess))
    assert list(compiler.matcher("start: /[ab]+/").forced()) == []


def test_copies_do_not_know_of_each_other(compiler: Compiler) -> None:
    one, other = compiler.matcher('start: "ab" | "cd"'), compiler.matcher('start: "ab" | "cd"')
    one.accept(TOKENS.index(b"a"))
    assert {TOKENS[token_id] for token_id in allowed(other)} == {b"a", b"ab", b"c", b"cd"}


def test_few_grammars_are_kept(compiler: Compiler) -> None:
    for number in range(3 * MOST_KEPT):
        compiler.matcher(f'start: "a{number}"')
    assert len(compiler._kept) <= MOST_KEPT
    for number in range(40):
        compiler.matcher(f'start: "{number}" // {"long " * 10_000}')
    assert compiler._kept_bytes <= 1 << 20


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("start: nothing", "unknown name"),
        ("start: /(a/", "unclosed group"),
        ("start: /(?<=a)b/", "look-around"),
        ('start: %json {"type": "stsring"}', "the keyword type has 'stsring'"),
        ('start: %json {"uniqueItems": true}', "the keyword uniqueItems is not supported"),
        ('start: %json {"if": {}, "then": {}}', "the keyword if and then is not supported"),
        ('start: %json {"format": "zip"}', "the keyword format is not supported with the value 'zip'"),
        ('start: %json {"$ref": "https://example.org/a"}', r"the keyword \$ref is supported within the schema only"),
        ('start: %json {"$ref": "file:///etc/passwd"}', r"the keyword \$ref is supported within the schema only"),
        ('start: %json {"oneOf": [{"type": "string"}, {"maxLength": 3}]}', "the keyword oneOf"),
        ('start: %json {"type": "integer", "minimum": 3, "maximum": 2}', "minimum"),
        ('start: %json {"allOf": [{"$ref": "#"}]}', "no text matches it"),
        ('start: %json {"$ref": "#"}', "no text matches it"),
        ("root ::= (", "not understood as GBNF"),
        (BOMB, "too big"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_sentence(compiler: Compiler, grammar: str, said: str) -> None:
    with pytest.raises(GrammarError, match=said) as caught:
        compiler.matcher(grammar)
    assert "\n" not in str(caught.value)
    assert "llguidance" not in str(caught.value)


def test_the_notation_of_llama_cpp_is_translated(compiler: Compiler) -> None:
    matcher = compiler.matcher('root ::= "a" b*\nb ::= [0-9] | "f"')
    assert {TOKENS[one] for one in allowed(matcher)} >= {b"a", b"af", b"a1"}


def test_matchers_are_made_elsewhere() -> None:
    grammars = CompiledGrammars(lambda: VOCABULARY)
    good, bad = grammars.matcher("start: /a/"), grammars.matcher("start: nothing")
    assert not good.result(30).ended
    assert isinstance(bad.exception(30), GrammarError)
    grammars.close()


@pytest.fixture(scope="module")
def checker() -> Iterator[GrammarChecker]:
    made = GrammarChecker(lambda: VOCABULARY, within_s=3.0)
    yield made
    made.close()


def test_a_grammar_that_harms_harms_a_process_of_its_own(checker: GrammarChecker) -> None:
    """One that never comes to an end, one that overflows the stack; each is remembered, and others are served after."""
    for bad, said in ((SLOW, "takes longer than 3 s"), (CHAIN, "too complex|too deep|takes longer")):
        checker.check("start: /a/").result(60)
        with pytest.raises(GrammarError, match=said):
            checker.check(bad).result(60)
        began_s = time.monotonic()
        with pytest.raises(GrammarError, match=said):
            checker.check(bad).result(60)
        assert time.monotonic() - began_s < 1.0
        checker.check(f'start: "{len(bad)}"').result(60)


def test_verdicts_are_the_compilers(checker: GrammarChecker, compiler: Compiler) -> None:
    for grammar in GRAMMARS:
        checker.check(grammar).result(60)
    with pytest.raises(GrammarError, match="unknown name"):
        checker.check("start: nothing").result(60)
