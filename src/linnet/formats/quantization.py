# SPDX-License-Identifier: Apache-2.0
"""``quantization_config`` of config.json: reading compressed-tensors' (and our own), writing it.

``quant_method: "linnet"`` is the same record with words compressed-tensors lacks; see docs/FORMAT.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.name_pattern import check_pattern, matches_name
from linnet.formats.recognise import unreadable_quantization
from linnet.formats.scheme_record import OUR_ELEMENTS, linear_to_record, scheme_from_record
from linnet.schemes import LinearScheme, layout_of
from linnet.schemes.scheme import ElementName
from linnet.schemes.scheme_map import CLASS_TARGETS

LINNET_VERSION = 2
LINNET_VERSIONS = (1, 2)
OWN_MODEL_TYPE = "linnet"
_IDENTITY_KEYS = ("model_type", "architectures")
READABLE_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
KV_ELEMENTS = ("int8", "fp8_e4m3", "int4")
_COMPRESSED_TENSORS = "compressed-tensors"
_HEAD_NAMES = ("lm_head", "embed_out")


@dataclass(frozen=True)
class SchemeGroup:
    """Modules that match one of ``targets`` are stored with ``scheme``."""

    targets: tuple[str, ...]
    scheme: LinearScheme


@dataclass(frozen=True)
class Quantization:
    """What config.json says about quantised modules. ``groups`` is empty for a dense model."""

    method: str
    groups: tuple[SchemeGroup, ...] = ()
    ignore: tuple[str, ...] = ()
    kv_element: ElementName | None = None
    """What the file wants keys and values of a cache to be stored as. Its scales for them are not used."""

    def scheme_of(self, module: str) -> LinearScheme | None:
        """The scheme prescribed for a module that is a linear or an embedding; None if it is ignored or no target.

        As compressed-tensors decides it: exact names first, then regular expressions, then classes.
        """
        if any(_matches(pattern, module) for pattern in self.ignore):
            return None
        candidates = [(target, group.scheme) for group in self.groups for target in group.targets]
        for rank in (_is_exact, _is_pattern, _is_class):
            for target, scheme in candidates:
                if rank(target) and (target in CLASS_TARGETS or _matches(target, module)):
                    return scheme
        return None


def _matches(target: str, module: str) -> bool:
    return matches_name(target[3:], module) if _is_pattern(target) else target == module


def _is_exact(target: str) -> bool:
    return not _is_pattern(target) and not _is_class(target)


def _is_pattern(target: str) -> bool:
    return target.startswith("re:")


def _is_class(target: str) -> bool:
    return target in CLASS_TARGETS


def read_quantization(config: Mapping[str, Any], where: str) -> Quantization:
    """The record in a config.json. UnsupportedError in a sentence for what nothing here can read."""
    record = config.get("quantization_config", config.get("compression_config"))
    if record is None:
        return Quantization("dense")
    where = f"{where}: quantization_config"
    if not isinstance(record, dict):
        raise CheckpointError(f"{where} must be an object, not {record!r:.80}")
    method = record.get("quant_method", _COMPRESSED_TENSORS)
    if method not in (_COMPRESSED_TENSORS, "linnet"):
        raise unreadable_quantization(method, config, where)
    if method == "linnet" and record.get("version") not in LINNET_VERSIONS:
        raise UnsupportedError(
            f"{where}: linnet layout version {record.get('version')!r:.80} is not known; known: "
            f"{', '.join(map(str, LINNET_VERSIONS))}"
        )
    if record.get("moe_sparsity_config") is not None:
        raise UnsupportedError(f"{where}: moe_sparsity_config is set, expert sparsity is not supported")
    cache = record.get("kv_cache_scheme")
    kv_element = None if cache is None else _kv_element(cache, where)
    sparsity = record.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise UnsupportedError(f"{where}: sparsity format {sparsity['format']!r:.80} is not supported")
    transforms = record.get("transform_config")
    if isinstance(transforms, dict) and transforms.get("config_groups"):
        raise UnsupportedError(f"{where}: transform_config (rotations at run time) is not supported")
    _check_format(record.get("format", "dense"), where, method)
    groups = record.get("config_groups")
    if not isinstance(groups, dict):
        raise CheckpointError(f"{where}.config_groups must be an object, not {groups!r:.80}")
    ignore = record.get("ignore") or []
    return Quantization(
        method,
        tuple(_read_group(name, group, where, method) for name, group in groups.items()),
        _patterns(ignore, f"{where}.ignore"),
        kv_element,
    )


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
    weight = scheme_from_record(group["weights"], where, "weights", ours)
    activations = group.get("input_activations")
    inputs = None if activations is None else scheme_from_record(activations, where, "input_activations", ours)
    return SchemeGroup(_patterns(group.get("targets"), f"{where}.targets"), LinearScheme(weight, inputs))


def _check_format(name: Any, where: str, method: str) -> None:
    if name not in READABLE_FORMATS and name != "fakequant" and not (name == method == "linnet"):
        raise UnsupportedError(
            f"{where}: format {name!r:.80} is not supported; supported: {', '.join(READABLE_FORMATS)}"
        )


def _patterns(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        raise CheckpointError(f"{where} must be a list of strings, not {value!r:.80}")
    for pattern in value:
        if pattern.startswith("re:"):
            try:
                check_pattern(pattern[3:])
            except CheckpointError as error:
                raise CheckpointError(f"{where}: the pattern {pattern!r:.80} is refused: {error}") from None
    return tuple(value)


def quantization_record(modules: Mapping[str, LinearScheme], dense_modules: Iterable[str]) -> dict[str, Any]:
    """``quantization_config`` for these quantised modules, loadable by compressed-tensors where it has the words.

    The scheme of most modules targets the class ``Linear``, every other scheme names its modules; dense modules are
    ignored by name, and a head that is not quantised always: a tied one has no tensors, and published configs that
    leave ``tie_word_embeddings`` to the family's default do not even say so. NF4 and ternary have no word there, and
    transformers cannot load a packed embedding (its initialisation wants ``Embedding.weight``): with either, the method
    is ours.
    """
    by_scheme: dict[LinearScheme, list[str]] = {}
    for module, scheme in modules.items():
        by_scheme.setdefault(scheme, []).append(module)
    ranked = sorted(by_scheme.items(), key=lambda item: (-len(item[1]), item[1][0]))
    groups: dict[str, Any] = {}
    for position, (scheme, members) in enumerate(ranked):
        targets = sorted(members)
        if position == 0 and not all(_is_embedding(module) for module in members):
            targets = ["Linear", *(module for module in targets if _is_embedding(module))]
        record = {"targets": targets, **linear_to_record(scheme), "format": layout_of(scheme)}
        groups[f"group_{position}"] = record
    formats = {layout_of(scheme) for scheme in by_scheme}
    ignore = sorted(set(dense_modules) - set(modules))
    ignore += [name for name in _HEAD_NAMES if name not in modules and name not in ignore]
    result: dict[str, Any] = {
        "quant_method": _COMPRESSED_TENSORS,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    if is_own(modules):
        result |= {"quant_method": "linnet", "version": LINNET_VERSION}
    return result


def is_own(modules: Mapping[str, LinearScheme]) -> bool:
    """Whether no other reader has the words for these modules, so that the layout is Linnet's own."""
    own_words = any(scheme.weight.element in OUR_ELEMENTS for scheme in modules.values())
    return own_words or any(_is_embedding(module) for module in modules)


def disguise(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config in our own layout as it lies on disk: a model type that every other loader refuses.

    With the family's own, transformers warns of an unknown method, draws random weights and goes on (K18). What the
    model is stands in the quantisation record, where ``undisguise`` finds it.
    """
    record = dict(config["quantization_config"])
    record |= {key: config[key] for key in _IDENTITY_KEYS if key in config}
    left_out = ("auto_map", "transformers_weights")  # each could lead a loader to the weights after all
    shown = {key: value for key, value in config.items() if key not in left_out}
    return {
        **shown,
        "model_type": OWN_MODEL_TYPE,
        "architectures": ["LinnetForCausalLM"],
        "quantization_config": record,
    }


def undisguise(config: dict[str, Any]) -> dict[str, Any]:
    """The inverse of ``disguise``; any other config as it is."""
    record = config.get("quantization_config")
    if config.get("model_type") != OWN_MODEL_TYPE or not isinstance(record, dict):
        return config
    identity = {key: record[key] for key in _IDENTITY_KEYS if key in record}
    bare = {key: value for key, value in config.items() if key not in _IDENTITY_KEYS}
    rest = {key: value for key, value in record.items() if key not in _IDENTITY_KEYS}
    return {**bare, **identity, "quantization_config": rest}


def _is_embedding(module: str) -> bool:
    """Modules of class Embedding must be targeted by name; naming a linear too is harmless, so guess generously."""
    last = module.rsplit(".", 1)[-1]
    return last not in _HEAD_NAMES and ("embed" in last or last == "wte")
