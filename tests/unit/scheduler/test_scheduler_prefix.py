# SPDX-License-Identifier: Apache-2.0
"""Names of blocks: equal exactly when salt, prefix and tokens are."""

import pytest

from linnet.scheduler import extend_digests


def digests(token_ids: list[int], salt: bytes = b"", block_size: int = 2) -> list[bytes]:
    names: list[bytes] = []
    extend_digests(names, token_ids, salt, block_size, len(token_ids) // block_size)
    return names


def test_the_same_prefix_has_the_same_names() -> None:
    assert digests([1, 2, 3, 4, 5]) == digests([1, 2, 3, 4])
    assert digests([1, 2, 9, 9])[0] == digests([1, 2, 3, 4])[0]


@pytest.mark.parametrize("other", [[9, 2, 3, 4], [2, 1, 3, 4], [1, 2, 4, 3]])
def test_another_prefix_has_another_name(other: list[int]) -> None:
    assert digests([1, 2, 3, 4])[1] != digests(other)[1]


def test_the_same_tokens_elsewhere_have_another_name() -> None:
    names = digests([1, 2, 1, 2, 1, 2])
    assert len(set(names)) == 3


def test_salts_never_meet() -> None:
    assert not set(digests([1, 2, 3, 4])) & set(digests([1, 2, 3, 4], salt=b"tenant"))
    parent = digests([1, 2])[0]
    assert digests([3, 4], salt=parent)[0] != digests([1, 2, 3, 4])[1], "a salt cannot pose as a chain"


def test_tokens_are_not_confused_by_their_bytes() -> None:
    assert digests([1, 256])[0] != digests([257, 0])[0]
    assert digests([0, 1 << 40])[0] != digests([1 << 8, 0])[0]


def test_extending_keeps_what_is_there() -> None:
    names: list[bytes] = []
    extend_digests(names, [1, 2, 3, 4], b"", 2, 1)
    extend_digests(names, [1, 2, 3, 4], b"", 2, 2)
    extend_digests(names, [1, 2, 3, 4], b"", 2, 1)
    assert names == digests([1, 2, 3, 4])
