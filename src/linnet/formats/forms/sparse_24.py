# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors' ``sparse-24-bitmask``: modules stored without the zeros of a 2:4 pattern, plain or with codes.

Up to 0.14 compressed-tensors (and vLLM of that time) wrote and read it; newer ones do not, and take a directory that
only has a ``sparsity_config`` for one whose weights are missing. So what is written says ``"sparsity": "2:4"`` in every
config group too, of which there is always one: old readers pass over the key, new ones refuse it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.forms.base import ReadTensor, Tensors
from linnet.formats.forms.canonical_linear import canonical_scale, check_static_input, stored_scheme
from linnet.schemes import ELEMENTS, LinearScheme, PackedWeight, plain_scheme
from linnet.schemes.layouts import SPARSE_24
from linnet.schemes.layouts.sparse_24 import KEPT, MASK, SHAPE
from linnet.schemes.sparsity import TWO_OF_FOUR

FORMAT = SPARSE_24.name
_INPUTS = ("input_scale", "input_zero_point")
_REFUSED = ("weight_zero_point", "weight_g_idx")


def is_sparse(module: str, tensors: Tensors) -> bool:
    """Whether a module lies without its zeros, by its tensors alone."""
    return f"{module}.{KEPT}" in tensors and f"{module}.{MASK}" in tensors


def check_config(record: Any, where: str) -> bool:
    """Whether a ``sparsity_config`` announces such modules. UnsupportedError for another form or pattern."""
    if record is None:
        return False
    if not isinstance(record, dict):
        raise CheckpointError(f"{where}.sparsity_config must be an object, not {record!r:.80}")
    name, pattern = record.get("format", "dense"), record.get("sparsity_structure", TWO_OF_FOUR.name)
    if name == "dense":
        return False
    if name != FORMAT:
        raise UnsupportedError(f"{where}: sparsity format {name!r:.80} is not supported; supported: {FORMAT}")
    if pattern != TWO_OF_FOUR.name:
        raise UnsupportedError(f"{where}: sparsity_structure {pattern!r:.80} is not supported; supported: 2:4")
    return True


def config_record(modules: Mapping[str, LinearScheme]) -> dict[str, Any] | None:
    """``sparsity_config`` for these modules; None where none lies without its zeros."""
    targets = sorted(module for module, scheme in modules.items() if scheme.weight.sparsity is not None)
    if not targets:
        return None
    return {"format": FORMAT, "targets": targets, "ignore": [], "sparsity_structure": TWO_OF_FOUR.name}


def sparse_scheme(module: str, prescribed: LinearScheme | None, tensors: Tensors, where: str) -> LinearScheme:
    """How a module that ``is_sparse`` lies: plain numbers by their type, codes as the config prescribes."""
    stored = tensors[f"{module}.{KEPT}"].dtype
    if stored in ELEMENTS and ELEMENTS[stored].plain:
        return plain_scheme(ELEMENTS[stored].code_type)
    if prescribed is None:
        raise CheckpointError(
            f"{where}: {module}.{KEPT} is {stored}, so it holds codes, but no group of quantization_config targets it"
        )
    for leaf in _REFUSED:
        if f"{module}.{leaf}" in tensors:
            raise UnsupportedError(f"{where}: {module}.{leaf} beside weights without their zeros is not supported")
    scheme = stored_scheme(module, prescribed, tensors, where)
    if not scheme.weight.leaves_out_zeros:
        raise UnsupportedError(f"{where}: {module}: only symmetric integers and fp8 may be stored without their zeros")
    return replace(scheme, weight=replace(scheme.weight, sparsity=TWO_OF_FOUR.name))


def sparse_shape(module: str, tensors: Tensors, tensor: ReadTensor, where: str) -> tuple[int, int]:
    """Logical [rows, columns], as ``shape`` says; CheckpointError unless the mask has bits for just so many columns."""
    if f"{module}.{SHAPE}" not in tensors:
        raise CheckpointError(f"{where}: {module}.{SHAPE} is missing")
    stated, mask = tensor(f"{module}.{SHAPE}"), tensors[f"{module}.{MASK}"]
    if stated.size != 2 or stated.dtype.kind != "i" or int(stated.min()) < 1:
        raise CheckpointError(f"{where}: {module}.{SHAPE} must be two positive integers")
    rows, columns = (int(size) for size in stated.reshape(2))
    if columns % 4:
        raise CheckpointError(f"{where}: {module}.{SHAPE} says {columns} columns, which are no multiple of four")
    if tuple(mask.shape) != (rows, -(-columns // 8)):
        raise CheckpointError(f"{where}: {module}.{MASK} is {list(mask.shape)}, its shape says {[rows, columns]}")
    return rows, columns


def read_sparse(module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str) -> PackedWeight:
    """Assemble and check such a module; ``scheme`` comes from ``sparse_scheme``."""
    shown, shape = f"{where}: {module}", sparse_shape(module, tensors, tensor, where)
    group = scheme.weight.group_size
    if group is not None and shape[1] % group:
        raise CheckpointError(f"{shown}: group size {group} does not divide its {shape[1]} columns")
    arrays = {KEPT: tensor(f"{module}.{KEPT}"), MASK: tensor(f"{module}.{MASK}"), SHAPE: np.array(shape).reshape(2, 1)}
    if not scheme.weight.numbers.plain:
        arrays["weight_scale"] = canonical_scale(tensor(f"{module}.weight_scale"), scheme, shape)
        arrays |= {leaf: tensor(f"{module}.{leaf}") for leaf in _INPUTS if f"{module}.{leaf}" in tensors}
        check_static_input(arrays, scheme, shown)
    packed = PackedWeight(scheme, shape, SPARSE_24, arrays)
    packed.check(shown)
    return packed
