# SPDX-License-Identifier: Apache-2.0
"""What clients ask and when: from a recorded trace, or drawn. Standard library only."""

import csv
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from linnet.errors import ConfigError

MOONCAKE_PIECE_TOKENS = 512


@dataclass(frozen=True)
class Wish:
    """One request. shared: ids of its first pieces of ``piece_tokens`` tokens; equal ids are equal tokens."""

    arrival_s: float
    prompt_tokens: int
    new_tokens: int
    shared: tuple[int, ...] = ()
    piece_tokens: int = 0


def azure(file: Path) -> list[Wish]:
    """AzurePublicDataset: arrival, prompt tokens, generated tokens. Arrivals count from the first one."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    return [
        Wish((when - times[0]).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        for when, row in zip(times, rows, strict=True)
    ]


def mooncake(file: Path) -> list[Wish]:
    """Mooncake: milliseconds, lengths, and an id for each 512 tokens; prompts that begin with equal ids begin alike."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        Wish(
            row["timestamp"] / 1000,
            row["input_length"],
            row["output_length"],
            tuple(row["hash_ids"][: row["input_length"] // MOONCAKE_PIECE_TOKENS]),
            MOONCAKE_PIECE_TOKENS,
        )
        for row in rows
    ]


def read(file: Path) -> list[Wish]:
    """Of either kind, by the name of the file. Raises ConfigError for what is neither."""
    try:
        return azure(file) if file.suffix == ".csv" else mooncake(file)
    except OSError as error:
        raise ConfigError(f"the trace {file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError):
        raise ConfigError(
            f"the trace {file} is not understood; accepted are Azure's .csv (TIMESTAMP, ContextTokens, GeneratedTokens)"
            " and Mooncake's .jsonl (timestamp, input_length, output_length, hash_ids)"
        ) from None


def drawn(count: int, prompt_tokens: int, new_tokens: int, shared_tokens: int = 0) -> list[Wish]:
    """Requests of one size, all at once, whose prompts begin with the same ``shared_tokens``."""
    shared = (0,) if shared_tokens else ()
    return [Wish(0.0, prompt_tokens, new_tokens, shared, shared_tokens)] * count


def cut(wishes: Sequence[Wish], count: int, divisor: int, most_prompt: int | None, most_new: int | None) -> list[Wish]:
    """The first ``count``, prompts (and what they share) a ``divisor``-th as long, lengths at most so many tokens."""
    found = []
    for one in wishes[:count]:
        prompt = max(one.prompt_tokens // divisor, 1)
        prompt = min(prompt, most_prompt or prompt)
        new = max(min(one.new_tokens, most_new or one.new_tokens), 1)
        found.append(
            replace(one, prompt_tokens=prompt, new_tokens=new, piece_tokens=max(one.piece_tokens // divisor, 1))
        )
    return found


def at_rate(wishes: Sequence[Wish], per_s: float, seed: int) -> list[Wish]:
    """Arrivals of a trace, so many a second on average; where all come at once, drawn as a Poisson process."""
    first, last = wishes[0].arrival_s, wishes[-1].arrival_s
    if last > first:
        factor = (len(wishes) - 1) / per_s / (last - first)
        return [replace(one, arrival_s=(one.arrival_s - first) * factor) for one in wishes]
    draw, now, found = random.Random(seed), 0.0, []
    for one in wishes:
        found.append(replace(one, arrival_s=now))
        now += draw.expovariate(per_s)
    return found


class Prompts:
    """Prompts nobody has seen, but for what they share: token ids below ``vocabulary``, or words of about one token."""

    def __init__(self, seed: int, vocabulary: int | None = None) -> None:
        self._seed, self._vocabulary = seed, vocabulary
        self._number = 0

    def make(self, wish: Wish) -> str | list[int]:
        """The next one."""
        self._number += 1
        own = random.Random(f"{self._seed} own {self._number}")
        ids: list[int] = []
        for piece in wish.shared:
            ids += self._draw(random.Random(f"{self._seed} shared {piece}"), wish.piece_tokens)
        ids = [*ids[: wish.prompt_tokens], *self._draw(own, wish.prompt_tokens - len(ids))]
        return ids if self._vocabulary else " ".join(WORDS[one] for one in ids)

    def _draw(self, source: random.Random, count: int) -> Iterator[int]:
        low, high = (min(100, self._vocabulary // 2), self._vocabulary) if self._vocabulary else (0, len(WORDS))
        return (source.randrange(low, high) for _ in range(count))


WORDS = re.findall(
    r"\w+",
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city name team minute idea body back parent face level office door "
    "health person art war history party result change morning reason research girl guy moment air teacher force",
)
