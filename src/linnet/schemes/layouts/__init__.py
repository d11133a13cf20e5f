# SPDX-License-Identifier: Apache-2.0
"""Forms in which a quantised weight lies on disk, one object each."""

from linnet.schemes.layouts.base import Layout, StoredTensor, WrittenLayout
from linnet.schemes.layouts.canonical import (
    CODEBOOK,
    FLOAT_QUANTIZED,
    INT_QUANTIZED,
    OWN,
    PACK_QUANTIZED,
    CanonicalLayout,
)
from linnet.schemes.layouts.digits import DIGITS, DIGITS_TENSOR
from linnet.schemes.layouts.of_scheme import bits_per_weight, layout_of, stored_bytes, stored_tensors
from linnet.schemes.layouts.pack_minimum import PACK_MINIMUM
from linnet.schemes.layouts.sparse_24 import SPARSE_24

__all__ = [
    "CODEBOOK",
    "DIGITS",
    "DIGITS_TENSOR",
    "FLOAT_QUANTIZED",
    "INT_QUANTIZED",
    "OWN",
    "PACK_MINIMUM",
    "PACK_QUANTIZED",
    "SPARSE_24",
    "CanonicalLayout",
    "Layout",
    "StoredTensor",
    "WrittenLayout",
    "bits_per_weight",
    "layout_of",
    "stored_bytes",
    "stored_tensors",
]
