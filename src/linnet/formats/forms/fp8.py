# SPDX-License-Identifier: Apache-2.0
"""fp8 (e4m3) weights one by one beside their scales: DeepSeek's and Qwen's blocks (``weight_scale_inv``, a factor in
spite of its name), vLLM's one scale per tensor, fbgemm's one per row. Views of the file, nothing is copied.

Inputs are rounded as the config prescribes: dynamic, per token and as many columns as a block is wide, or static.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.forms.base import ReadTensor, Tensors
from linnet.formats.forms.canonical_linear import check_static_input
from linnet.formats.forms.record import word
from linnet.formats.forms.transposed_words import expect
from linnet.formats.prescription import Quantization, SchemeGroup
from linnet.schemes import LinearScheme, PackedWeight, Scheme
from linnet.schemes.layouts import FLOAT_QUANTIZED

SCALES = ("weight_scale_inv", "weight_scale")
SCALE_TYPES = ("fp32", "bf16", "fp16")


class Fp8:
    """Implements ``Form``."""

    methods: tuple[str, ...] = ("fp8", "fbgemm_fp8")
    suffixes: tuple[str, ...] = ("weight",)
    repacks = False

    def for_record(self, record: Mapping[str, Any], where: str) -> "Fp8":
        """See Form.for_record."""
        return self

    def read_config(self, record: Mapping[str, Any], where: str) -> Quantization:
        """See Form.read_config. Which modules are left dense their tensors say."""
        method = str(record.get("quant_method"))
        word(record, "fmt", where, ("e4m3", "float8_e4m3fn"), "e4m3")
        if record.get("scale_fmt") not in (None, "float"):
            raise UnsupportedError(
                f"{where}: scale_fmt {record['scale_fmt']!r:.80} (activation scales that are powers of two) is not "
                "supported"
            )
        block = record.get("weight_block_size")
        if block is not None and not (
            isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
        ):
            raise CheckpointError(f"{where}: weight_block_size must be [rows, columns], not {block!r:.80}")
        dynamic = word(record, "activation_scheme", where, ("dynamic", "static"), "dynamic") == "dynamic"
        if block is not None:
            if not dynamic:
                raise UnsupportedError(f"{where}: static activations with weights in blocks are not supported")
            weight = Scheme("fp8_e4m3", "block", block=(block[0], block[1]))
            inputs = Scheme("fp8_e4m3", "group", block[1], dynamic=True)
        elif method == "fbgemm_fp8":
            weight, inputs = Scheme("fp8_e4m3", "channel"), Scheme("fp8_e4m3", "token", dynamic=True)
        else:
            weight, inputs = Scheme("fp8_e4m3", "tensor"), Scheme("fp8_e4m3", "tensor", dynamic=dynamic)
        return Quantization(method, (SchemeGroup(("Linear",), LinearScheme(weight, inputs)),))

    def module_of(self, name: str) -> str:
        """See Form.module_of."""
        return name.rpartition(".")[0]

    def claims(self, module: str, tensors: Tensors) -> bool:
        """See Form.claims."""
        info = tensors.get(f"{module}.weight")
        return info is not None and info.dtype == "fp8_e4m3"

    def scheme(self, module: str, prescribed: LinearScheme | None, tensors: Tensors, where: str) -> LinearScheme:
        """See Form.scheme."""
        assert prescribed is not None  # every module has one: the class of all linears is targeted
        leaf = _scale_leaf(module, tensors, where)
        info = tensors[f"{module}.{leaf}"]
        if info.dtype not in SCALE_TYPES:
            raise CheckpointError(f"{where}: {module}.{leaf} is {info.dtype}; scales are {', '.join(SCALE_TYPES)}")
        inputs = prescribed.input
        if inputs is not None and not inputs.dynamic and f"{module}.input_scale" not in tensors:
            raise CheckpointError(f"{where}: {module}.input_scale is missing, static activations need it")
        return replace(prescribed, weight=replace(prescribed.weight, scale_dtype=cast(Any, info.dtype)))

    def shape(
        self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str
    ) -> tuple[int, int]:
        """See Form.shape."""
        info = tensors[f"{module}.weight"]
        if len(info.shape) != 2 or 0 in info.shape:
            raise CheckpointError(f"{where}: {module}.weight is fp8 {list(info.shape)}; two dimensions are needed")
        return info.shape[0], info.shape[1]

    def read(self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str) -> PackedWeight:
        """See Form.read."""
        shape = self.shape(module, scheme, tensors, tensor, where)
        leaf = _scale_leaf(module, tensors, where)
        wanted = FLOAT_QUANTIZED.stored(scheme, shape)["weight_scale"].shape
        scales = tensor(f"{module}.{leaf}")
        if scales.size != np.prod(wanted):
            expect(module, leaf, SCALE_TYPES, wanted, tensors, where)
        arrays = {"weight": tensor(f"{module}.weight"), "weight_scale": scales.reshape(wanted)}
        if f"{module}.input_scale" in tensors:
            arrays["input_scale"] = tensor(f"{module}.input_scale")
        shown = f"{where}: {module}"
        check_static_input(arrays, scheme, shown)
        packed = PackedWeight(scheme, shape, FLOAT_QUANTIZED, arrays)
        packed.check(shown)
        return packed


def _scale_leaf(module: str, tensors: Tensors, where: str) -> str:
    for leaf in SCALES:
        if f"{module}.{leaf}" in tensors:
            return leaf
    raise CheckpointError(f"{where}: {module} has neither {' nor '.join(SCALES)}, without which its codes mean nothing")
