# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors, and our own layout, which is the same record with words compressed-tensors lacks
(docs/FORMAT.md)."""

from collections.abc import Mapping
from typing import Any

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.forms.base import ReadTensor, Tensors
from linnet.formats.forms.canonical_linear import is_packed, read_packed, stored_scheme
from linnet.formats.forms.sparse_24 import check_config, is_sparse, read_sparse, sparse_scheme, sparse_shape
from linnet.formats.prescription import Quantization, SchemeGroup, read_patterns
from linnet.formats.scheme_record import scheme_from_record, sorts_columns
from linnet.formats.terms_record import TERMS_KEY, read_terms
from linnet.formats.transform_record import TRANSFORMS_KEY, read_rotations
from linnet.schemes import LinearScheme, PackedWeight
from linnet.schemes.elements import ElementName
from linnet.schemes.layouts import DIGITS, DIGITS_TENSOR, OWN

METHOD, OWN_METHOD = "compressed-tensors", "linnet"
OWN_VERSION = 2
TERMS_VERSION = 3
"""What is said of linears that are sums of terms: whoever knows version 2 alone would leave terms out."""
ROTATIONS_VERSION = 4
"""What is rotated at run time: whoever knows version 3 alone would leave that out."""
OWN_VERSIONS = (1, 2, 3, 4)
READABLE_FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized",
)  # fmt: skip
OWN_FORMATS = (OWN.name, DIGITS.name)
KV_ELEMENTS = ("int8", "fp8_e4m3", "int4")


class CompressedTensors:
    """Implements ``Form``."""

    methods: tuple[str, ...] = (METHOD, OWN_METHOD)
    suffixes: tuple[str, ...] = ("weight_packed", DIGITS_TENSOR, "compressed", "weight")
    repacks: bool = False

    def for_record(self, record: Mapping[str, Any], where: str) -> "CompressedTensors":
        """See Form.for_record."""
        return self

    def read_config(self, record: Mapping[str, Any], where: str) -> Quantization:
        """See Form.read_config."""
        method = record.get("quant_method", METHOD)
        if method == "linnet" and record.get("version") not in OWN_VERSIONS:
            raise UnsupportedError(
                f"{where}: linnet layout version {record.get('version')!r:.80} is not known; known: "
                f"{', '.join(map(str, OWN_VERSIONS))}"
            )
        if record.get("moe_sparsity_config") is not None:
            raise UnsupportedError(f"{where}: moe_sparsity_config is set, expert sparsity is not supported")
        cache = record.get("kv_cache_scheme")
        kv_element = None if cache is None else _kv_element(cache, where)
        sparse = check_config(record.get("sparsity_config"), where)
        _check_format(record.get("format", "dense"), where, method)
        groups = record.get("config_groups")
        if groups is None and (kv_element is not None or sparse):  # no linear has codes
            groups = {}
        if not isinstance(groups, dict):
            raise CheckpointError(f"{where}.config_groups must be an object, not {groups!r:.80}")
        ignore = record.get("ignore") or []
        return Quantization(
            method,
            tuple(
                _read_group(name, group, where, method)
                for name, group in groups.items()
                if not ((kv_element is not None or sparse) and _says_nothing(group))
            ),
            read_patterns(ignore, f"{where}.ignore"),
            kv_element,
            read_terms(record.get(TERMS_KEY, {}), f"{where}.{TERMS_KEY}") if method == OWN_METHOD else {},
            read_rotations(record.get(TRANSFORMS_KEY), f"{where}.{TRANSFORMS_KEY}"),
        )

    def module_of(self, name: str) -> str:
        """See Form.module_of."""
        return name.rpartition(".")[0]

    def claims(self, module: str, tensors: Tensors) -> bool:
        """See Form.claims."""
        return is_packed(module, tensors) or is_sparse(module, tensors)

    def scheme(self, module: str, prescribed: LinearScheme | None, tensors: Tensors, where: str) -> LinearScheme:
        """See Form.scheme."""
        if is_sparse(module, tensors):
            return sparse_scheme(module, prescribed, tensors, where)
        if prescribed is None:
            raise CheckpointError(
                f"{where}: {module} is stored quantised but no group of quantization_config targets it"
            )
        return stored_scheme(module, prescribed, tensors, where)

    def shape(
        self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str
    ) -> tuple[int, int] | None:
        """See Form.shape."""
        return sparse_shape(module, tensors, tensor, where) if scheme.weight.sparsity is not None else None

    def read(self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str) -> PackedWeight:
        """See Form.read."""
        read = read_packed if scheme.weight.sparsity is None else read_sparse
        return read(module, scheme, tensors, tensor, where)


def _kv_element(record: Any, where: str) -> ElementName:
    """What shares a scale does not matter: Linnet computes one per token and head, which is finer than any."""
    scheme = scheme_from_record(record, where, "kv_cache_scheme", ours=False)
    if scheme.element not in KV_ELEMENTS or not scheme.symmetric:
        raise UnsupportedError(
            f"{where}.kv_cache_scheme: {'' if scheme.symmetric else 'asymmetric '}{scheme.element} is not supported; "
            f"supported: symmetric {', '.join(KV_ELEMENTS)}"
        )
    return scheme.element


def _read_group(name: str, group: Any, where: str, method: str) -> SchemeGroup:
    where = f"{where}.config_groups.{name[:80]}"
    if isinstance(group, list):
        raise UnsupportedError(f"{where}: a scheme by name is not supported, an object with targets and weights is")
    if not isinstance(group, dict):
        raise CheckpointError(f"{where} must be an object, not {group!r:.80}")
    if group.get("output_activations") is not None:
        raise UnsupportedError(f"{where}: output_activations are not supported")
    if group.get("weights") is None:
        raise UnsupportedError(f"{where}: a group without weights is not supported")
    if group.get("format") is not None:
        _check_format(group["format"], where, method)
    ours = method == "linnet"
    in_order = sorts_columns(group["weights"])
    weight = scheme_from_record(group["weights"], where, "weights", ours)
    activations = group.get("input_activations")
    inputs = None if activations is None else scheme_from_record(activations, where, "input_activations", ours)
    return SchemeGroup(read_patterns(group.get("targets"), f"{where}.targets"), LinearScheme(weight, inputs, in_order))


def _says_nothing(group: Any) -> bool:
    """A group of which neither weights nor inputs are quantised: what its modules hand to the KV cache is, or they only
    lie without their zeros."""
    return isinstance(group, dict) and group.get("weights") is None and group.get("input_activations") is None


def _check_format(name: Any, where: str, method: str) -> None:
    if name not in READABLE_FORMATS and name != "fakequant" and not (method == OWN_METHOD and name in OWN_FORMATS):
        raise UnsupportedError(
            f"{where}: format {name!r:.80} is not supported; supported: {', '.join(READABLE_FORMATS)}"
        )
