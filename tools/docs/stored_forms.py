# SPDX-License-Identifier: Apache-2.0
"""Every form of a stored weight that a reader of formats/forms gives, and random weights in it.

Part of ``support_matrix.py``; ``tests/ops/test_stored_forms.py`` multiplies by each on every tier.
"""

import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from linnet.program.prescribed import COLUMN_ORDER, INPUT_SCALE, INPUT_ZERO_POINT
from linnet.program.program import Program, WeightRef
from linnet.schemes import LinearScheme, PackedWeight, Scheme, codecs, parse_scheme, quantize_weight
from linnet.schemes.layouts import PACK_MINIMUM, Layout, bits_per_weight
from linnet.schemes.layouts.gguf import BLOCKS, GGUF_LAYOUTS
from linnet.schemes.packed_weight import pack_learned, plain_scheme, without_zeros
from linnet.schemes.scheme import DenseType
from linnet.schemes.sparsity import TWO_OF_FOUR

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "unit" / "schemes"))
from gguf_random_blocks import random_blocks

Array = np.ndarray[Any, np.dtype[Any]]
COLUMNS = 512
"""Of the weights, and rows."""
DENSE_DTYPES: dict[str, Any] = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16, "fp16": np.float16}

COMPRESSED_TENSORS = (
    "W8A16", "W8A16-asym", "W4A16", "W4A16-asym", "W4A16-channel", "W3A16", "W2A16", "W8A8", "W4A8", "W4A4", "FP8",
    "FP8_DYNAMIC", "FP8_STATIC",
)  # fmt: skip
DENSE: tuple[tuple[DenseType, float], ...] = (("fp32", 32.0), ("bf16", 16.0), ("fp16", 16.0))
OWN = ("NF4", "TERNARY", "BINARY", "KMEANS4", "KMEANS3", "KMEANS2")


@dataclass(frozen=True)
class Row:
    """One form of a weight, and perhaps of its input."""

    published: str
    stored: str
    scheme: LinearScheme | DenseType
    bits: float
    layout: Layout | None = None
    """As what the reader hands it on; None: as its scheme lies where Linnet writes it."""


def rows() -> Iterator[Row]:
    """Every form that a reader of formats/forms can give."""
    shape = (COLUMNS, COLUMNS)
    yield from (Row("plain safetensors, GGUF", name, name, bits) for name, bits in DENSE)
    for method, names in (("compressed-tensors", COMPRESSED_TENSORS), ("linnet", OWN)):
        for name in names:
            scheme = parse_scheme(name).linear
            yield Row(method, name, scheme, bits_per_weight(scheme, shape))
    static = LinearScheme(Scheme("int8", "channel"), Scheme("int8", "tensor", symmetric=False))
    yield Row(
        "compressed-tensors", "W8A8, static activations with a zero point", static, bits_per_weight(static, shape)
    )
    yield from packed_floats_and_zeros()
    rows_of_fp8 = LinearScheme(
        Scheme("fp8_e4m3", "channel", scale_dtype="fp32"), parse_scheme("FP8_DYNAMIC").linear.input
    )
    yield Row("fbgemm fp8", "one scale per row", rows_of_fp8, bits_per_weight(rows_of_fp8, shape))
    blocks = Scheme("fp8_e4m3", "block", block=(128, 128), scale_dtype="fp32")
    by_blocks = LinearScheme(blocks, Scheme("fp8_e4m3", "group", 128, dynamic=True))
    yield Row("compressed-tensors, fp8", "fp8 in blocks of 128 × 128", by_blocks, bits_per_weight(by_blocks, shape))
    yield from in_order("compressed-tensors", "W4A16", parse_scheme("W4A16").linear)
    yield from in_order("compressed-tensors", "W8A16 in groups", parse_scheme("W8A16-g128").linear)
    for bits in (2, 3, 4, 8):
        scheme = LinearScheme(Scheme(_element(f"int{bits}"), "group", 128, symmetric=False, scale_dtype="fp16"))
        published, stored = "GPTQ, AWQ" if bits == 4 else "GPTQ", f"{bits} bits, zero points"
        yield Row(published, stored, scheme, bits_per_weight(scheme, shape))
        yield from in_order("GPTQ", stored, scheme)
    for element, name in (("nf4", "NF4"), ("fp4_e2m1", "FP4")):
        scheme = LinearScheme(Scheme(_element(element), "group", 64, scale_dtype="fp32"))
        yield Row("bitsandbytes", name, scheme, bits_per_weight(scheme, shape))
    yield from hqq_and_quanto()
    ternary = LinearScheme(Scheme("ternary", "tensor"), Scheme("int8", "token", dynamic=True, narrow_range=True))
    yield Row("BitNet", "packed codes", ternary, 2.0)
    experts = LinearScheme(Scheme("fp4_e2m1", "group", 32, scale_dtype="bf16"))
    yield Row("gpt-oss (its experts)", "MXFP4", experts, 4.25)
    for name, layout in GGUF_LAYOUTS.items():
        yield Row("GGUF", name, layout.scheme, layout.kind.bits_per_weight, layout)


def in_order(published: str, stored: str, scheme: LinearScheme) -> Iterator[Row]:
    """Groups of columns that lie scattered, as an index per column says (``g_idx``, ``actorder``)."""
    bits = bits_per_weight(scheme, (COLUMNS, COLUMNS)) + 32 / COLUMNS
    yield Row(published, f"{stored}, activation order", replace(scheme, sorted_columns=True), bits)


def packed_floats_and_zeros() -> Iterator[Row]:
    """What else compressed-tensors packs; scales of 4-bit floats take 8 bits in the files."""
    for size, name in ((16, "nvfp4-pack-quantized"), (32, "mxfp4-pack-quantized")):
        scheme = LinearScheme(Scheme("fp4_e2m1", "group", size, scale_dtype="fp32" if size == 16 else "bf16"))
        yield Row("compressed-tensors", name, scheme, 4 + 8 / size)
    shape = (COLUMNS, COLUMNS)
    plain = plain_scheme(np.dtype(ml_dtypes.bfloat16))
    yield Row("compressed-tensors", "sparse-24-bitmask over bf16", plain, bits_per_weight(plain, shape))
    for name in ("W8A8", "FP8_DYNAMIC"):
        whole = parse_scheme(name).linear
        half = replace(whole, weight=replace(whole.weight, sparsity=TWO_OF_FOUR.name))
        yield Row("compressed-tensors", f"sparse-24-bitmask over {name}", half, bits_per_weight(half, shape))


def hqq_and_quanto() -> Iterator[Row]:
    """Bits per weight as in the files, whose scales, zeros and shifts take 16."""
    for bits in (8, 4, 3, 2, 1):
        words = 3.2 if bits == 3 else bits  # ten codes of three bits to an int32
        plural = "" if bits == 1 else "s"
        scheme = _with_minimums(max(bits, 2), 64, "fp32")
        yield Row("HQQ", f"{bits} bit{plural}, axis 1", scheme, words + 32 / 64, PACK_MINIMUM)
    for bits in (4, 2):
        scheme = _with_minimums(bits, 128, "bf16")
        yield Row("quanto", f"qint{bits}", scheme, bits + 32 / 128, PACK_MINIMUM)
    for element, name in (("int8", "qint8"), ("fp8_e4m3", "qfloat8")):
        yield Row("quanto", name, LinearScheme(Scheme(_element(element), "channel")), 8 + 16 / COLUMNS)


def _with_minimums(bits: int, size: int, kind: str) -> LinearScheme:
    element, dtype = _element(f"int{bits}"), _element(kind)
    return LinearScheme(Scheme(element, "group", size, symmetric=False, scale_dtype=dtype, minimum=True))


def _element(name: str) -> Any:
    """A name as the type of a Scheme's field, which is a literal."""
    return name


def random_weight(row: Row, seed: int = 0) -> Array | PackedWeight:
    """[COLUMNS, COLUMNS] in the form of a row, as its reader hands it on; values of about 1 / sqrt(COLUMNS)."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((COLUMNS, COLUMNS), np.float32) / np.float32(np.sqrt(COLUMNS))
    scheme = row.scheme
    if not isinstance(scheme, LinearScheme):
        return values.astype(DENSE_DTYPES[scheme])
    if row.layout is PACK_MINIMUM:
        return _random_minimums(scheme, values, random)
    if row.layout is not None:
        kind = GGUF_LAYOUTS[row.stored].kind
        blocks = random_blocks(kind, COLUMNS, COLUMNS // kind.columns, seed, extreme=False)
        _leave_out_what_means_nothing(row.stored, blocks.reshape(-1, kind.nbytes).view(kind.fields)[:, 0])
        return PackedWeight(scheme, values.shape, row.layout, {BLOCKS: blocks.reshape(COLUMNS, -1)})
    if scheme.weight.sparsity is not None:
        fours = values.reshape(-1, TWO_OF_FOUR.group)
        np.put_along_axis(fours, np.argsort(np.abs(fours), axis=1)[:, : TWO_OF_FOUR.pruned(4)], 0, axis=1)
    if scheme.weight.numbers.plain:
        return without_zeros(values.astype(scheme.weight.numbers.code_type))
    if scheme.weight.numbers.learned:
        return _quantiles(values, scheme)
    packed = quantize_weight(values, replace(scheme, sorted_columns=False))
    if not scheme.sorted_columns:
        return packed
    order = random.permutation(COLUMNS).astype(np.int32)
    return replace(packed, scheme=scheme, arrays={**packed.arrays, COLUMN_ORDER: order})


def _leave_out_what_means_nothing(name: str, blocks: Array) -> None:
    """Of codes of three values that share bytes, in place."""
    if name == "TQ1_0":
        blocks["fives"] %= 243
    if name == "TQ2_0":
        blocks["codes"] &= ~((blocks["codes"] & 0x55) << 1) & 0xFF


def _random_minimums(scheme: LinearScheme, values: Array, random: np.random.Generator) -> PackedWeight:
    weight = scheme.weight
    groups = values.reshape(COLUMNS, -1, weight.group_size or COLUMNS)
    kind = codecs.FLOAT_DTYPES[weight.scale_dtype]
    words = PACK_MINIMUM.stored(scheme, values.shape)["weight_packed"].shape
    arrays = {
        "weight_packed": random.integers(-(2**31), 2**31, words, dtype=np.int32),
        "weight_scale": ((groups.max(2) - groups.min(2)) / 2**weight.bits).astype(kind),
        "weight_minimum": (-groups.min(2)).astype(kind),
    }
    return PackedWeight(scheme, values.shape, PACK_MINIMUM, arrays)


def _quantiles(values: Array, scheme: LinearScheme) -> PackedWeight:
    """Codes of tables that hold quantiles of their rows."""
    shares = (np.arange(2**scheme.weight.bits) + 0.5) / 2**scheme.weight.bits
    table = np.quantile(values, shares, axis=1).T.astype(ml_dtypes.bfloat16)
    nearest = np.abs(values[:, :, None] - table.astype(np.float32)[:, None, :]).argmin(2).astype(np.uint8)
    return pack_learned(nearest, table, scheme)


class FormSource:
    """A program with random weights, one of which is ``stored``; implements ``backends.interface.Source``."""

    def __init__(self, program: Program, name: str, stored: Array | PackedWeight) -> None:
        self.program, self._name, self._stored = program, name, stored
        self._declared = {weight.ref.checkpoint_name: weight for weight in program.weights}

    def weight(self, ref: WeightRef) -> Array | PackedWeight:
        """See Source.weight."""
        name, leaf = ref.checkpoint_name, ref.checkpoint_name.rpartition(".")[2]
        if name == self._name:
            sorts = isinstance(self._stored, PackedWeight) and ref.as_stored
            return self._stored.as_stored() if sorts else self._stored  # type: ignore[union-attr]
        if leaf == COLUMN_ORDER:
            assert isinstance(self._stored, PackedWeight)
            return self._stored.arrays[COLUMN_ORDER]
        if leaf in (INPUT_SCALE, INPUT_ZERO_POINT):
            return np.array([0.03 if leaf == INPUT_SCALE else 3.0], np.float32)
        return _dense(name, self._declared[name].shape)


@cache
def _dense(name: str, shape: tuple[int, ...]) -> Array:
    """A gain of ones, or a random matrix."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[1]))
