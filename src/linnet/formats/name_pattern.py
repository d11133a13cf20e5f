# SPDX-License-Identifier: Apache-2.0
"""Regular expressions of a config nobody vouches for, matched against names in bounded time.

Python's ``re`` backtracks without end: ``(a+)+b`` on a name of forty letters runs for hours. The ``regex`` library
matches the same language under a time limit; the standard library's compiler says what is well formed.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from linnet.errors import CheckpointError

if TYPE_CHECKING:
    import regex

MAX_PATTERN_CHARACTERS = 1024
MATCH_S = 0.1
_MOST_REPEATS = 1000
_COUNTS = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")


def check_pattern(pattern: str) -> None:
    """CheckpointError, a half sentence that says why, if an expression is malformed or too large."""
    _compiled(pattern)


@lru_cache(maxsize=1 << 16)
def matches_name(pattern: str, name: str) -> bool:
    """Whether ``pattern`` matches ``name`` from its start, as ``re.match``. CheckpointError as in ``check_pattern``."""
    try:
        return _compiled(pattern).match(name, timeout=MATCH_S) is not None
    except TimeoutError:
        reason = f"it takes more than {MATCH_S} s to match it to the name {name!r:.80}"
    except CheckpointError as error:
        reason = str(error)
    raise CheckpointError(f"the pattern {pattern!r:.80} is refused: {reason}")


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> "regex.Pattern[str]":
    import regex  # here: few configs hold a pattern, and every start would pay for it

    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise CheckpointError(f"it has {len(pattern)} characters, at most {MAX_PATTERN_CHARACTERS} are read")
    # Nested counts multiply while they are compiled, before any time limit applies.
    repeats = 1
    for least, most in _COUNTS.findall(pattern):
        repeats *= max(int(most or 0), int(least or 0), 1)
    if repeats > _MOST_REPEATS:
        raise CheckpointError(f"its counts multiply to {repeats} repetitions, at most {_MOST_REPEATS} are read")
    try:
        re.compile(pattern)
        return regex.compile(pattern, regex.V0)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise CheckpointError(f"it is not a regular expression: {error}") from None
