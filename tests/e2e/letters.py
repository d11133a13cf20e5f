# SPDX-License-Identifier: Apache-2.0
"""A vocabulary of letters and pairs of letters for models that have none, so that grammars can bind them."""

import numpy as np

from linnet.engine import Vocabulary

LETTERS = '{}[]":, 0123456789abcdefnrlstu-.!\n'


def letters(size: int) -> Vocabulary:
    """Ids are letters, then pairs of them, as far as they go; the last but one has no text, the last is an end."""
    pairs = [first + second for first in LETTERS for second in LETTERS]
    tokens = [text.encode() for text in [*LETTERS, *pairs][: size - 2]]
    tokens += [b""] * (size - 1 - len(tokens)) + [b"<end>"]
    return Vocabulary(
        text=b"".join(tokens),
        lengths=np.array([len(token) for token in tokens], np.int32),
        special_ids=(size - 1,),
        eos_ids=(size - 1,),
    )


GRAMMARS = (
    "start: /[a-f]{2,40}/",
    'start: "true" | "false" | "null"',
    'start: %json {"type": "object", "properties": {"ab": {"type": "integer"}, "cd": {"type": "string"}}, '
    '"required": ["ab"], "additionalProperties": false}',
    'start: %json {"type": "array", "items": {"enum": ["a", "bb", 12]}, "maxItems": 6}',
    'start: "abcdef" /[0-9]+/ "nul"',
)
"""Some that such a vocabulary can write, with and without an end, with and without one way to go."""
