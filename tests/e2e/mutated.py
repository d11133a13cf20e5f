# SPDX-License-Identifier: Apache-2.0
"""Bytes with damage, for those who send them."""

from random import Random


def mutated(rng: Random, raw: bytes, times: int, longest_copy: int) -> bytes:
    """So many bytes changed, runs left out, runs put in, and beginnings said again."""
    found = bytearray(raw)
    for _ in range(times):
        place = rng.randrange(len(found) + 1)
        kind = rng.randrange(4)
        if kind == 0 and place < len(found):
            found[place] = rng.randrange(256)
        elif kind == 1:
            del found[place : place + rng.randrange(1, 20)]
        elif kind == 2:
            found[place:place] = rng.randbytes(rng.randrange(1, 10))
        else:
            found[place:place] = found[: rng.randrange(1, longest_copy)]
    return bytes(found)
