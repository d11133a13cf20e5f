# SPDX-License-Identifier: Apache-2.0
"""As many connections as the limits of open files allow, and no more than wanted."""

import resource

import pytest

from linnet.cli.descriptors import SPARE, room_for_connections

NONE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "raised"),
    [
        (1024, 20000, 4096, 4096 + SPARE),
        (1024, NONE, 4096, 4096 + SPARE),
        (1024, 2048, 2048 - SPARE, 2048),
        (1024, 1024, 1024 - SPARE, 1024),
        (64, 64, 1, 64),
        (20000, 20000, 4096, 20000),
        (NONE, NONE, 4096, NONE),
    ],
)
def test_limits(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, connections: int, raised: int) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert room_for_connections(4096) == connections
    assert limits[-1] == (raised, hard)


def test_a_limit_that_may_not_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, new: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 20000))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert room_for_connections(4096) == 1024 - SPARE
