# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face config -> what a GGUF file says of the model: the inverse of config.py, key by key as llama.cpp's
converter (convert_hf_to_gguf.py) writes them.

What the architecture's file has no key for must be what its readers take for granted: anything else is refused.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import UnsupportedError
from linnet.formats.gguf.architectures import ARCHITECTURES, Architecture
from linnet.formats.gguf.hyperparameters import Hyperparameters
from linnet.gguf import Metadata

QUANTIZATION_VERSION = 2
"""ggml's count of changes to what its blocks mean."""
_PLAIN = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "vocab_size": "vocab_size",
}
_FLOATS = frozenset(("rms_norm_eps",))
_ROPE_TYPES = "default, linear, llama3 and yarn"
_DEFAULTS: Mapping[str, Any] = {"rms_norm_eps": 1e-6}


def architecture_for(config: Mapping[str, Any], where: str) -> Architecture:
    """ggml's architecture for a config. UnsupportedError lists those that are written."""
    kind = config.get("model_type")
    found = next((row for row in ARCHITECTURES.values() if kind in (row.model_type, *row.also)), None)
    if found is None:
        written = ", ".join(name for row in ARCHITECTURES.values() for name in (row.model_type, *row.also))
        raise UnsupportedError(f"{where}: a model of type {kind!r:.60} is not written as GGUF; written are {written}")
    return found


def metadata_of(config: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """``general.*`` and the architecture's own keys. UnsupportedError: a value that a GGUF file cannot say."""
    architecture = architecture_for(config, where)
    values: dict[str, Any] = {}
    for theirs, ours in _PLAIN.items():
        value = config.get(theirs, _DEFAULTS.get(theirs))
        if value is None and theirs == "num_key_value_heads":
            value = config.get("num_attention_heads")
        if value is None:
            raise UnsupportedError(f"{where}: {theirs} is missing; a GGUF file must say it")
        values[ours] = np.float32(value) if theirs in _FLOATS else int(value)
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if architecture.own_head_size or head_size * config["num_attention_heads"] != config["hidden_size"]:
        values |= {"attention.key_length": head_size, "attention.value_length": head_size}
    values |= _rope(config, head_size, where)
    for theirs, ours in (
        ("sliding_window", "attention.sliding_window"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):
        value = config.get(theirs)
        used = config.get("use_sliding_window", True) or theirs != "sliding_window"
        if value is not None and used:
            values[ours] = int(value) if theirs == "sliding_window" else np.float32(value)
    metadata = {
        "general.architecture": architecture.name,
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": QUANTIZATION_VERSION,
        **{f"{architecture.name}.{key}": value for key, value in values.items()},
    }
    _check_settings(config, architecture, metadata, where)
    return metadata


def rope_factors(config: Mapping[str, Any]) -> npt.NDArray[np.float32] | None:
    """What Llama 3.1 divides its rotary frequencies by, fp32 [head size / 2], a tensor of its own; None for others.

    Long waves are slowed by ``factor``, short ones not, those between by degrees (transformers' rope type llama3).
    """
    rope = _scaling(config)
    if rope.get("rope_type", rope.get("type")) != "llama3":
        return None
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    waves = 2 * math.pi * _theta(config) ** (np.arange(0, head_size, 2) / head_size)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((rope["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / rope["factor"] + smooth), np.float32)


def _scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_scaling") or config.get("rope_parameters") or {}


def _theta(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or {}
    return float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0)


def _rope(config: Mapping[str, Any], head_size: int, where: str) -> dict[str, Any]:
    rope = _scaling(config)
    local = config.get("rope_local_base_freq")
    if any(isinstance(value, Mapping) for value in rope.values()):  # one record per kind of layer
        local = rope.get("sliding_attention", {}).get("rope_theta", local)
        own = rope.get("full_attention", {})
        config = {**config, "rope_theta": own.get("rope_theta", config.get("rope_theta")), "rope_parameters": own}
        config["rope_scaling"], rope = None, own
    partial = config.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0))
    values: dict[str, Any] = {
        "rope.freq_base": np.float32(_theta(config)),
        "rope.dimension_count": int(head_size * partial),
    }
    if local is not None:
        values["rope.freq_base_swa"] = np.float32(local)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", "llama3"):
        return values
    if kind not in ("linear", "yarn"):
        raise UnsupportedError(f"{where}: rope type {kind!r:.40} is not written as GGUF, nor is any but {_ROPE_TYPES}")
    values |= {"rope.scaling.type": kind, "rope.scaling.factor": np.float32(rope["factor"])}
    original = rope.get("original_max_position_embeddings")
    if original:
        values["rope.scaling.original_context_length"] = int(original)
    for theirs, ours in (
        ("beta_fast", "rope.scaling.yarn_beta_fast"),
        ("beta_slow", "rope.scaling.yarn_beta_slow"),
        ("attention_factor", "rope.scaling.yarn_attn_factor"),
    ):
        if rope.get(theirs) is not None:
            values[ours] = np.float32(rope[theirs])
    return values


def _check_settings(
    config: Mapping[str, Any], architecture: Architecture, metadata: Mapping[str, Any], where: str
) -> None:
    """What readers of the file will conclude for the family must be what the config says."""
    understood = architecture.settings(Hyperparameters(Metadata(metadata, where), architecture.name))
    activation = "gelu_pytorch_tanh" if architecture.norms_plus_one else "silu"
    said = config.get("hidden_activation" if architecture.norms_plus_one else "hidden_act") or activation
    if said != activation:
        raise UnsupportedError(
            f"{where}: the activation is {said!r:.40}; readers of a GGUF file of {architecture.name} take {activation}"
        )
    if config.get("use_sliding_window") and "sliding_window" not in understood:
        raise UnsupportedError(
            f"{where}: use_sliding_window is true; a GGUF file of {architecture.name} has no windows"
        )
    for name, value in understood.items():
        said = config.get(name)
        if said is not None and value is not None and name not in ("architectures", "model_type") and said != value:
            raise UnsupportedError(
                f"{where}: {name} is {said!r:.60}; readers of a GGUF file of {architecture.name} take {value!r:.60}, "
                "and it has no key to tell them"
            )
