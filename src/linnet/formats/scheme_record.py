# SPDX-License-Identifier: Apache-2.0
"""Schemes as compressed-tensors' ``QuantizationArgs`` records and back."""

from typing import Any, cast

from linnet.errors import CheckpointError, ConfigError, UnsupportedError
from linnet.schemes import ELEMENTS, LinearScheme, Scheme
from linnet.schemes.scheme import Granularity

_KNOWN_KEYS = {
    "num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder", "scale_dtype",
    "zp_dtype", "observer", "observer_kwargs",
}  # fmt: skip


OUR_ELEMENTS = ("binary", "ternary", "nf4", "kmeans4", "kmeans3", "kmeans2")
"""Elements that are types of our own in a record, under their own name (quant_method "linnet" only)."""

_FP4_SCALES = ("torch.uint8", "torch.float8_e4m3fn")
STRATEGIES = {
    "weights": ("tensor", "channel", "group", "block"),
    "input_activations": ("tensor", "token", "group"),
    "kv_cache_scheme": ("tensor", "token", "attn_head"),
}
"""What may share a scale, by the record's role."""


def scheme_to_record(scheme: Scheme) -> dict[str, Any]:
    """A ``QuantizationArgs`` object, or the same with a type of our own."""
    kind = scheme.element if scheme.element in OUR_ELEMENTS else "float" if scheme.numbers.kind == "float" else "int"
    record: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": kind,
        "symmetric": scheme.symmetric,
        "strategy": scheme.granularity,
        "group_size": scheme.group_size,
        "dynamic": scheme.dynamic,
    }
    if scheme.block is not None:
        record["block_structure"] = list(scheme.block)
    return record


def scheme_from_record(record: Any, where: str, role: str, ours: bool) -> Scheme:
    """The inverse, for anything found on disk. ``role``: a key of STRATEGIES.

    CheckpointError if the record is malformed, UnsupportedError if it is valid but nothing here can read it.
    """
    where = f"{where}.{role}"
    if not isinstance(record, dict):
        raise CheckpointError(f"{where}: an object is needed, not {record!r:.80}")
    unknown = sorted(set(record) - _KNOWN_KEYS)
    if unknown:
        raise UnsupportedError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(_KNOWN_KEYS))}")
    bits, kind = record.get("num_bits", 8), record.get("type", "int")
    element = _element(bits, kind, record.get("scale_dtype"), where, ours)
    symmetric = _flag(record.get("symmetric", True), where, "symmetric")
    dynamic = _flag(record.get("dynamic", False), where, "dynamic")
    group = record.get("group_size")
    if group is not None and type(group) is not int:
        raise CheckpointError(f"{where}: group_size must be an integer, not {group!r:.80}")
    strategy = record.get("strategy") or ("tensor" if group is None else "group" if group > 0 else "channel")
    if element == "fp4_e2m1" and strategy == "tensor_group":  # groups whose scales share one of the whole tensor
        strategy = "group"
    allowed = STRATEGIES[role]
    if strategy not in allowed:
        raise UnsupportedError(f"{where}: strategy {strategy!r:.80} is not supported; supported: {', '.join(allowed)}")
    if role == "weights" and dynamic:
        raise UnsupportedError(f"{where}: dynamic weight scales are not supported")
    block = record.get("block_structure")
    if strategy == "block" and not (
        isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    ):
        raise CheckpointError(f"{where}: block_structure must be [rows, columns], not {block!r:.80}")
    try:
        return Scheme(
            element=element,
            granularity="head" if strategy == "attn_head" else cast(Granularity, strategy),
            group_size=group if strategy == "group" else None,
            block=(block[0], block[1]) if strategy == "block" and block else None,
            symmetric=symmetric,
            dynamic=dynamic,
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _element(bits: Any, kind: Any, scale_dtype: Any, where: str, ours: bool) -> Any:
    if bits == 4 and kind == "float" and scale_dtype in (None, *_FP4_SCALES):
        return "fp4_e2m1"
    if scale_dtype is not None and str(scale_dtype) not in ("torch.float32", "torch.bfloat16", "torch.float16"):
        raise UnsupportedError(
            f"{where}: scales of type {scale_dtype!r:.80} (MX or NV block formats) are not supported"
        )
    if type(bits) is int:
        if kind == "int" and bits in (2, 3, 4, 8):
            return f"int{bits}"
        if kind == "float" and bits == 8:
            return "fp8_e4m3"
        if ours and kind in OUR_ELEMENTS and bits == ELEMENTS[kind].bits:
            return kind
    own = [f"{name} {ELEMENTS[name].bits}" for name in OUR_ELEMENTS] if ours else []
    supported = ", ".join(["int 2, 3, 4, 8", "float 8", *own])
    raise UnsupportedError(f"{where}: {bits!r:.20}-bit {kind!r:.20} is not supported; supported: {supported}")


def _flag(value: Any, where: str, key: str) -> bool:
    if not isinstance(value, bool):
        raise UnsupportedError(f"{where}: {key} {value!r:.80} is not supported; true or false is")
    return value


def sorts_columns(record: Any) -> bool:
    """Whether a weight's record says that its groups are scattered over the columns (activation order)."""
    return isinstance(record, dict) and record.get("actorder") in ("group", "dynamic", True)


def linear_to_record(scheme: LinearScheme) -> dict[str, Any]:
    """The scheme part of a config group."""
    order = {"actorder": "group"} if scheme.sorted_columns else {}
    return {
        "weights": scheme_to_record(scheme.weight) | order,
        "input_activations": None if scheme.input is None else scheme_to_record(scheme.input),
        "output_activations": None,
    }
