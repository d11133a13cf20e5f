# SPDX-License-Identifier: Apache-2.0
"""What a conversion did, or is about to publish: per weight and altogether."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from linnet.formats.convert.encoding import Converted


@dataclass(frozen=True)
class Conversion:
    """``source_bytes`` and ``target_bytes``: all tensors, as stored. ``verified``: the published file was read again
    and its numbers hash to ``sha256``, that of the source's; None before publishing and where something was lost.
    ``dropped``: sentences about what the source prescribes for run time and the result does not."""

    path: Path
    tensors: tuple[Converted, ...]
    source_bytes: int
    target_bytes: int
    verified: bool | None = None
    dropped: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every number is the source's."""
        return all(tensor.exact for tensor in self.tensors)

    @property
    def relative_error(self) -> float:
        """Root of summed squared errors over root of summed squares: 0.05 means 5 % of the weights' size."""
        power = sum(tensor.squared_sum for tensor in self.tensors)
        return math.sqrt(sum(tensor.squared_error for tensor in self.tensors) / power) if power else 0.0

    @property
    def sha256(self) -> str:
        """Of all the source's numbers in fp32: over ``name hash`` lines sorted by name."""
        return combined((tensor.name, tensor.sha256) for tensor in self.tensors)

    @property
    def worst(self) -> tuple[str, float]:
        """The weight that lost most for its size, and its own relative error."""
        return max(((tensor.name, tensor.relative_error) for tensor in self.tensors), key=lambda item: item[1])

    def types(self) -> dict[str, int]:
        """Type -> elements in it."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            counts[tensor.type] = counts.get(tensor.type, 0) + math.prod(tensor.shape)
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def combined(hashes: Iterable[tuple[str, str]]) -> str:
    """One hash of named hashes."""
    digest = hashlib.sha256()
    for name, value in sorted(hashes):
        digest.update(f"{name}\0{value}\n".encode())
    return digest.hexdigest()
