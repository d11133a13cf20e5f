# SPDX-License-Identifier: Apache-2.0
"""optimum-quanto's form, as ``QuantizedModelForCausalLM.save_pretrained`` writes it, ``quanto_qmap.json`` beside it.

qint8 and qfloat8: ``weight._data`` [outputs, inputs] and ``weight._scale`` [outputs, 1], a view of the file.

qint4 and qint2: a weight is seen as [groups, group size], row after row, groups of 128, 96, 64 or 32 inputs or whole
rows. ``weight._data._data`` packs those rows, not their columns (packed_rows.py), the first in the lowest bits.
``weight._scale`` and ``weight._shift`` are [groups, 1]; a weight is code * scale - shift, or (code - shift) * scale
where shifts are integers. How many rows there are the file does not say.

quanto rounds both steps to the type of the scale; here, as in quanto with scales and shifts widened to fp32, a weight
of 16-bit numbers is the exact value rounded once. ``input_scale`` and ``output_scale`` belong to quantised activations.
"""

from collections.abc import Mapping
from math import prod
from typing import Any, cast

import numpy as np

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.forms.base import ReadTensor, Tensors, scale_type
from linnet.formats.forms.packed_rows import apart, with_minimums
from linnet.formats.forms.transposed_words import canonical, expect
from linnet.formats.prescription import Quantization
from linnet.schemes import LinearScheme, PackedWeight, Scheme
from linnet.schemes.layouts import FLOAT_QUANTIZED, INT_QUANTIZED
from linnet.schemes.packing import pack_rows

DATA, PACKED = "weight._data", "weight._data._data"
WEIGHTS = ("qint8", "qint4", "qint2", "qfloat8_e4m3fn", "qfloat8", "int8", "int4", "int2", "float8", "none")
"""quanto's words and transformers' for the same."""
GROUP_SIZES = (128, 96, 64, 32)
INTEGER_SHIFTS = ("int8", "uint8")


class Quanto:
    """Implements ``Form`` and ``Shapeless``; ``shapes``: what tensors ``module.weight`` are known to be."""

    methods: tuple[str, ...] = ("quanto",)
    suffixes: tuple[str, ...] = (DATA, PACKED)
    repacks = True

    def __init__(self, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self._shapes = shapes or {}

    def for_record(self, record: Mapping[str, Any], where: str) -> "Quanto":
        """See Form.for_record."""
        return self

    def with_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> "Quanto":
        """See Shapeless.with_shapes."""
        return Quanto(shapes)

    def read_config(self, record: Mapping[str, Any], where: str) -> Quantization:
        """See Form.read_config. quanto's own record has an entry per module, transformers' one for all."""
        _check_rule(record, where)
        for name, rule in record.items():
            if isinstance(rule, dict):
                _check_rule(rule, f"{where}: {name[:80]}")
        return Quantization("quanto")

    def module_of(self, name: str) -> str:
        """See Form.module_of."""
        return name.partition(".weight.")[0] if ".weight." in name else name.rpartition(".")[0]

    def claims(self, module: str, tensors: Tensors) -> bool:
        """See Form.claims."""
        return f"{module}.{DATA}" in tensors or f"{module}.{PACKED}" in tensors

    def scheme(self, module: str, prescribed: LinearScheme | None, tensors: Tensors, where: str) -> LinearScheme:
        """See Form.scheme."""
        kind: Any = scale_type(module, "weight._scale", tensors, where)
        info = tensors.get(f"{module}.{DATA}")
        if info is not None:
            if info.dtype not in ("int8", "fp8_e4m3"):
                raise UnsupportedError(f"{where}: {module}.{DATA} is {info.dtype}; supported: int8, fp8_e4m3")
            return LinearScheme(Scheme(cast(Any, info.dtype), "channel", scale_dtype=kind))
        bits, size = _bits_and_group(module, tensors, where)
        shift = tensors.get(f"{module}.weight._shift")
        minimum = shift is None or shift.dtype not in INTEGER_SHIFTS
        weight = Scheme(cast(Any, f"int{bits}"), "group", size, symmetric=False, scale_dtype=kind, minimum=minimum)
        return LinearScheme(weight)

    def shape(
        self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str
    ) -> tuple[int, int]:
        """See Form.shape. Of groups: what the model wants, if it has as many numbers; else a group per row."""
        info = tensors.get(f"{module}.{DATA}")
        if info is not None:
            if len(info.shape) != 2 or 0 in info.shape:
                raise CheckpointError(
                    f"{where}: {module}.{DATA} is {info.dtype} {list(info.shape)}; [outputs, inputs] is needed"
                )
            return info.shape[0], info.shape[1]
        size, groups = scheme.weight.group_size, tensors[f"{module}.weight._scale"].shape[0]
        assert size is not None
        wanted = self._shapes.get(f"{module}.weight")
        if wanted is None and size in GROUP_SIZES:
            raise UnsupportedError(
                f"{where}: {module} is {groups} groups of {size} numbers; how many make a row quanto's files do not "
                "say, only a model that Linnet knows does"
            )
        if wanted is None or len(wanted) != 2 or prod(wanted) != groups * size or wanted[1] % size:
            return groups, size
        return wanted[0], wanted[1]

    def read(self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str) -> PackedWeight:
        """See Form.read."""
        shown, kind = f"{where}: {module}", scheme.weight.scale_dtype
        shape = self.shape(module, scheme, tensors, tensor, where)
        if f"{module}.{DATA}" in tensors:
            return _by_channels(module, scheme, shape, tensors, tensor, where)
        groups = tensors[f"{module}.weight._scale"].shape[0]
        shifts = (kind,) if scheme.weight.minimum else INTEGER_SHIFTS
        expect(module, "weight._shift", shifts, (groups, 1), tensors, where)
        bits, size = _bits_and_group(module, tensors, where)
        octets = np.ascontiguousarray(tensor(f"{module}.{PACKED}")).reshape(-1, size)
        codes = apart(octets, bits, range(0, 8, bits))[:groups]
        scales, shift = tensor(f"{module}.weight._scale"), tensor(f"{module}.weight._shift")
        if scheme.weight.minimum:
            return with_minimums(codes, scales, shift, scheme, shape, shown)
        low, high = int(shift.min()), int(shift.max())
        if low < 0 or high >= 2**bits:
            raise CheckpointError(
                f"{shown}.weight._shift holds {low if low < 0 else high}; a zero point lies in 0 ... {2**bits - 1}"
            )
        by_rows = scales.reshape(shape[0], -1), shift.reshape(shape[0], -1)
        return canonical(pack_rows(codes.reshape(shape), bits), *by_rows, scheme, shape, shown)


def _by_channels(
    module: str, scheme: LinearScheme, shape: tuple[int, int], tensors: Tensors, tensor: ReadTensor, where: str
) -> PackedWeight:
    """8 bits; a single row has a scale without dimensions."""
    rows = shape[0]
    if prod(tensors[f"{module}.weight._scale"].shape) != rows:
        expect(module, "weight._scale", (scheme.weight.scale_dtype,), (rows, 1), tensors, where)
    layout = INT_QUANTIZED if scheme.weight.numbers.integer else FLOAT_QUANTIZED
    arrays = {
        "weight": tensor(f"{module}.{DATA}"),
        "weight_scale": tensor(f"{module}.weight._scale").reshape(rows, 1),
    }
    packed = PackedWeight(scheme, shape, layout, arrays)
    packed.check(f"{where}: {module}")
    return packed


def _check_rule(rule: Mapping[str, Any], where: str) -> None:
    """What one module, or all of them, was quantised to."""
    weights, activations = rule.get("weights"), rule.get("activations")
    if weights is not None and weights not in WEIGHTS:
        raise UnsupportedError(
            f"{where}: weights {weights!r:.80} are not supported; supported: qint8, qint4, qint2, qfloat8_e4m3fn"
        )
    if activations not in (None, "none"):
        raise UnsupportedError(
            f"{where}: quantised activations ({activations!r:.80}) are not supported; quantise the weights alone "
            "(activations=None)"
        )


def _bits_and_group(module: str, tensors: Tensors, where: str) -> tuple[int, int]:
    """Bits of a code and columns of a group, by the shapes of the packed codes and of their scales."""
    scale, codes = tensors[f"{module}.weight._scale"].shape, tensors[f"{module}.{PACKED}"]
    if len(scale) == 2 and scale[1] == 1 and codes.dtype == "uint8" and len(codes.shape) == 2 and 0 not in codes.shape:
        for bits in (4, 2):
            if codes.shape[0] == -(-scale[0] * bits // 8):
                return bits, codes.shape[1]
    raise CheckpointError(
        f"{where}: {module}.{PACKED} is {codes.dtype} {list(codes.shape)}, its scales are {list(scale)}; uint8 "
        "[groups / 2 or groups / 4, group size] and [groups, 1] are needed"
    )
