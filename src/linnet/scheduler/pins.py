# SPDX-License-Identifier: Apache-2.0
"""Who keeps which names pinned in the prefix cache, and how many may be pinned at all."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from .invariants import InvariantError
from .prefix_cache import PrefixCache
from .tier import BlockTier


@dataclass(frozen=True, slots=True)
class _Kept:
    digests: tuple[bytes, ...]
    lasting: bool
    namespace: bytes


class Pins:
    """Each owner keeps one sequence of names: the blocks of a conversation between two turns, of a prompt module.

    What is pinned and evicted all the same goes to the tier, if there is one, which keeps it as it keeps what a
    preempted request will come back for.

    Where more than `most` names would be pinned, or there would be more owners than that (who may keep the same names),
    the owner that was heard of least recently loses its pins; its blocks are idle then like any others. Lasting owners
    (modules) lose theirs to lasting ones only.
    """

    def __init__(self, cache: PrefixCache, tier: BlockTier | None, most: int) -> None:
        self.most = most
        self._cache, self._tier = cache, tier
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()

    def __len__(self) -> int:
        """How many owners keep anything."""
        return len(self._kept)

    def keep(self, owner: bytes, digests: Sequence[bytes], lasting: bool = False, namespace: bytes = b"") -> None:
        """Pin these names for the owner instead of what it kept, as many of the first ones as may be. None: nothing.

        Mutates: the owners, and the cache as `pin` and `unpin` do.
        """
        self._hold(owner, tuple(digests[: self.most]), lasting, namespace)
        while (excess := self._cache.pinned_names - self.most) > 0 or len(self) > self.most:
            victim = self._victim(owner, lasting)
            if victim is not None:
                self.let_go(victim)
            else:
                left = self._kept[owner].digests
                self._hold(owner, left[: max(len(left) - excess, 0)] if excess > 0 else (), lasting, namespace)

    def let_go(self, owner: bytes) -> None:
        """The owner keeps nothing any more; unknown ones are ignored. Mutates as `keep` does."""
        self._hold(owner, (), False)

    def let_go_of(self, namespace: bytes) -> None:
        """Nobody is going to ask for names of this namespace any more. Mutates as `keep` does."""
        for owner in [owner for owner, kept in self._kept.items() if kept.namespace == namespace]:
            self.let_go(owner)

    def check(self) -> None:
        """Prove that the pins in the cache are those of the owners, and not too many. Mutates nothing."""
        names = {digest for one in self._kept.values() for digest in one.digests}
        if len(names) != self._cache.pinned_names or len(names) > self.most:
            raise InvariantError(
                f"{self._cache.pinned_names} names are pinned, their owners keep {len(names)} and {self.most} may be"
            )
        if len(self) > self.most:
            raise InvariantError(f"there are {len(self)} owners of at most {self.most} pinned names")

    def _hold(self, owner: bytes, digests: tuple[bytes, ...], lasting: bool, namespace: bytes = b"") -> None:
        before = self._kept.pop(owner, None)
        self._cache.pin(digests)  # before the others fall, so that what stays is not touched
        if before is not None:
            self._cache.unpin(before.digests)
        if self._tier is not None:
            for digest in digests:
                self._tier.expect(digest)
            for digest in () if before is None else before.digests:
                if not self._cache.is_pinned(digest):
                    self._tier.give_up(digest)
        if digests:
            self._kept[owner] = _Kept(digests, lasting, namespace)

    def _victim(self, owner: bytes, lasting: bool) -> bytes | None:
        """Who was heard of least recently and may lose its pins to the owner."""
        others = [other for other in self._kept if other != owner]
        passing = (other for other in others if not self._kept[other].lasting)
        return next(passing, others[0] if lasting and others else None)
