# SPDX-License-Identifier: Apache-2.0
"""R26: what one key has asked is nothing to another: no cached prefix, no work saved, no time saved; and the time of a
refusal says nothing about a key.

Times are judged by how well the best threshold tells two classes apart (the area under the curve: 0.5 is a coin), and
always beside a leak of the same size that the same clock must see. LINNET_TENANT_TRIALS: prompts whose times are judged
(100); LINNET_TENANT_PROMPTS: prompts of one key that the other one asks (500).
"""

import hmac
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count

import numpy as np
import pytest
from serving import NAME, Running, digest_model, eventually

from linnet.serve import security
from linnet.serve.errors import ApiError
from linnet.serve.security import Keys

TRIALS = int(os.environ.get("LINNET_TENANT_TRIALS", "100"))
PROMPTS = int(os.environ.get("LINNET_TENANT_PROMPTS", "500"))
KEYS = ("key-of-the-victim", "key-of-the-other")
STEP_S, LENGTH = 0.004, 64


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model(num_blocks=256, token_budget=16), keys=KEYS) as running:
        yield running
        running.wait_settled()


def ask(server: Running, key: str, prompt: str) -> tuple[float, int, int]:
    """Seconds to the first and only token, cached tokens, tokens that the engine computed."""
    assert server.server is not None
    door = server.server.bridge.door
    before, began_s = door.counters.computed_tokens, time.perf_counter()
    body = {"model": NAME, "prompt": prompt, "max_tokens": 1}
    answer = server.http.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
    took_s = time.perf_counter() - began_s
    usage = answer.json()["usage"]
    eventually(lambda: door.counters.running_requests == 0)  # the step has been counted
    return took_s, usage["prompt_tokens_details"]["cached_tokens"], door.counters.computed_tokens - before


def curve(low: Sequence[float], high: Sequence[float]) -> float:
    """The share of pairs in which the one of ``low`` is the smaller."""
    wins = sum((a < b) + 0.5 * (a == b) for a in low for b in high)
    return wins / (len(low) * len(high))


def chance(trials: int) -> float:
    """Three standard deviations of the area of two classes that are alike."""
    return 3 * float(((2 * trials + 1) / (12 * trials * trials)) ** 0.5)


def beginning(number: int) -> str:
    """Four digits and letters of those below: a block for each number, since a key finds what it has asked itself."""
    return np.base_repr(number, 18).zfill(4).lower()


def test_no_prompt_of_another_key_is_found(server: Running) -> None:
    """Each is asked by the one key and then by the other, which has all of it computed; now and then the first asks
    again and finds it, so that there was something to find."""
    assert server.server is not None
    rng, door, found = random.Random(6), server.server.bridge.door, 0
    before = door.counters.computed_tokens
    for number in range(PROMPTS):
        prompt = beginning(number) + "".join(rng.choices("abcdefgh", k=LENGTH - 4))
        for key in KEYS:
            assert ask(server, key, prompt)[1] == 0, (number, key)
        if number % 50 == 0:
            own = ask(server, KEYS[0], prompt)[1]
            assert own > 0
            found += LENGTH - own
    eventually(lambda: door.counters.computed_tokens - before == 2 * LENGTH * PROMPTS + found)


def test_what_another_key_has_asked_saves_neither_work_nor_time(server: Running) -> None:
    """The victim asks; the other key probes that prompt and a fresh one, in random order; the victim asks again."""
    rng, numbers = random.Random(5), count()  # no two prompts begin alike
    hits, fresh, own = [], [], []
    server.llm.executable.delay_s = STEP_S
    try:
        for _ in range(TRIALS):
            known, new = (beginning(next(numbers)) + "".join(rng.choices("abcdefgh", k=LENGTH - 4)) for _ in range(2))
            ask(server, KEYS[0], known)
            for prompt in rng.sample([known, new], 2):
                (hits if prompt == known else fresh).append(ask(server, KEYS[1], prompt))
            own.append(ask(server, KEYS[0], known))
    finally:
        server.llm.executable.delay_s = 0.0
    assert all(cached == 0 for _, cached, _ in hits + fresh)
    assert {computed for _, _, computed in hits + fresh} == {LENGTH}, "every probe is computed as a whole"
    assert all(cached > 0 and computed < LENGTH for _, cached, computed in own)
    found_s, hit_s, fresh_s = ([one[0] for one in probes] for probes in (own, hits, fresh))
    assert curve(found_s, fresh_s) > 0.9, "this clock would not see a prefix that is found"
    told = curve(hit_s, fresh_s)
    print(f"{TRIALS} prompts of each kind: another key's are told from fresh ones with an area of {told:.3f}")
    assert abs(told - 0.5) <= max(0.05, chance(TRIALS))


def leaky(known: bytes, given: bytes) -> bool:
    """What must not be: it ends at the first difference."""
    return len(known) == len(given) and all(one == other for one, other in zip(known, given, strict=True))


def times_of(check: Callable[[bytes], object], keys: Sequence[bytes], rounds: int) -> list[list[float]]:
    """Of each key so many times of twenty checks, in turns."""
    found: list[list[float]] = [[] for _ in keys]
    for _ in range(rounds):
        for key, times in zip(keys, found, strict=True):
            began_s = time.perf_counter()
            for _ in range(20):
                check(key)
            times.append(time.perf_counter() - began_s)
    return found


def test_the_time_of_a_refusal_says_nothing_about_a_key() -> None:
    """Wrong in the first letter and wrong in the last take the same time; a comparison that ends early is seen."""
    known = "k" * 64
    keys = Keys([known, "another-key-that-is-there"])
    first, last = b"x" + b"k" * 63, b"k" * 63 + b"x"

    def check(key: bytes) -> None:
        with pytest.raises(ApiError):
            keys.check([b"Bearer " + key])

    def bad(key: bytes) -> bool:
        return leaky(known.encode(), key)

    told = curve(*times_of(check, (first, last), 200))
    control = curve(*times_of(bad, (first, last), 200))
    assert control > 0.9
    assert abs(told - 0.5) <= 0.15, told


@pytest.mark.parametrize("given", [b"", b"k", b"first-key", b"second-key", b"first-kez", b"x" * 5000])
def test_every_known_key_is_looked_at_whatever_is_given(given: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """In constant time, digests of one length each: no early end, neither within a key nor between keys."""
    seen: list[tuple[int, int]] = []

    compare_digest = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        seen.append((len(one), len(other)))
        return compare_digest(one, other)

    keys = Keys(["first-key", "second-key", "third-key"])
    monkeypatch.setattr(security.hmac, "compare_digest", compare)
    with suppress(ApiError):
        keys.check([b"Bearer " + given])
    assert seen == [(32, 32)] * 3
