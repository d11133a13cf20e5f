# SPDX-License-Identifier: Apache-2.0
"""``quantization_config`` of config.json: found in a config and read through the form it speaks of; and
a config in our own layout, disguised.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from linnet.errors import CheckpointError
from linnet.formats.forms import FORMS, Form
from linnet.formats.forms.compressed_tensors import METHOD
from linnet.formats.json_file import read_json_object
from linnet.formats.prescription import Quantization
from linnet.formats.recognise import unreadable_quantization

OWN_MODEL_TYPE = "linnet"
_IDENTITY_KEYS = ("model_type", "architectures")


LOOSE_RECORDS = {"quantize_config.json": "gptq", "quant_config.json": "awq", "quanto_qmap.json": "quanto"}
"""Where quanto and early AutoGPTQ and AutoAWQ write what config.json holds elsewhere -> the method meant."""
MAX_RECORD_BYTES = 1 << 20
TELLTALES = {".W_q": "hqq", ".weight._data": "quanto", ".weight._data._data": "quanto"}
"""How names of tensors end that no other form has: some libraries write no record at all -> the method meant."""


def with_loose_record(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The config with the ``quantization_config`` that lies beside it, if it has none itself."""
    if record_of(config) is not None:
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
    if record_of(config) is not None:
        return config
    for name in names():
        for ending, method in TELLTALES.items():
            if name.endswith(ending):
                return {**config, "quantization_config": {"quant_method": method}}
    return config


def record_of(config: Mapping[str, Any]) -> Any:
    """The quantisation record of a config, under either of its names; None if it has none."""
    return config.get("quantization_config", config.get("compression_config"))


def form_of(config: Mapping[str, Any], where: str) -> Form:
    """The form a config.json says its model lies in. UnsupportedError in a sentence for what nothing here reads."""
    record = record_of(config)
    method = record.get("quant_method", METHOD) if isinstance(record, dict) else METHOD
    for form in FORMS:
        if method in form.methods:
            return form.for_record(record, f"{where}: quantization_config") if isinstance(record, dict) else form
    raise unreadable_quantization(method, config, f"{where}: quantization_config")


def read_quantization(config: Mapping[str, Any], where: str) -> Quantization:
    """The record in a config.json. UnsupportedError in a sentence for what nothing here can read."""
    record = record_of(config)
    if record is None:
        return Quantization("dense")
    if not isinstance(record, dict):
        raise CheckpointError(f"{where}: quantization_config must be an object, not {record!r:.80}")
    return form_of(config, where).read_config(record, f"{where}: quantization_config")


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
