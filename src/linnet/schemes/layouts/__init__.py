# SPDX-License-Identifier: Apache-2.0
"""Forms in which a quantised weight lies on disk, one object each."""

from linnet.schemes.layouts.base import Layout, StoredTensor
from linnet.schemes.layouts.canonical import (
    CODEBOOK,
    FLOAT_QUANTIZED,
    INT_QUANTIZED,
    OWN,
    PACK_QUANTIZED,
    CanonicalLayout,
    bits_per_weight,
    layout_of,
    stored_bytes,
    stored_tensors,
)
from linnet.schemes.layouts.pack_minimum import PACK_MINIMUM

__all__ = [
    "CODEBOOK",
    "FLOAT_QUANTIZED",
    "INT_QUANTIZED",
    "OWN",
    "PACK_MINIMUM",
    "PACK_QUANTIZED",
    "CanonicalLayout",
    "Layout",
    "StoredTensor",
    "bits_per_weight",
    "layout_of",
    "stored_bytes",
    "stored_tensors",
]
