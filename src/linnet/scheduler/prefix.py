# SPDX-License-Identifier: Apache-2.0
"""The name of a full block: a digest chained over everything before it.

Two blocks have the same digest exactly when they hold the same tokens after the same prefix under the same salt, so a
table keyed by it may share keys and values without comparing tokens. 256 bits of BLAKE2b: nobody finds a collision, by
accident or on purpose. The salt enters at the root, so requests with different salts can never meet.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

_DIGEST_BYTES = 32
_ROOT_PERSON = b"linnet-root"
_BLOCK_PERSON = b"linnet-block"


def extend_digests(
    digests: list[bytes], token_ids: Sequence[int], salt: bytes, block_size: int, num_blocks: int
) -> None:
    """Append digests until there is one for each of the first `num_blocks` full blocks of `token_ids`.

    Mutates `digests` only, and only at its end: known tokens are append-only, so what is there stays right. Root and
    blocks are hashed under different personalisations, so that no salt can pose as a chain.
    """
    if len(digests) >= num_blocks:
        return
    parent = digests[-1] if digests else blake2b(salt, digest_size=_DIGEST_BYTES, person=_ROOT_PERSON).digest()
    for index in range(len(digests), num_blocks):
        tokens = array("q", token_ids[index * block_size : (index + 1) * block_size])
        assert len(tokens) == block_size, "only full blocks have a digest"
        parent = blake2b(parent + tokens.tobytes(), digest_size=_DIGEST_BYTES, person=_BLOCK_PERSON).digest()
        digests.append(parent)
