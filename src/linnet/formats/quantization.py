# SPDX-License-Identifier: Apache-2.0
"""``quantization_config`` of config.json: reading it through the form it is written in, writing compressed-tensors'.

``quant_method: "linnet"`` is the same record with words compressed-tensors lacks; see docs/FORMAT.md.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from linnet.errors import CheckpointError
from linnet.formats.forms import FORMS, Form
from linnet.formats.forms.compressed_tensors import METHOD, OWN_METHOD, OWN_VERSION
from linnet.formats.json_file import read_json_object
from linnet.formats.prescription import Quantization
from linnet.formats.recognise import unreadable_quantization
from linnet.formats.scheme_record import OUR_ELEMENTS, linear_to_record
from linnet.schemes import LinearScheme, layout_of

OWN_MODEL_TYPE = "linnet"
_IDENTITY_KEYS = ("model_type", "architectures")
_HEAD_NAMES = ("lm_head", "embed_out")


LOOSE_RECORDS = {"quantize_config.json": "gptq", "quant_config.json": "awq", "quanto_qmap.json": "quanto"}
"""Where quanto and early AutoGPTQ and AutoAWQ write what config.json holds elsewhere -> the method meant."""
MAX_RECORD_BYTES = 1 << 20
TELLTALES = {".W_q": "hqq", ".weight._data": "quanto", ".weight._data._data": "quanto"}
"""How names of tensors end that no other form has: some libraries write no record at all -> the method meant."""


def with_loose_record(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The config with the ``quantization_config`` that lies beside it, if it has none itself."""
    if _record(config) is not None:
        return config
    for name, method in LOOSE_RECORDS.items():
        if (directory / name).exists():
            record = read_json_object(directory / name, MAX_RECORD_BYTES)
            return {**config, "quantization_config": {"quant_method": method, **record}}
    return config


def with_telltale(config: dict[str, Any], names: Callable[[], Iterable[str]]) -> dict[str, Any]:
    """The config with the ``quantization_config`` that its tensors' names stand for, if it has none itself.

    ``names`` is asked only then: a config that nobody reads is said before weights are missed.
    """
    if _record(config) is not None:
        return config
    for name in names():
        for ending, method in TELLTALES.items():
            if name.endswith(ending):
                return {**config, "quantization_config": {"quant_method": method}}
    return config


def _record(config: Mapping[str, Any]) -> Any:
    return config.get("quantization_config", config.get("compression_config"))


def form_of(config: Mapping[str, Any], where: str) -> Form:
    """The form a config.json says its model lies in. UnsupportedError in a sentence for what nothing here reads."""
    record = _record(config)
    method = record.get("quant_method", METHOD) if isinstance(record, dict) else METHOD
    for form in FORMS:
        if method in form.methods:
            return form.for_record(record, f"{where}: quantization_config") if isinstance(record, dict) else form
    raise unreadable_quantization(method, config, f"{where}: quantization_config")


def read_quantization(config: Mapping[str, Any], where: str) -> Quantization:
    """The record in a config.json. UnsupportedError in a sentence for what nothing here can read."""
    record = _record(config)
    if record is None:
        return Quantization("dense")
    if not isinstance(record, dict):
        raise CheckpointError(f"{where}: quantization_config must be an object, not {record!r:.80}")
    return form_of(config, where).read_config(record, f"{where}: quantization_config")


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
        record = {"targets": targets, **linear_to_record(scheme), "format": layout_of(scheme).name}
        groups[f"group_{position}"] = record
    formats = {layout_of(scheme).name for scheme in by_scheme}
    ignore = sorted(set(dense_modules) - set(modules))
    ignore += [name for name in _HEAD_NAMES if name not in modules and name not in ignore]
    result: dict[str, Any] = {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    if is_own(modules):
        result |= {"quant_method": OWN_METHOD, "version": OWN_VERSION}
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
