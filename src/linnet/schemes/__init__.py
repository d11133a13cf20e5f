# SPDX-License-Identifier: Apache-2.0
"""What quantised numbers look like: scheme values, presets, codecs, packed weights, exact bit accounting."""

from linnet.schemes.codecs import compute_scales, dequantize, quantize, round_scale
from linnet.schemes.elements import ELEMENTS, Element
from linnet.schemes.groups import fitting_groups, largest_fitting_group
from linnet.schemes.layouts import Layout, StoredTensor, bits_per_weight, layout_of, stored_bytes, stored_tensors
from linnet.schemes.packed_weight import PackedWeight, pack, plain_scheme, quantize_weight, without_zeros
from linnet.schemes.presets import PRESETS, SUFFIXES, SchemePreset, parse_scheme
from linnet.schemes.scheme import DENSE_BITS, DenseType, LinearScheme, Scheme
from linnet.schemes.scheme_map import SchemeMap, check_shapes, fit_groups
from linnet.schemes.sparsity import SparsityPattern, parse_pattern
from linnet.schemes.terms import LowRank, Outliers, Terms

__all__ = [
    "DENSE_BITS",
    "ELEMENTS",
    "PRESETS",
    "SUFFIXES",
    "DenseType",
    "Element",
    "Layout",
    "LinearScheme",
    "LowRank",
    "Outliers",
    "PackedWeight",
    "Scheme",
    "SchemeMap",
    "SchemePreset",
    "SparsityPattern",
    "StoredTensor",
    "Terms",
    "bits_per_weight",
    "check_shapes",
    "compute_scales",
    "dequantize",
    "fit_groups",
    "fitting_groups",
    "largest_fitting_group",
    "layout_of",
    "pack",
    "parse_pattern",
    "parse_scheme",
    "plain_scheme",
    "quantize",
    "quantize_weight",
    "round_scale",
    "stored_bytes",
    "stored_tensors",
    "without_zeros",
]
