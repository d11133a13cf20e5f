# SPDX-License-Identifier: Apache-2.0
"""BitNet b1.58's forms, as transformers reads them (Ma et al. 2024): ternary weights with one scale of the tensor,
inputs rounded to int8 per token in a narrow range (scale max|x| / 127).

Offline: ``weight`` uint8 [outputs / 4, inputs] holds a code in two bits, plus 1: row r of its p rows has those of the
rows r, r + p, r + 2p, r + 3p, the first in the lowest bits. ``weight_scale`` [1] multiplies them (``linear_class``
autobitlinear), or divides them (bitlinear, which is meant where nothing is said).

Online (autobitlinear): weights are dense and become ternary when they are read: codes are w / s to nearest, from -1 to
1, and s is the mean of |w|, at least 1e-5. Here s is fp32, the exact mean rounded once.

transformers multiplies inputs by 127 / max|x|, kernels here divide by max|x| / 127: where the two fall on different
sides of the middle between two codes, an input is off by one of them. It also takes no max|x| below 1e-5.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.forms.base import SCALE_TYPES, ReadTensor, Tensors, scale_type
from linnet.formats.forms.packed_rows import apart
from linnet.formats.forms.record import flag, names, word
from linnet.formats.forms.transposed_words import expect
from linnet.formats.forms.written import is_inner
from linnet.formats.name_pattern import check_pattern, matches_name
from linnet.formats.prescription import Quantization, SchemeGroup
from linnet.schemes import LinearScheme, PackedWeight, Scheme, pack

Array = npt.NDArray[Any]

LINEAR_CLASSES = ("bitlinear", "autobitlinear")
MODES = ("offline", "online")
INPUTS = Scheme("int8", "token", dynamic=True, narrow_range=True)
PLAIN = "modules_to_not_convert"
BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"
"""What transformers wants behind such a name, which it takes for an expression and for an ending."""
CODES_PER_BYTE = 4
SMALLEST_MEAN = 1e-5


class BitNet:
    """Implements ``Form``. ``divides``: the stored scale is what codes are divided by; ``online``: weights lie dense,
    but for those of modules that ``plain`` names."""

    methods: tuple[str, ...] = ("bitnet",)
    suffixes: tuple[str, ...] = ("weight",)
    repacks = True

    def __init__(self, divides: bool = True, online: bool = False, plain: tuple[str, ...] = ()) -> None:
        self._divides, self._online, self._plain = divides, online, plain

    def for_record(self, record: Mapping[str, Any], where: str) -> "BitNet":
        """See Form.for_record."""
        divides = word(record, "linear_class", where, LINEAR_CLASSES, LINEAR_CLASSES[0]) == "bitlinear"
        online = word(record, "quantization_mode", where, MODES, MODES[0]) == "online"
        return BitNet(divides, online and not divides, names(record, PLAIN, where))

    def read_config(self, record: Mapping[str, Any], where: str) -> Quantization:
        """See Form.read_config. Which modules are packed their tensors say."""
        if flag(record, "use_rms_norm", where, default=False):
            raise UnsupportedError(
                f"{where}: use_rms_norm true (a norm inside every linear) is not supported; false is"
            )
        for name in names(record, PLAIN, where):
            try:
                check_pattern(name)
            except CheckpointError as error:
                raise CheckpointError(f"{where}: {PLAIN}: the pattern {name!r:.80} is refused: {error}") from None
        self.for_record(record, where)
        scheme = LinearScheme(Scheme("ternary", "tensor"), INPUTS)
        return Quantization("bitnet", (SchemeGroup(("Linear",), scheme),))

    def module_of(self, name: str) -> str:
        """See Form.module_of."""
        return name.rpartition(".")[0]

    def claims(self, module: str, tensors: Tensors) -> bool:
        """See Form.claims. Dense: what is two-dimensional, is not left as it is, and no embedding nor head."""
        info = tensors.get(f"{module}.weight")
        if info is None or not self._online:
            return info is not None and info.dtype == "uint8"
        return info.dtype in SCALE_TYPES and len(info.shape) == 2 and is_inner(module) and not self._is_plain(module)

    def _is_plain(self, module: str) -> bool:
        return any(module.endswith(name) or matches_name(f"(?:{name}){BOUNDARY}", module) for name in self._plain)

    def scheme(self, module: str, prescribed: LinearScheme | None, tensors: Tensors, where: str) -> LinearScheme:
        """See Form.scheme."""
        kind: Any = "fp32"
        if not self._online:
            stored = scale_type(module, "weight_scale", tensors, where)
            kind = "fp32" if self._divides else stored
        return LinearScheme(Scheme("ternary", "tensor", scale_dtype=kind), INPUTS)

    def shape(
        self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str
    ) -> tuple[int, int]:
        """See Form.shape."""
        info = tensors[f"{module}.weight"]
        if len(info.shape) != 2 or 0 in info.shape:
            raise CheckpointError(
                f"{where}: {module}.weight is {info.dtype} {list(info.shape)}; two dimensions are needed"
            )
        return info.shape[0] * (1 if self._online else CODES_PER_BYTE), info.shape[1]

    def read(self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str) -> PackedWeight:
        """See Form.read."""
        self.shape(module, scheme, tensors, tensor, where)
        if self._online:
            codes, scale = _to_ternary(tensor(f"{module}.weight"), f"{where}: {module}.weight")
            return pack(codes, scale, None, scheme)
        expect(module, "weight_scale", SCALE_TYPES, (1,), tensors, where)
        octets = tensor(f"{module}.weight")
        if (octets & (octets >> 1) & 0x55).any():
            raise CheckpointError(f"{where}: {module}.weight holds the code 3; those of ternary weights are 0, 1 and 2")
        codes = apart(octets, 2, range(0, 8, 2)).view(np.int8) - np.int8(1)
        scale = tensor(f"{module}.weight_scale").reshape(1, 1)
        if self._divides:
            with np.errstate(divide="ignore"):
                scale = np.float32(1) / scale.astype(np.float32)
        if not np.isfinite(scale.astype(np.float32)).all():
            raise CheckpointError(f"{where}: {module}.weight_scale is 0, NaN or infinity, of which nothing can be made")
        return pack(codes, scale, None, scheme)


def _to_ternary(weight: Array, where: str) -> tuple[Array, Array]:
    """Codes int8 of a dense weight, and its scale fp32 [1, 1]."""
    values = weight.astype(np.float32)
    mean = np.maximum(np.abs(values).mean(dtype=np.float64), SMALLEST_MEAN).astype(np.float32)
    if not np.isfinite(mean):
        raise CheckpointError(f"{where} holds NaN or infinity")
    factor = np.float32(1) / mean
    values *= factor
    codes = np.rint(values, out=values).clip(-1, 1).astype(np.int8)
    return codes, (np.float32(1) / factor).reshape(1, 1)
