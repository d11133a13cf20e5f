# SPDX-License-Identifier: Apache-2.0
"""Which GGUF type a weight becomes: one that holds it exactly, if that is no larger than what was asked for, else what
was asked for, or what llama.cpp takes in its place. Blocks that it already lies in come first, then those asked for.

Exactness comes first: codes that fit another grid lose nothing, a second rounding always does. What a quantised model
keeps as plain numbers stays plain: whoever made it left them alone on purpose. Norms and biases are F32, as llama.cpp
needs them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from linnet.formats.convert.source import SourceTensor
from linnet.formats.convert.target import PLAIN_TYPES
from linnet.schemes.gguf_blocks import BLOCK_TYPES, ENCODED

_OUTER_BITS = BLOCK_TYPES["Q8_0"].bits_per_weight
_STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
_REPLACED = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Blocks of 256 columns -> blocks of 32, where 256 do not divide the columns."""
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 11, "Q4_K": 14,
    "Q5_K": 16, "Q6_K": 18, "BF16": 32,
}  # fmt: skip
"""llama.cpp's llama_ftype, what ``general.file_type`` says most weights are."""


@dataclass(frozen=True)
class Attempt:
    """A type to try; ``exact``: take it only if it holds every number."""

    type: str
    exact: bool


def attempts(
    tensor: SourceTensor, wanted: str, dense_source: bool, is_head: bool, only_exact: bool
) -> Iterator[Attempt]:
    """In order, until one is taken; with ``only_exact`` there may be none, else the last always is.

    ``is_head``: what the logits are made with, which is the embedding where the two are one.
    """
    if len(tensor.shape) != 2:
        yield Attempt("F32", True)
        return
    if wanted in PLAIN_TYPES:
        yield Attempt(wanted, only_exact)
        return
    if tensor.scheme is None:
        if dense_source:
            yield Attempt(rounded_type(wanted, tensor.shape[1], is_head), only_exact)
        else:
            yield Attempt(_STORED[tensor.stored], True)
        return
    room = float("inf") if only_exact else BLOCK_TYPES[wanted].bits_per_weight
    if tensor.outer:
        room = max(room, _OUTER_BITS)
    own = [tensor.block_type] if tensor.block_type is not None else []
    rest = sorted(BLOCK_TYPES, key=lambda name: BLOCK_TYPES[name].bits_per_weight)
    for name in dict.fromkeys([*own, wanted, *rest]):
        kind = BLOCK_TYPES[name]
        writable = name in own or name in ENCODED or kind.element == "ternary"
        if writable and kind.bits_per_weight <= room and tensor.shape[1] % kind.columns == 0:
            yield Attempt(name, True)
    if not only_exact:
        yield Attempt(rounded_type(wanted, tensor.shape[1], is_head), False)


def rounded_type(wanted: str, columns: int, is_head: bool) -> str:
    """What a weight is rounded to, by llama.cpp's rule (``llama_tensor_get_type``): more bits for the head, smaller
    blocks where large ones do not fit, plain numbers where none does."""
    name = "Q6_K" if is_head and wanted != "Q8_0" else wanted
    if columns % BLOCK_TYPES[name].columns:
        name = _REPLACED.get(name, name)
    return "F16" if columns % BLOCK_TYPES[name].columns else name
