# SPDX-License-Identifier: Apache-2.0
"""What one GGUF block type is: the fields of a block, how its codes and its scales lie in them, what they mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from linnet.schemes.gguf_blocks.planes import Plane

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class BlockScales:
    """The scales of weights, as stored. ``scale`` and ``minimum`` [rows, blocks] in the type's ``scale_dtype``.

    One-level types: a group is a block, the codes are None. Two-level types: ``scale_codes`` (int8 or uint8) and, where
    the type has minimums, ``minimum_codes`` (uint8) [rows, groups] times the scale or minimum of their block.
    ``minimum`` is what is subtracted (Q4_1 and Q5_1 store what is added: its sign is turned here).
    """

    scale: Array
    minimum: Array | None = None
    scale_codes: Array | None = None
    minimum_codes: Array | None = None


@dataclass(frozen=True)
class SubScales:
    """How the scales of the groups of a block are stored: bits and offset of their codes, and the two directions.

    ``unpack``: structured blocks [n] -> (scale codes [n, groups], minimum codes or None); ``pack`` writes them.
    Scale codes are unsigned (``smallest`` 0) or int8.
    """

    bits: int
    smallest: int
    largest: int
    unpack: Callable[[Array], tuple[Array, Array | None]]
    pack: Callable[[Array, Array | None, Array], None]


@dataclass(frozen=True)
class Codes:
    """How the codes of a block are stored: uint8 [n, elements] out of structured blocks [n] and back."""

    unpack: Callable[[Array], Array]
    pack: Callable[[Array, Array], None]


@dataclass(frozen=True)
class BlockType:
    """One GGUF type (ggml's ``block_q4_K`` ...) in Linnet's words.

    weight = code * scale, or code * scale - minimum; ``offset`` is subtracted from the stored code to make it signed.
    With a ``codebook`` the code is an index into it (fp32 values). ``smallest`` and ``largest`` bound the code.
    """

    name: str
    element: str
    columns: int
    group: int
    fields: np.dtype[Any]
    codes: Codes | tuple[Plane, ...]
    smallest: int
    largest: int
    offset: int = 0
    minimum: bool = False
    added_minimum: bool = False
    codebook: Array | None = None
    scale_dtype: Literal["fp16", "e8m0"] = "fp16"
    sub_scales: SubScales | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of one block."""
        return self.fields.itemsize

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return int(self.largest - self.smallest).bit_length()

    @property
    def groups(self) -> int:
        """Groups of one block."""
        return self.columns // self.group

    @property
    def scale_bits(self) -> int | None:
        """Bits of the code of a scale; None where scales are stored as they are."""
        return None if self.sub_scales is None else self.sub_scales.bits

    @property
    def super_group(self) -> int | None:
        """Columns that share the scale of their scales; None where scales are stored as they are."""
        return None if self.sub_scales is None else self.columns

    @property
    def bits_per_weight(self) -> float:
        """Bits of a block per element, scales included."""
        return 8 * self.nbytes / self.columns
