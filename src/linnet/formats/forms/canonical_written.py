# SPDX-License-Identifier: Apache-2.0
"""Writing compressed-tensors' record and layouts, and Linnet's own where that lacks the words (docs/FORMAT.md)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from linnet.formats.column_order import scattered
from linnet.formats.forms.compressed_tensors import METHOD, OWN_METHOD, OWN_VERSION, ROTATIONS_VERSION, TERMS_VERSION
from linnet.formats.forms.sparse_24 import config_record
from linnet.formats.forms.written import HEAD_NAMES, Array, PlannedModule, is_embedding, no_type
from linnet.formats.prescription import Rotation
from linnet.formats.scheme_record import OUR_ELEMENTS, linear_to_record
from linnet.formats.terms_record import TERMS_KEY, terms_to_record
from linnet.formats.transform_record import TRANSFORMS_KEY, rotations_to_record
from linnet.schemes import LinearScheme, PackedWeight, Scheme, Terms, layout_of, pack
from linnet.schemes.layouts import FLOAT_QUANTIZED, INT_QUANTIZED, PACK_QUANTIZED
from linnet.schemes.packing import PACKABLE_BITS
from linnet.schemes.sparsity import TWO_OF_FOUR

BYTE = 8
"""Bits of the codes whose zeros compressed-tensors can leave out."""


@dataclass(frozen=True)
class Canonical:
    """Implements ``WrittenForm``: every module in a scheme of its own, embedding and head too."""

    name: str = METHOD

    @classmethod
    def of_type(cls, kind: str) -> "Canonical":
        """ConfigError: it has no types."""
        no_type(METHOD, kind, "the schemes stay what they are")
        return cls()

    def takes(self, module: str, scheme: LinearScheme | None) -> bool:
        """See WrittenForm.takes: what is plain stays plain."""
        return scheme is not None

    def settled(self, modules: Mapping[str, PlannedModule], config: Mapping[str, Any]) -> "Canonical":
        """See WrittenForm.settled: nothing has to be shared."""
        return self

    def held(self, scheme: LinearScheme) -> LinearScheme | None:
        """See WrittenForm.held."""
        scheme = _with_its_words(scheme)
        weight, numbers = scheme.weight, scheme.weight.numbers
        if weight.minimum or numbers.own or numbers.plain or (numbers.integer and numbers.bits not in PACKABLE_BITS):
            return None
        if weight.scale_bits is None:
            return replace(scheme, weight=replace(weight, sparsity=None))
        return replace(scheme, weight=replace(weight, scale_bits=None, super_group_size=None, scale_dtype="fp32"))

    def nearest(self, scheme: LinearScheme | None, shape: tuple[int, int]) -> LinearScheme | None:
        """See WrittenForm.nearest: int4 with zero points up to 4 bits, else int8."""
        if scheme is None:
            return None
        group = scheme.weight.group_size or 32
        if scheme.weight.bits <= 4:
            weight = Scheme("int4", "group", group, symmetric=False, scale_dtype="fp16")
        else:
            weight = Scheme("int8", "group", group, scale_dtype="fp16")
        return LinearScheme(weight, _with_its_words(scheme).input)

    def lowest_zero_point(self, scheme: Scheme) -> int:
        """See WrittenForm.lowest_zero_point."""
        return int(scheme.numbers.smallest)

    def tensors(self, packed: PackedWeight) -> dict[str, Array]:
        """See WrittenForm.tensors."""
        inputs = {name: array for name, array in packed.arrays.items() if name.startswith("input_")}
        if packed.scheme.sorted_columns:
            return {**scattered(packed), **inputs}
        if packed.layout.name == layout_of(packed.scheme).name:
            return dict(packed.arrays)
        canonical = pack(packed.codes(), packed.scales(), packed.zero_points(), packed.scheme)
        return {**canonical.arrays, **inputs}

    def record(
        self, modules: Mapping[str, LinearScheme], dense: Iterable[str], source: Mapping[str, Any]
    ) -> dict[str, Any]:
        """See WrittenForm.record. A source that prescribes its KV cache goes on doing so, but for the attention modules
        that it names as ignored (docs/FORMAT.md)."""
        dense = list(dense)
        record = quantization_record(modules, dense) | {"kv_cache_scheme": source.get("kv_cache_scheme")}
        if source.get("kv_cache_scheme") is not None:
            known = {*modules, *dense, *record["ignore"]}
            named = (name for name in source.get("ignore") or () if not name.startswith("re:") and "." in name)
            record["ignore"] += [name for name in named if name not in known]
        return record


CANONICAL = Canonical()


def _with_its_words(scheme: LinearScheme) -> LinearScheme:
    """The scheme in words of compressed-tensors where it has some: two bits hold two and three values, and inputs lose
    their narrow range."""
    weight, inputs = scheme.weight, scheme.input
    if weight.numbers.few:
        weight = replace(weight, element="int2")
    if inputs is not None:
        inputs = replace(inputs, narrow_range=False)
    return replace(scheme, weight=weight, input=inputs)


def quantization_record(modules: Mapping[str, LinearScheme], dense_modules: Iterable[str]) -> dict[str, Any]:
    """``quantization_config`` for these quantised modules, loadable by compressed-tensors where it has the words.

    The scheme of most modules targets the class ``Linear``, every other scheme names its modules; dense modules are
    ignored by name, and a head that is not quantised always: a tied one has no tensors, and published configs that
    leave ``tie_word_embeddings`` to the family's default do not even say so. NF4, ternary and 2:4 under codes of less
    than a byte have no word there, and transformers cannot load a packed embedding (its initialisation wants
    ``Embedding.weight``): with any of these, the method is ours.
    """
    by_scheme: dict[LinearScheme, list[str]] = {}
    for module, scheme in modules.items():
        if not scheme.weight.numbers.plain:
            by_scheme.setdefault(scheme, []).append(module)
    ranked = sorted(by_scheme.items(), key=lambda item: (-len(item[1]), item[1][0]))
    groups: dict[str, Any] = {}
    for position, (scheme, members) in enumerate(ranked):
        targets = sorted(members)
        if position == 0 and not all(is_embedding(module) for module in members):
            targets = ["Linear", *(module for module in targets if is_embedding(module))]
        record = {"targets": targets, **linear_to_record(scheme), "format": _kept_format(scheme)}
        groups[f"group_{position}"] = record
    formats = {group["format"] for group in groups.values()}
    result: dict[str, Any] = {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored(modules, dense_modules),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    sparsity = config_record(modules)
    if sparsity is not None:
        result["sparsity_config"] = sparsity
        if not groups:
            result |= {"format": "dense", "config_groups": {"group_0": {"targets": [], "weights": None}}}
        for group in result["config_groups"].values():
            group["sparsity"] = TWO_OF_FOUR.name  # see sparse_24.py
    if is_own(modules):
        result |= {"quant_method": OWN_METHOD, "version": OWN_VERSION}
    return result


def _kept_format(scheme: LinearScheme) -> str:
    """What compressed-tensors calls the form in which the codes lie, zeros left out or not."""
    weight = scheme.weight
    if weight.sparsity is None:
        return layout_of(scheme).name
    if weight.bits != BYTE:
        return PACK_QUANTIZED.name
    return INT_QUANTIZED.name if weight.numbers.integer else FLOAT_QUANTIZED.name


def with_terms(record: Mapping[str, Any], terms: Mapping[str, Terms]) -> dict[str, Any]:
    """The record of a model some of whose linears are sums of terms: nobody else reads it, and no older Linnet."""
    own = {"quant_method": OWN_METHOD, "version": TERMS_VERSION, TERMS_KEY: terms_to_record(terms)}
    parts = tuple(f"{module}." for module in terms)
    return {**record, **own, "ignore": [name for name in record["ignore"] if not name.startswith(parts)]}


def with_rotations(record: Mapping[str, Any], rotations: Sequence[Rotation]) -> dict[str, Any]:
    """The record of a model that is rotated at run time. compressed-tensors has the words, but transformers reads past
    them and would compute something else: so nobody else reads it, and no older Linnet."""
    own = {"quant_method": OWN_METHOD, "version": ROTATIONS_VERSION}
    return {**record, **own, TRANSFORMS_KEY: rotations_to_record(rotations)}


def ignored(modules: Mapping[str, LinearScheme], dense_modules: Iterable[str]) -> list[str]:
    """Dense modules by name, and every name a head goes by unless it is quantised."""
    ignore = sorted(set(dense_modules) - set(modules))
    return ignore + [name for name in HEAD_NAMES if name not in modules and name not in ignore]


def is_own(modules: Mapping[str, LinearScheme]) -> bool:
    """Whether no other reader has the words for these modules, so that the layout is Linnet's own."""
    weights = [scheme.weight for scheme in modules.values()]
    own_words = any(weight.element in OUR_ELEMENTS for weight in weights)
    narrow = any(weight.sparsity is not None and weight.bits < BYTE for weight in weights)
    return own_words or narrow or any(is_embedding(module) for module in modules)
