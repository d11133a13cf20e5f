# SPDX-License-Identifier: Apache-2.0
"""Which layout a scheme is written in, and what that takes: exact sizes without a weight."""

from math import prod

from linnet.schemes.layouts.base import Shape, StoredTensor, WrittenLayout
from linnet.schemes.layouts.canonical import CODES_STAY_IN_BYTES, FLOAT_QUANTIZED, INT_QUANTIZED, OWN, PACK_QUANTIZED
from linnet.schemes.layouts.digits import DIGITS
from linnet.schemes.layouts.sparse_24 import SPARSE_24
from linnet.schemes.scheme import LinearScheme


def layout_of(scheme: LinearScheme) -> WrittenLayout:
    """The canonical layout a scheme is written in."""
    numbers = scheme.weight.numbers
    if scheme.weight.sparsity is not None:
        return SPARSE_24
    if numbers.few:
        return DIGITS
    if numbers.kind == "codebook":
        return OWN
    if not numbers.packable:
        return FLOAT_QUANTIZED
    bytes_that_meet_bytes = numbers.bits == CODES_STAY_IN_BYTES and scheme.input is not None
    return INT_QUANTIZED if bytes_that_meet_bytes else PACK_QUANTIZED


def stored_tensors(scheme: LinearScheme, shape: Shape) -> dict[str, StoredTensor]:
    """Suffix (``weight_packed`` ...) -> dtype and shape of every tensor stored canonically for a linear, a static scale
    of its activations included."""
    tensors = dict(layout_of(scheme).stored(scheme, shape))
    if scheme.input is not None and not scheme.input.dynamic:
        tensors["input_scale"] = StoredTensor("fp32", (1,))
    return tensors


def stored_bytes(scheme: LinearScheme, shape: Shape) -> int:
    """Bytes of all tensors of a linear on disk, exact; file headers and alignment not counted."""
    return sum(tensor.nbytes for tensor in stored_tensors(scheme, shape).values())


def bits_per_weight(scheme: LinearScheme, shape: Shape) -> float:
    """Stored bits per element, scales, zero points and the shape record included."""
    return 8 * stored_bytes(scheme, shape) / prod(shape)
