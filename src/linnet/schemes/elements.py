# SPDX-License-Identifier: Apache-2.0
"""What one code can be: a row per element type. Whoever needs to know something of an element asks its row."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ElementName = Literal[
    "binary",
    "ternary",
    "int2",
    "int3",
    "int4",
    "int5",
    "int6",
    "int8",
    "fp8_e4m3",
    "nf4",
    "iq4_nl",
    "fp4_e2m1",
    "fp4_bnb",
    "kmeans2",
    "kmeans3",
    "kmeans4",
    "fp32",
    "bf16",
    "fp16",
]
Kind = Literal["integer", "float", "codebook"]


@dataclass(frozen=True, eq=False)
class Element:
    """One element type.

    ``kind``: integer codes (int8, signed unless their scheme has a minimum), floats (the values themselves), or
    ``codebook`` indices (uint8) into ``values``, fp32 [2 ** bits], or into a table of each row's own (``learned``).
    ``smallest`` and ``largest`` bound the
    codes. ``affine``: may have a zero point or a minimum. ``own``: compressed-tensors has no word for it.
    """

    name: str
    bits: int
    kind: Kind
    smallest: float
    largest: float
    code_type: np.dtype[Any]
    affine: bool = False
    own: bool = False
    values: Array | None = None
    packable: bool = True
    """Whether codes are packed into words where they are stored; floats lie one by one."""
    plain: bool = False
    """Numbers as models are trained in, without a scale: in a scheme only where a pattern leaves some of them out."""
    step: float = 1.0
    """Of integers: how far apart neighbouring codes are."""

    @property
    def integer(self) -> bool:
        """Codes are integers: such weights can be multiplied by integer activations."""
        return self.kind == "integer"

    @property
    def levels(self) -> int:
        """Of integers: how many codes there are."""
        return int((self.largest - self.smallest) / self.step) + 1

    @property
    def few(self) -> bool:
        """At most three codes, around zero: the scale that loses least is known exactly, and they lie as digits."""
        return self.integer and self.levels <= 3

    @property
    def learned(self) -> bool:
        """A codebook whose values are every row's own, made for it and stored with it: there are no scales."""
        return self.kind == "codebook" and self.values is None

    @cached_property
    def ascending(self) -> Array:
        """Of a codebook: the codes in the order of their values, uint8."""
        assert self.values is not None
        return np.argsort(self.values, kind="stable").astype(np.uint8)

    @cached_property
    def midpoints(self) -> Array:
        """Of a codebook: a number between two of them is nearest to the ascending table's value between them."""
        assert self.values is not None
        table = self.values[self.ascending]
        return (table[1:] + table[:-1]) / 2

    @property
    def half_range(self) -> float:
        """What the greatest magnitude of a weight is divided by to make a symmetric scale."""
        if self.values is not None:
            return float(np.abs(self.values).max())
        return (self.largest - self.smallest) / 2


def _integer(bits: int) -> Element:
    half = 2.0 ** (bits - 1)
    own = bits in (5, 6)
    return Element(f"int{bits}", bits, "integer", -half, half - 1, np.dtype(np.int8), affine=True, own=own)


def _codebook(name: str, values: list[float]) -> Element:
    table = np.array(values, np.float32)
    table.setflags(write=False)
    bits = len(values).bit_length() - 1
    return Element(name, bits, "codebook", 0.0, len(values) - 1.0, np.dtype(np.uint8), own=True, values=table)


def _learned(bits: int) -> Element:
    return Element(f"kmeans{bits}", bits, "codebook", 0.0, 2.0**bits - 1, np.dtype(np.uint8), own=True)


_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""NormalFloat4: quantiles of the normal distribution scaled to [-1, 1] (QLoRA, Dettmers et al. 2023, appendix E)."""

_IQ4_NL = [-127.0, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
"""ggml's non-linear 4-bit table (kvalues_iq4nl)."""

_E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
"""OCP Microscaling Formats 1.0, section 5.3.3: sign and magnitude; minus zero counts as zero."""

_FP4_BNB = [
    *(float(np.float32(value) / np.float32(12)) for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)),
    *(-float(np.float32(value) / np.float32(12)) for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)),
]
"""bitsandbytes' 4-bit floats: sign, exponent, mantissa, scaled so that the greatest is 1."""


def _plain(name: str, dtype: Any) -> Element:
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    bits = 8 * np.dtype(dtype).itemsize
    return Element(name, bits, "float", -largest, largest, np.dtype(dtype), packable=False, plain=True)


_ROWS = (
    Element("binary", 1, "integer", -1.0, 1.0, np.dtype(np.int8), own=True, step=2.0),
    Element("ternary", 2, "integer", -1.0, 1.0, np.dtype(np.int8), own=True),
    *map(_integer, (2, 3, 4, 5, 6, 8)),
    Element("fp8_e4m3", 8, "float", -448.0, 448.0, np.dtype(ml_dtypes.float8_e4m3fn), packable=False),
    _codebook("nf4", _NF4),
    _codebook("iq4_nl", _IQ4_NL),
    _codebook("fp4_e2m1", _E2M1),
    _codebook("fp4_bnb", _FP4_BNB),
    *map(_learned, (2, 3, 4)),
    _plain("fp32", np.float32),
    _plain("bf16", ml_dtypes.bfloat16),
    _plain("fp16", np.float16),
)
ELEMENTS: Mapping[str, Element] = MappingProxyType({row.name: row for row in _ROWS})
