# SPDX-License-Identifier: Apache-2.0
"""The name of a full block: a digest chained over everything before it.

Two blocks have the same digest exactly when they hold the same tokens after the same prefix under the same salt, so a
table keyed by it may share keys and values without comparing tokens. 256 bits of BLAKE2b: nobody finds a collision, by
accident or on purpose. The salt enters at the root, so requests with different salts can never meet; or behind a shared
beginning, which is the same for everybody. What else a block's numbers depend on (an adapter) is a namespace, which
always enters at the root.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

_DIGEST_BYTES = 32
_ROOT_PERSON = b"linnet-root"
_BLOCK_PERSON = b"linnet-block"
_SPACE_PERSON = b"linnet-space"
_SALTED_PERSON = b"linnet-salted"


def extend_digests(
    digests: list[bytes],
    token_ids: Sequence[int],
    salt: bytes,
    block_size: int,
    num_blocks: int,
    shared_tokens: int = 0,
    namespace: bytes = b"",
) -> None:
    """Append digests until there is one for each of the first `num_blocks` full blocks of `token_ids`.

    The full blocks of the first `shared_tokens` are named without the salt, which enters behind them. Mutates `digests`
    only, and only at its end: known tokens are append-only, so what is there stays right. Root, blocks and a salt that
    enters later are hashed under different personalisations, so that no salt can pose as a chain.
    """
    if len(digests) >= num_blocks:
        return
    shared = shared_tokens // block_size
    parent = digests[-1] if digests else _root(b"" if shared else salt, namespace)
    for index in range(len(digests), num_blocks):
        if index and index == shared:
            parent = _hash(parent + salt, _SALTED_PERSON)
        tokens = array("q", token_ids[index * block_size : (index + 1) * block_size])
        assert len(tokens) == block_size, "only full blocks have a digest"
        parent = _hash(parent + tokens.tobytes(), _BLOCK_PERSON)
        digests.append(parent)


def _root(salt: bytes, namespace: bytes) -> bytes:
    return _hash(_hash(namespace, _SPACE_PERSON) + salt, _SPACE_PERSON) if namespace else _hash(salt, _ROOT_PERSON)


def _hash(data: bytes, person: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES, person=person).digest()
