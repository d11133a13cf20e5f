# SPDX-License-Identifier: Apache-2.0
"""GGUF's block types as layouts: rows of blocks, each with its scales beside its codes."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from linnet.errors import CheckpointError
from linnet.schemes import gguf_blocks
from linnet.schemes.gguf_blocks import BLOCK_TYPES, BlockScales, BlockType
from linnet.schemes.layouts.base import Array, Arrays, RowRanges, Shape, StoredTensor, take
from linnet.schemes.scheme import LinearScheme, Scheme

BLOCKS = "blocks"


@dataclass(frozen=True)
class GgufLayout:
    """``blocks``: uint8 [rows, bytes of a row]. Implements ``Layout``; the scheme is the type's own."""

    kind: BlockType

    @property
    def name(self) -> str:
        """ggml's name of the type."""
        return self.kind.name

    @property
    def scheme(self) -> LinearScheme:
        """What the type means."""
        kind = self.kind
        return LinearScheme(
            Scheme(
                cast(Any, kind.element),
                "group",
                kind.group,
                symmetric=not kind.minimum,
                scale_dtype=kind.scale_dtype,
                minimum=kind.minimum,
                scale_bits=kind.scale_bits,
                super_group_size=kind.super_group,
            )
        )

    def stored(self, scheme: LinearScheme, shape: Shape) -> dict[str, StoredTensor]:
        """See Layout.stored."""
        return {BLOCKS: StoredTensor("uint8", (shape[0], -(-shape[1] // self.kind.columns) * self.kind.nbytes))}

    def codes(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """See Layout.codes."""
        return gguf_blocks.codes(self.kind, self._blocks(arrays)).view(scheme.weight.numbers.code_type)

    def scales(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """See Layout.scales."""
        return gguf_blocks.scales(self.kind, self._blocks(arrays))

    def zero_points(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> None:
        """No block type has any."""

    def minimums(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array | None:
        """See Layout.minimums."""
        return gguf_blocks.minimums(self.kind, self._blocks(arrays))

    def stored_scales(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> BlockScales | None:
        """See Layout.stored_scales."""
        if not self.kind.minimum and self.kind.sub_scales is None:
            return None
        return gguf_blocks.block_scales(self.kind, self._blocks(arrays))

    def take_rows(self, arrays: Arrays, scheme: LinearScheme, shape: Shape, ranges: RowRanges) -> dict[str, Array]:
        """See Layout.take_rows."""
        return {BLOCKS: take(arrays[BLOCKS], ranges)}

    def check(self, arrays: Arrays, scheme: LinearScheme, shape: Shape, where: str) -> None:
        """See Layout.check."""
        blocks, wanted = arrays[BLOCKS], self.stored(scheme, shape)[BLOCKS].shape
        if shape[1] % self.kind.columns or blocks.dtype != np.uint8 or blocks.shape != wanted:
            raise CheckpointError(
                f"{where}: {blocks.dtype} {list(blocks.shape)} are not the {self.name} blocks of a weight {list(shape)}"
            )
        gguf_blocks.check(self.kind, self._blocks(arrays), where)

    def _blocks(self, arrays: Arrays) -> Array:
        return gguf_blocks.as_blocks(self.kind, arrays[BLOCKS])


GGUF_LAYOUTS: dict[str, GgufLayout] = {name: GgufLayout(kind) for name, kind in BLOCK_TYPES.items()}
"""By ggml's name of the type."""
