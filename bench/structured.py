# SPDX-License-Identifier: Apache-2.0
"""What structured output costs: the time of a mask, and tokens a second with a schema over those without.

    python bench/structured.py MODEL [--rounds 5] [--tokens 96] [--vocabulary 131072] [--json FILE]

Masks: the model's vocabulary, widened by pairs of its tokens, and schemas that are walked through at random; of each
mask the time it takes to fill. Tokens a second: greedy answers of --tokens tokens, in turns without a schema, with one
that leaves every way open (an array of strings), and with one that often leaves one way (objects with long names).
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lines import note
from linnet.api import LLM, SamplingParams, StructuredOutput
from linnet.engine import Vocabulary, mask_words
from linnet.engine.guidance import Compiler

STRINGS = {"type": "array", "items": {"type": "string", "minLength": 2000}, "minItems": 1}
ROW = {
    "type": "object",
    "properties": {name: {"type": "integer"} for name in ("number_of_the_order", "postal_code", "temperature_celsius")},
    "required": ["number_of_the_order", "postal_code", "temperature_celsius"],
    "additionalProperties": False,
}
OBJECTS = {"type": "array", "items": ROW, "minItems": 100}
WALKED = (
    OBJECTS,
    {"type": "object"},
    {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.(com|org)$"}},
    {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "string", "maxLength": 40}, ROW]}},
    {"type": "array", "items": {"type": "string", "format": "date-time"}},
)
PROMPT = "The list of orders as JSON:\n"


def widened(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """With pairs of its tokens, drawn at random, until there are so many."""
    rng = random.Random(1)
    tokens = vocabulary.tokens()
    plain = [token for index, token in enumerate(tokens) if token and index not in vocabulary.special_ids]
    tokens += [rng.choice(plain) + rng.choice(plain) for _ in range(size - len(tokens))]
    lengths = np.array([len(token) for token in tokens], np.int32)
    return Vocabulary(
        text=b"".join(tokens), lengths=lengths, special_ids=vocabulary.special_ids, eos_ids=vocabulary.eos_ids
    )


def mask_seconds(vocabulary: Vocabulary, walks: int, tokens: int) -> list[float]:
    """Of every mask of random walks through the schemas."""
    compiler, rng = Compiler(vocabulary), random.Random(2)
    mask = np.zeros(mask_words(vocabulary.size), np.uint32)
    found = []
    for schema in WALKED:
        grammar = StructuredOutput("json_schema", schema).description()
        for _ in range(walks):
            matcher = compiler.matcher(grammar)
            for _ in range(tokens):
                mask[:] = 0
                began_s = time.perf_counter()
                going_on = matcher.fill(mask, frozenset())
                found.append(time.perf_counter() - began_s)
                if not going_on:
                    break
                allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
                matcher.accept(int(rng.choice(allowed)))
    return found


def rate(llm: LLM, tokens: int, schema: object | None) -> float:
    """Tokens a second of one greedy answer."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    structured = None if schema is None else StructuredOutput("json_schema", schema)
    began_s = time.perf_counter()
    (output,) = llm.generate(PROMPT, params, structured=structured)
    return len(output.outputs[0].token_ids) / (time.perf_counter() - began_s)


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{np.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--vocabulary", type=int, default=131072)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with LLM(options.model, max_model_len=1024, prefix_cache=False) as llm:
        masks = np.array(mask_seconds(widened(llm.requests.vocabulary, options.vocabulary), 4, 60)) * 1e3
        p50, p99 = np.percentile(masks, [50, 99])
        print(f"mask, {options.vocabulary} tokens: p50 {p50:.3f} ms, p99 {p99:.3f} ms, {len(masks)} masks")
        ways = (None, STRINGS, OBJECTS)
        for schema in ways:
            rate(llm, options.tokens, schema)  # compiled, and its pages touched
        rates = [[rate(llm, options.tokens, schema) for schema in ways] for _ in range(options.rounds)]
    open_ways = [strings / plain for plain, strings, _ in rates]
    one_way = [objects / plain for plain, _, objects in rates]
    print(f"tokens/s with a schema over without: {spread(open_ways)}; where it often leaves one way: {spread(one_way)}")
    found = {"mask_p50_ms": float(p50), "mask_p99_ms": float(p99), "open_ways": open_ways, "one_way": one_way}
    note(json.loads(json.dumps(found)), options.json)


if __name__ == "__main__":
    main()
