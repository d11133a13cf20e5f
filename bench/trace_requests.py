# SPDX-License-Identifier: Apache-2.0
"""Real traces as requests: read, cut to a slice, shrunk to a model's context, dealt to tenants, set to a load."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from linnet.cli.bench import traces
from virtual import Asked

GREEDY = b"greedy"


def read(file: Path) -> list[Asked]:
    """Of either kind that ``linnet bench serve`` replays."""
    return [
        Asked(one.arrival_s, one.prompt_tokens, one.new_tokens, shared=one.shared, piece_tokens=one.piece_tokens)
        for one in traces.read(file)
    ]


def shrunk(asked: Sequence[Asked], divisor: int, longest_tokens: int, most_new: int) -> list[Asked]:
    """Prompts a `divisor`-th as long (shared pieces too), answers as they are but `most_new` at most.

    Those that are longer than `longest_tokens` even so are left out.
    """
    made = [
        replace(
            one,
            prompt_tokens=max(one.prompt_tokens // divisor, 1),
            new_tokens=min(one.new_tokens, most_new),
            most_tokens=most_new,
            piece_tokens=one.piece_tokens // divisor,
        )
        for one in asked
    ]
    return [one for one in made if one.prompt_tokens + one.limit <= longest_tokens]


def dealt(asked: Sequence[Asked], modest: int, greed: int, seed: int) -> list[Asked]:
    """To a greedy tenant and some modest ones, each of which asks for a `greed`-th of what the greedy one does."""
    names = [GREEDY, *(b"modest %d" % index for index in range(modest))]
    owners = Random(seed).choices(names, weights=[greed, *[1] * modest], k=len(asked))
    return [replace(one, tenant=owner) for one, owner in zip(asked, owners, strict=True)]


def at_rate(asked: Sequence[Asked], per_s: float) -> list[Asked]:
    """The same arrivals, faster or slower: so many come in a second on average. The first comes at once."""
    first, last = asked[0].arrival_s, asked[-1].arrival_s
    factor = (len(asked) - 1) / per_s / max(last - first, 1e-9)
    return [replace(one, arrival_s=(one.arrival_s - first) * factor) for one in asked]


def all_at_once(asked: Sequence[Asked]) -> list[Asked]:
    """Everybody is there from the start."""
    return [replace(one, arrival_s=0.0) for one in asked]
