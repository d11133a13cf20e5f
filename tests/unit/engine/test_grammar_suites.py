# SPDX-License-Identifier: Apache-2.0
"""R11 and R12: what schemas of the world and of the specification's own suite accept, nothing wrong, ever; and how long
it takes to compile them and to fill masks.

MaskBench (a sample) and the JSON Schema test suite, draft 2020-12, where they lie beside the checkout; of the suite
what is not optional there: a ``format`` is held to as far as its letters go (docs/structured.md). A schema is
refused in a sentence that names the keyword, or no instance that it forbids can be written under it.
LINNET_SCHEMA_FILES sets how many of MaskBench's files are read (500; 0: all that are there).
"""

import json
import lzma
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linnet.api import StructuredOutput
from linnet.engine import GrammarError, Vocabulary, mask_words
from linnet.engine.guidance import Compiler
from linnet.errors import LinnetError

DATA = Path(__file__).parents[4] / "shared" / "data" / "json_schema"
MASKBENCH = DATA / "maskbench_sample.jsonl.xz"
SUITE = DATA / "draft2020-12"
TOKENIZER = DATA.parent / "tokenizers" / "gpt2"
FILES = int(os.environ.get("LINNET_SCHEMA_FILES", "500"))
END = 256
PASSED = 0.85 if FILES == 500 else 8_900 / 11_306
"""The share of files that must pass: what the first 500 had when this was written; else the contract's, of all."""
WORDS = 32_768
NAMED = re.compile(
    r"the keyword \S+|for '\w+'|satisf|nothing matches|no text matches|bytes|deeper|too large|disjoint|[Rr]egex"
)
"""Why a schema may be refused."""
OWN: list[tuple[Any, list[Any], list[Any]]] = [
    ({"type": "integer", "minimum": 3, "maximum": 12}, [3, 7, 12], [2, 13, 3.5, "3", None]),
    ({"type": "string", "pattern": "^a+$", "maxLength": 3}, ["a", "aaa"], ["", "b", "aaaa", "ab"]),
    ({"enum": ["red", 5, None]}, ["red", 5, None], ["blue", 6, False]),
    (
        {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False},
        [{"a": True}], [{}, {"a": 1}, {"a": True, "b": 1}, [], "a"],
    ),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, [[1], [1, 2]], [[], [1, 2, 3]]),
    (
        {"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}},
                            "additionalProperties": False}}, "$ref": "#/$defs/node"},
        [{}, {"next": {"next": {}}}], [{"next": 1}, {"other": {}}],
    ),
    ({"type": "string", "format": "date"}, ["2024-02-28"], ["2024-13-01", "yesterday"]),
    ({"anyOf": [{"type": "integer"}, {"const": "none"}]}, [4, "none"], ["some", 4.5]),
]  # fmt: skip


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    """Tokens are bytes: an instance can be written in one way only."""
    text = bytes(range(256)) + b"end"
    lengths = np.array([1] * 256 + [3], np.int32)
    return Compiler(Vocabulary(text=text, lengths=lengths, special_ids=(END,), eos_ids=(END,)))


def accepts(compiler: Compiler, grammar: str, value: Any) -> bool:
    """Whether it can be written, and may end there. (That masks hold what is accepted: test_grammars.py.)"""
    matcher = compiler.matcher(grammar)
    try:
        for byte in json.dumps(value, ensure_ascii=False).encode():
            matcher.accept(byte)
    except LinnetError:
        return False
    mask = np.zeros(mask_words(END + 1), np.uint32)
    return not matcher.fill(mask, frozenset([END])) or bool(mask[END // 32] & 1 << END % 32)


def maskbench() -> Iterator[tuple[str, Any, list[Any]]]:
    if not MASKBENCH.exists():
        pytest.skip("MaskBench's sample is not beside this checkout")
    with lzma.open(MASKBENCH, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if FILES and number >= FILES:
                return
            row = json.loads(line)
            yield row["name"], row["case"]["schema"], row["case"]["tests"]


def suite() -> Iterator[tuple[str, Any, list[Any]]]:
    if not SUITE.is_dir():
        pytest.skip("the JSON Schema test suite is not beside this checkout")
    for file in sorted(SUITE.glob("*.json")):
        for case in json.loads(file.read_text(encoding="utf-8")):
            yield f"{file.stem}: {case['description']}", case["schema"], case["tests"]


def judged(compiler: Compiler, cases: Iterator[tuple[str, Any, list[Any]]]) -> tuple[Counter[str], list[float]]:
    """How many files were what, and the seconds that each took to compile. Fails at the first wrong accept."""
    found: Counter[str] = Counter()
    seconds: list[float] = []
    refusals: list[tuple[str, str]] = []
    for name, schema, tests in cases:
        began_s = time.thread_time()
        try:
            grammar = StructuredOutput("json_schema", schema).description()
            compiler.matcher(grammar)
        except GrammarError as error:
            found["refused"] += 1
            refusals.append((name, str(error)))
            continue
        seconds.append(time.thread_time() - began_s)
        missed = 0
        for test in tests:
            mine = accepts(compiler, grammar, test["data"])
            assert test["valid"] or not mine, (name, schema, test["data"])
            missed += test["valid"] and not mine
        found["missed" if missed else "passed"] += 1
    assert not [one for one in refusals if not NAMED.search(one[1])]
    return found, seconds


def test_own_cases(compiler: Compiler) -> None:
    cases = [(str(schema), schema, [{"data": one, "valid": True} for one in good]
              + [{"data": one, "valid": False} for one in bad]) for schema, good, bad in OWN]  # fmt: skip
    found, _ = judged(compiler, iter(cases))
    assert found == {"passed": len(OWN)}


@pytest.mark.alone
def test_schemas_of_the_world(compiler: Compiler) -> None:
    found, seconds = judged(compiler, maskbench())
    print(f"MaskBench: {dict(found)}; compiled in {spread(seconds)}")
    assert found["passed"] >= PASSED * sum(found.values()), found
    assert np.percentile(seconds, 99) < 0.05
    assert max(seconds) < 1.0


def gpt2() -> Vocabulary:
    """The first of GPT-2's tokens, which are those that its training merged first; the last one ends the text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
    ids: dict[str, int] = json.loads((TOKENIZER / "encoder.json").read_text(encoding="utf-8"))
    words = sorted(ids, key=ids.__getitem__)[: WORDS - 1]
    tokens = [*(bytes(byte_of[letter] for letter in word) for word in words), b"end"]
    lengths = np.array([len(token) for token in tokens], np.int32)
    return Vocabulary(text=b"".join(tokens), lengths=lengths, special_ids=(WORDS - 1,), eos_ids=(WORDS - 1,))


def spread(seconds: list[float]) -> str:
    p50, p99, most = 1e3 * np.percentile(seconds, [50, 99, 100])
    return f"p50 {p50:.3f} ms, p99 {p99:.3f} ms, at most {most:.1f} ms ({len(seconds)})"


def mask_seconds(words: Vocabulary) -> list[float]:
    """Of every mask along the documents of every third file, with a compiler that has seen nothing. Processor time:
    others may work beside."""
    compiler = Compiler(words)
    mask = np.zeros(mask_words(compiler.tokenizer.vocab_size), np.uint32)
    seconds: list[float] = []
    for _, schema, tests in islice(maskbench(), 0, None, 3):
        try:
            matcher = compiler.matcher(StructuredOutput("json_schema", schema).description())
        except GrammarError:
            continue
        for test in islice((test for test in tests if test["valid"]), 1):
            for token_id in compiler.tokenizer.greedy_tokenize(json.dumps(test["data"], ensure_ascii=False))[:300]:
                mask[:] = 0
                began_s = time.thread_time()
                matcher.fill(mask, frozenset())
                seconds.append(time.thread_time() - began_s)
                if not mask[token_id // 32] >> np.uint32(token_id % 32) & np.uint32(1):
                    break  # an order of keys that cannot be written
                matcher.accept(token_id)
    return seconds


@pytest.mark.alone
def test_masks_along_the_documents_of_the_world() -> None:
    """With the longest tokens there are, at most 300 of a document. The work is the same each time and a neighbour only
    adds to it, so of three times the least one counts."""
    if not TOKENIZER.is_dir():
        pytest.skip("GPT-2's vocabulary does not lie beside the checkout")
    words = gpt2()
    seconds = np.min([mask_seconds(words) for _ in range(3)], axis=0)
    print(f"masks over {WORDS} tokens filled in {spread(seconds.tolist())}")
    assert len(seconds) > 1000
    assert np.percentile(seconds, 99) < 0.001


def test_the_suite_of_the_specification(compiler: Compiler) -> None:
    found, _ = judged(compiler, suite())
    print(f"draft 2020-12: {dict(found)}")
    assert found["passed"] > 100, found
