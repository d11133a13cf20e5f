# SPDX-License-Identifier: Apache-2.0
"""Text that a model wrote: rows without a gap, a digest of everything, where a repetition begins."""

from dataclasses import replace

import numpy as np

from linnet.text import OwnDocument, OwnText
from linnet.text.own import REPEATING_TOKENS, repetition_start

TEXT = OwnText((OwnDocument((1, 5, 6), 1), OwnDocument((1,), 1), OwnDocument((1, 7, 8, 9), 2)), 4, 3, True, 1)


def test_documents_become_rows_in_order() -> None:
    rows = TEXT.rows()
    assert rows.token_ids.tolist() == [[1, 5, 6, 1], [1, 7, 8, 9]]
    assert rows.token_ids.dtype == np.int32
    assert rows.name == TEXT.name()
    assert replace(TEXT, cut=0).name("original") == "the original's own text (every second row a chat, seed 3)"
    assert "seed 3, 1 document(s) cut where they only repeated themselves)" in rows.name


def test_the_digest_covers_tokens_borders_and_what_was_given() -> None:
    first, second, third = TEXT.documents
    others = [
        replace(TEXT, documents=(replace(first, given=2), second, third)),
        replace(TEXT, documents=(OwnDocument((1, 5), 1), OwnDocument((6, 1), 1), third)),
        replace(TEXT, documents=(first, second, replace(third, token_ids=(1, 7, 8, 10)))),
        replace(TEXT, length=2),
    ]
    assert len({text.digest for text in (TEXT, *others)}) == 5


def test_a_repetition_is_found_where_it_begins() -> None:
    varied = list(range(100))
    assert repetition_start(varied) is None
    assert repetition_start([7] * (REPEATING_TOKENS - 1)) is None
    assert repetition_start([7] * REPEATING_TOKENS) == 0
    # Four kinds in turns count as a repetition, five do not.
    assert repetition_start(varied + [200, 201, 202, 203] * 20) == 100
    assert repetition_start(varied + [200, 201, 202, 203, 204] * 20) is None
