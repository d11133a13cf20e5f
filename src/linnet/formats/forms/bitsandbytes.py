# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes as transformers saves it: NF4 and FP4 with single or double quantisation, and int8.

4 bits: ``weight`` uint8 [numbers / 2, 1], two codes to a byte, the first in the high nibble, numbered through all rows;
``weight.absmax`` one scale per block of ``blocksize`` numbers, fp32, or (double quantisation) uint8 indices into
``weight.nested_quant_map`` times ``weight.nested_absmax`` plus an offset; ``weight.quant_state.bitsandbytes__nf4`` the
bytes of a JSON object with shape and sizes. The nibbles of each byte change places once and scales become fp32.

int8: ``weight`` [outputs, inputs] and ``SCB`` [outputs], the greatest magnitude of a row: a weight is code * SCB / 127.
Its inputs stay as they are: bitsandbytes rounds them to int8 beside a few columns in fp16, which is no more exact.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.forms.base import ReadTensor, Tensors
from linnet.formats.forms.record import flag, whole_number, word
from linnet.formats.forms.transposed_words import expect
from linnet.formats.json_file import parse_json_object
from linnet.formats.prescription import Quantization, SchemeGroup
from linnet.schemes import LinearScheme, PackedWeight, Scheme
from linnet.schemes.layouts import INT_QUANTIZED, OWN

Array = npt.NDArray[Any]
STATE = "weight.quant_state.bitsandbytes__"
KINDS = {"nf4": "nf4", "fp4": "fp4_bnb"}
"""bitsandbytes' word -> our element."""
MAX_STATE_BYTES = 4096
MAP_TOLERANCE = 1e-6


class BitsAndBytes:
    """Implements ``Form``."""

    methods: tuple[str, ...] = ("bitsandbytes",)
    suffixes: tuple[str, ...] = ("weight",)
    repacks = True

    def for_record(self, record: Mapping[str, Any], where: str) -> "BitsAndBytes":
        """See Form.for_record."""
        return self

    def read_config(self, record: Mapping[str, Any], where: str) -> Quantization:
        """See Form.read_config. What a module is, its tensors say; the config says what was meant."""
        if flag(record, "load_in_8bit", where, False) or flag(record, "_load_in_8bit", where, False):
            weight = Scheme("int8", "channel", scale_dtype="fp32")
        else:
            kind = word(record, "bnb_4bit_quant_type", where, tuple(KINDS), "fp4")
            weight = Scheme(KINDS[kind], "group", 64, scale_dtype="fp32")  # type: ignore[arg-type]
        return Quantization("bitsandbytes", (SchemeGroup(("Linear",), LinearScheme(weight)),))

    def module_of(self, name: str) -> str:
        """See Form.module_of."""
        return name.partition(".weight.")[0] if ".weight." in name else name.rpartition(".")[0]

    def claims(self, module: str, tensors: Tensors) -> bool:
        """See Form.claims."""
        return f"{module}.weight" in tensors and (f"{module}.SCB" in tensors or _kind(module, tensors) is not None)

    def scheme(self, module: str, prescribed: LinearScheme | None, tensors: Tensors, where: str) -> LinearScheme:
        """See Form.scheme."""
        kind = _kind(module, tensors)
        if kind is None:
            return LinearScheme(Scheme("int8", "channel", scale_dtype="fp32"))
        return LinearScheme(Scheme(KINDS[kind], "group", _block_size(module, tensors, where), scale_dtype="fp32"))  # type: ignore[arg-type]

    def shape(
        self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str
    ) -> tuple[int, int]:
        """See Form.shape."""
        kind, info = _kind(module, tensors), tensors[f"{module}.weight"]
        if kind is not None:
            return _State(tensor(f"{module}.{STATE}{kind}"), f"{where}: {module}").shape
        if info.dtype != "int8" or len(info.shape) != 2 or 0 in info.shape:
            raise CheckpointError(
                f"{where}: {module}.weight is {info.dtype} {list(info.shape)}; int8 [outputs, inputs] is needed"
            )
        return info.shape[0], info.shape[1]

    def read(self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str) -> PackedWeight:
        """See Form.read."""
        shown, kind = f"{where}: {module}", _kind(module, tensors)
        shape = self.shape(module, scheme, tensors, tensor, where)
        if kind is None:
            expect(module, "SCB", ("fp32",), (shape[0],), tensors, where)
            scales = (tensor(f"{module}.SCB") / np.float32(127)).reshape(-1, 1)
            packed = PackedWeight(
                scheme, shape, INT_QUANTIZED, {"weight": tensor(f"{module}.weight"), "weight_scale": scales}
            )
        else:
            packed = _four_bits(module, kind, scheme, tensors, tensor, where)
        packed.check(shown)
        return packed


class _State:
    """The checked content of a module's quant_state."""

    def __init__(self, stored: Array, shown: str) -> None:
        where = f"{shown}.{STATE}..."
        if stored.dtype != np.uint8 or not 2 <= stored.size <= MAX_STATE_BYTES:
            raise CheckpointError(f"{where} must be the bytes of a JSON object")
        record = parse_json_object(stored.tobytes(), where)
        shape = record.get("shape")
        if not (isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and size > 0 for size in shape)):
            raise CheckpointError(f"{where}: shape must be [outputs, inputs], not {shape!r:.80}")
        self.shape = (shape[0], shape[1])
        self.block_size = whole_number(record, "blocksize", where)
        self.nested_block_size = whole_number(record, "nested_blocksize", where, 256)
        offset = record.get("nested_offset", 0.0)
        if not isinstance(offset, int | float) or not np.isfinite(offset) or self.nested_block_size < 1:
            raise CheckpointError(f"{where}: nested_offset must be a number, not {offset!r:.80}")
        self.nested_offset = np.float32(offset)


def _kind(module: str, tensors: Tensors) -> str | None:
    return next((kind for kind in KINDS if f"{module}.{STATE}{kind}" in tensors), None)


def _block_size(module: str, tensors: Tensors, where: str) -> int:
    """Numbers per scale, by how many there are of both."""
    weight, scales = tensors.get(f"{module}.weight"), tensors.get(f"{module}.weight.absmax")
    if weight is None or scales is None or scales.shape == () or 0 in scales.shape:
        raise CheckpointError(f"{where}: {module} lacks its weight or weight.absmax")
    size, rest = divmod(weight.nbytes * 2, prod(scales.shape))
    if rest or not size:
        raise CheckpointError(
            f"{where}: {module}.weight.absmax has {prod(scales.shape)} scales for {weight.nbytes * 2} numbers"
        )
    return size


def _four_bits(
    module: str, kind: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str
) -> PackedWeight:
    shown, size = f"{where}: {module}", scheme.weight.group_size
    assert size is not None
    state = _State(tensor(f"{module}.{STATE}{kind}"), shown)
    rows, columns = state.shape
    stored = np.ascontiguousarray(tensor(f"{module}.weight")).reshape(-1).view(np.uint8)
    if stored.size * 2 != rows * columns or state.block_size != size:
        raise CheckpointError(
            f"{shown}.weight holds {stored.size * 2} codes in blocks of {size}; its quant_state says {rows} x "
            f"{columns} in blocks of {state.block_size}"
        )
    if columns % size or columns % 8:
        raise UnsupportedError(f"{shown}: blocks of {size} numbers cross rows of {columns}, which is not supported")
    table = scheme.weight.numbers.values
    assert table is not None
    found = tensor(f"{module}.weight.quant_map") if f"{module}.weight.quant_map" in tensors else table
    if found.shape != table.shape or not np.allclose(found.astype(np.float32), table, atol=MAP_TOLERANCE):
        raise UnsupportedError(f"{shown}.weight.quant_map is not {kind}'s table")
    arrays = {
        "weight_packed": ((stored >> 4) | (stored << 4)).view(np.int32).reshape(rows, -1),
        "weight_scale": _scales(module, state, tensors, tensor, where).reshape(rows, columns // size),
        "weight_shape": np.array(state.shape, np.int64),
    }
    return PackedWeight(scheme, state.shape, OWN, arrays)


def _scales(module: str, state: _State, tensors: Tensors, tensor: ReadTensor, where: str) -> Array:
    """fp32, one per block: as stored, or nested ones decoded as bitsandbytes decodes them."""
    stored = tensor(f"{module}.weight.absmax").reshape(-1)
    if stored.dtype == np.float32:
        return stored
    if stored.dtype != np.uint8:
        raise CheckpointError(f"{where}: {module}.weight.absmax is {stored.dtype}; fp32 or uint8 is needed")
    nested = -(-stored.size // state.nested_block_size)
    expect(module, "weight.nested_absmax", ("fp32",), (nested,), tensors, where)
    expect(module, "weight.nested_quant_map", ("fp32",), (256,), tensors, where)
    factors = np.repeat(tensor(f"{module}.weight.nested_absmax"), state.nested_block_size)[: stored.size]
    scales: Array = tensor(f"{module}.weight.nested_quant_map")[stored] * factors + state.nested_offset
    return scales
