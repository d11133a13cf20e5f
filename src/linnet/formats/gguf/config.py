# SPDX-License-Identifier: Apache-2.0
"""The metadata of a GGUF file -> the config.json that the same model has as a Hugging Face directory.

Everything that the family reads is said here, so that no default of one model applies to another. What is not in the
metadata is taken from the tensors: whether the head is tied, whether there are biases, rotary factors.
"""

from typing import Any

import numpy as np

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.gguf.architectures import Architecture
from linnet.formats.gguf.architectures_read import READ
from linnet.formats.gguf.hyperparameters import Hyperparameters
from linnet.gguf import GgufModel

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Rotary factors: part of the config, not of the weights."""


def architecture_of(model: GgufModel) -> Architecture:
    """What the file says it is. UnsupportedError lists the architectures that are read."""
    name = model.metadata.text("general.architecture")
    if name is None:
        raise CheckpointError(f"{model.path}: general.architecture is missing, which says what model this is")
    known = READ.get(name)
    if known is None:
        raise UnsupportedError(
            f"{model.path}: a GGUF file of the architecture {name[:60]!r}, which this version does not run; it runs "
            f"{', '.join(READ)}"
        )
    return next((row for tensor, row in known.variants.items() if tensor in model.tensors), known)


def config_of(model: GgufModel) -> dict[str, Any]:
    """A config dict as ``models.families.arch_spec`` reads it.

    CheckpointError: a key missing, out of range or contradicted by a tensor. UnsupportedError: an architecture, a key
    or a value of one that nothing here computes.
    """
    architecture = architecture_of(model)
    parameters = Hyperparameters(model.metadata, architecture.name)
    for key in () if architecture.experts else ("expert_count", "expert_used_count"):
        parameters.require(key, 0, why="mixtures of experts are not supported in this arrangement")
    seen = "only what is before them" if architecture.causal else "all others"
    parameters.require("attention.causal", architecture.causal, why=f"supported are tokens that see {seen}")
    attention = _attention(model, parameters, architecture) if architecture.attends else {}
    config: dict[str, Any] = {
        "architectures": [architecture.family],
        "model_type": architecture.model_type,
        "vocab_size": _vocabulary_size(model, parameters),
        "hidden_size": parameters.needed_size("embedding_length"),
        "num_hidden_layers": parameters.needed_size("block_count"),
        "max_position_embeddings": parameters.needed_size("context_length"),
        "rms_norm_eps": _needed_number(parameters, architecture.epsilon),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "_pooling_type": parameters.size("pooling_type", optional=True),
        **_token_ids(model),
    }
    if architecture.attends:
        config.update(attention)
        config.update(_rope(model, parameters, config, architecture))
    config.update(architecture.settings(parameters))
    parameters.finish()
    named = {architecture.fields.get(name, name): value for name, value in config.items() if value is not None}
    return {name: value for name, value in named.items() if name is not None}


def _attention(model: GgufModel, parameters: Hyperparameters, architecture: Architecture) -> dict[str, Any]:
    """Heads, their size, widths and biases of blocks that attend."""
    heads = parameters.needed_size("attention.head_count")
    head_size = parameters.size("attention.key_length", optional=True)
    if not architecture.own_value_size:
        parameters.require("attention.value_length", head_size, 0, why="keys and values of one size are supported")
    config: dict[str, Any] = {
        "intermediate_size": parameters.needed_size("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": parameters.size("attention.head_count_kv", optional=True) or heads,
    }
    if head_size is not None:
        config["head_dim"] = head_size
    elif architecture.own_head_size:
        config["head_dim"] = parameters.needed_size("attention.key_length")
    if architecture.optional_biases:
        config["attention_bias"] = any(f"blk.0.{name}.bias" in model.tensors for name in ("attn_q", "attn_qkv"))
        config["mlp_bias"] = "blk.0.ffn_up.bias" in model.tensors
    return config


def _needed_number(parameters: Hyperparameters, key: str) -> float:
    value = parameters.number(key, None)
    if value is None:
        raise CheckpointError(f"{parameters.metadata.where}: {key} is missing")
    return value


def _vocabulary_size(model: GgufModel, parameters: Hyperparameters) -> int | None:
    """Rows of the embedding, which the tokens must fit. Some tables are padded with tokens that nobody has."""
    embedding = model.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{model.path}: there is no tensor 'token_embd.weight' of rows and columns")
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and len(tokens) > embedding.shape[0]:
        raise CheckpointError(
            f"{model.path}: {len(tokens)} tokens, but token_embd.weight has only {embedding.shape[0]} rows"
        )
    return embedding.shape[0]


def _token_ids(model: GgufModel) -> dict[str, int | None]:
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    return {theirs: model.metadata.integer(f"tokenizer.ggml.{ours}_token_id") for ours, theirs in names.items()}


def _rope(
    model: GgufModel, parameters: Hyperparameters, config: dict[str, Any], architecture: Architecture
) -> dict[str, Any]:
    """rope_theta, rope_scaling, and the fraction of a head that turns where it is not the whole head."""
    longest = config["max_position_embeddings"]
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    turned = parameters.size("rope.dimension_count", optional=True) or head_size
    result: dict[str, Any] = {"rope_theta": parameters.number("rope.freq_base", 10000.0)}
    if turned != head_size or architecture.partial:
        result["partial_rotary_factor"] = turned / head_size
    kind = parameters.text("rope.scaling.type") or "none"
    factor = parameters.number("rope.scaling.factor", None) or parameters.number("rope.scale_linear", None) or 1.0
    warmth = parameters.number("rope.scaling.attn_factor", None)
    original = parameters.size("rope.scaling.original_context_length", optional=True)
    yarn = {
        "beta_fast": parameters.number("rope.scaling.yarn_beta_fast", None),
        "beta_slow": parameters.number("rope.scaling.yarn_beta_slow", None),
        "attention_factor": parameters.number("rope.scaling.yarn_attn_factor", None),
    }
    warmth_of_scores = parameters.number("rope.scaling.yarn_log_multiplier", None)
    if warmth_of_scores:  # a tenth of both, whose quotient is what cosines and sines are multiplied by
        yarn |= dict.fromkeys(("mscale", "mscale_all_dim"), round(10 * warmth_of_scores, 6))
    tables = _factors(model, turned // 2)
    if tables and kind in ("none", "longrope"):
        own = original if original and "rope_factors_short.weight" in model.tensors else longest
        scaling = {"rope_type": "longrope", "factor": max(1.0, longest / own), **tables}
        scaling["attention_factor"] = warmth if warmth is not None else None if own < longest else 1.0
        return {**result, "rope_scaling": _without_none(scaling), "original_max_position_embeddings": own}
    if tables or kind not in ("none", "linear", "yarn"):
        also = " together with tables of rotary factors" if tables else ""
        raise UnsupportedError(
            f"{model.path}: rope.scaling.type is {kind[:40]!r}{also}; supported are none, linear, yarn, and longrope "
            "with tables"
        )
    if kind == "yarn":
        if warmth not in (None, 1.0):
            raise UnsupportedError(f"{model.path}: rope.scaling.attn_factor is {warmth}; with yarn only 1 is supported")
        scaling = {"rope_type": "yarn", "factor": factor, **yarn, **architecture.scaling}
        if original is not None:
            scaling["original_max_position_embeddings"] = original
        return {**result, "rope_scaling": _without_none(scaling)}
    if factor != 1.0:
        result["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    return result


def _factors(model: GgufModel, pairs: int) -> dict[str, list[float]]:
    """Tables of rotary factors: one for all positions (Llama 3.1's rule, worked out by the converter), or one up to
    the original context and one beyond it (LongRoPE). Factors of 1 alone are none."""
    found = {name: _factor_table(model, name, pairs) for name in ROPE_TENSORS if name in model.tensors}
    if not found or all(factor == 1.0 for table in found.values() for factor in table):
        return {}
    both = found.get("rope_freqs.weight")
    short, long = (found.get(f"rope_factors_{which}.weight", both) for which in ("short", "long"))
    if short is None or long is None:
        raise CheckpointError(f"{model.path}: of the tables of rotary factors only {', '.join(found)} is there")
    return {"short_factor": short, "long_factor": long}


def _factor_table(model: GgufModel, name: str, pairs: int) -> list[float]:
    tensor = model.tensors[name]
    if tensor.type.name != "F32" or tensor.shape != (pairs,):
        raise CheckpointError(
            f"{model.path}: {name} is {tensor.type.name} {list(tensor.shape)}; F32 [{pairs}] is needed, a number for "
            "each pair that turns"
        )
    table = model.view(name)
    if not (np.isfinite(table).all() and (table > 0).all()):
        raise CheckpointError(f"{model.path}: {name} holds numbers that are not positive")
    return [float(value) for value in table]


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
