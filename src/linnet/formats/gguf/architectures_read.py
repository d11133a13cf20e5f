# SPDX-License-Identifier: Apache-2.0
"""Architectures of GGUF files that are read and not written: as architectures.py, which says what a row means."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from linnet.formats.gguf.architectures import ARCHITECTURES, ATTENTION, GATED, HEAD_NORMS, TWO_NORMS, Architecture
from linnet.formats.gguf.architectures_encoders import ROWS as ENCODERS
from linnet.formats.gguf.architectures_experts import MIXTURE_OF_THE_FIRST
from linnet.formats.gguf.architectures_experts import ROWS as EXPERTS
from linnet.formats.gguf.architectures_latent import ROWS as LATENT
from linnet.formats.gguf.architectures_state_space import ROWS as STATE_SPACE
from linnet.formats.gguf.hyperparameters import Hyperparameters

_LAYER_NORM = "attention.layer_norm_epsilon"
_GPT_OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT_BLOCK = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT_FIELDS: dict[str, str | None] = {
    "rms_norm_eps": "layer_norm_epsilon",
    "intermediate_size": "n_inner",
    "num_key_value_heads": None,
    "rope_theta": None,
}
_INTERLEAVED = {
    "attn_norm": "input_layernorm",
    "attn_output": "self_attention.dense",
    "attn_qkv": "self_attention.query_key_value",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_WORDS = {
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GATE_UP = {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}
_EPS: dict[str, str | None] = {"rms_norm_eps": "layer_norm_eps"}
_BEHIND = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}


def _shared_keys(parameters: Hyperparameters) -> dict[str, Any]:
    parameters.require("attention.head_count_kv", 1, why="this architecture has one key head for all queries")
    return {"multi_query": True}


def _falcon(parameters: Hyperparameters) -> dict[str, Any]:
    grouped = parameters.needed_size("attention.head_count_kv") > 1
    return {"new_decoder_architecture": grouped, "num_ln_in_parallel_attn": 1 if grouped else None}


def _falcon_two_norms(_: Hyperparameters) -> dict[str, Any]:
    return {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2}


def _parallel(parameters: Hyperparameters) -> dict[str, Any]:
    return {"use_parallel_residual": parameters.flag("use_parallel_residual", True)}


def _logit_scale(parameters: Hyperparameters) -> dict[str, Any]:
    return {"logit_scale": parameters.number("logit_scale", 0.0625)}


def _logit_scale_and_window(parameters: Hyperparameters) -> dict[str, Any]:
    return _logit_scale(parameters) | {"sliding_window": parameters.needed_size("attention.sliding_window")}


def _multipliers(parameters: Hyperparameters) -> dict[str, Any]:
    return {
        "embedding_multiplier": parameters.number("embedding_scale", 1.0),
        "residual_multiplier": parameters.number("residual_scale", 1.0),
        "attention_multiplier": parameters.number("attention.scale", 1.0),
        "logits_scaling": parameters.number("logit_scale", 1.0),
    }


def _baichuan(parameters: Hyperparameters) -> dict[str, Any]:
    """llama.cpp knows the larger member, which has ALiBi, by its layers."""
    if parameters.needed_size("block_count") != 40:
        return {}
    return {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "_query_key_value_apart": True}


def _sliding_of_four(parameters: Hyperparameters) -> dict[str, Any]:
    layers = parameters.needed_size("block_count")
    window = parameters.size("attention.sliding_window", optional=True)
    types = parameters.layer_flags("attention.sliding_window_pattern", layers, every=4)
    sliding = [each and window is not None for each in types]
    kinds = ["sliding_attention" if each else "full_attention" for each in sliding]
    return {"sliding_window": window, "layer_types": kinds}


def _with_head_norms(row: Architecture, ours: str, flag: str) -> Architecture:
    """The row, which in its larger members normalises every head with gains of its own."""
    block = {f"attn_{letter}_norm": f"self_attn.{letter}_{ours}" for letter in "qk"}
    larger = replace(
        row, block={**row.block, **block}, settings=lambda parameters: {**row.settings(parameters), flag: True}
    )
    return replace(row, variants={"blk.0.attn_q_norm.weight": larger})


def _names_of_its_own() -> Architecture:
    """The same model as published before transformers had code for it."""
    return Architecture(
        "chatglm",
        "ChatGLMModel",
        "chatglm",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attention.query_key_value",
            "attn_output": "self_attention.dense",
            **TWO_NORMS,
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        optional_biases=True,
        outer={
            "token_embd": "transformer.embedding.word_embeddings",
            "output_norm": "transformer.encoder.final_layernorm",
            "output": "transformer.output_layer",
        },
        layers="transformer.encoder.layers.",
        fields={
            "vocab_size": "padded_vocab_size",
            "intermediate_size": "ffn_hidden_size",
            "num_hidden_layers": "num_layers",
            "num_key_value_heads": "multi_query_group_num",
            "head_dim": "kv_channels",
            "rms_norm_eps": "layernorm_epsilon",
            "max_position_embeddings": "seq_length",
            "attention_bias": "add_qkv_bias",
        },
        partial=True,
    )


_FALCON = Architecture(
    "falcon",
    "FalconForCausalLM",
    "falcon",
    _INTERLEAVED,
    settings=_falcon,
    outer=_WORDS,
    layers="transformer.h.",
    fields={
        "rms_norm_eps": "layer_norm_epsilon",
        "intermediate_size": "ffn_hidden_size",
        "num_key_value_heads": "num_kv_heads",
    },
    epsilon=_LAYER_NORM,
    in_groups=True,
)
_ROWS = (
    Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        "gpt2",
        _GPT_BLOCK,
        outer=_GPT_OUTER,
        layers="transformer.h.",
        fields=_GPT_FIELDS,
        epsilon=_LAYER_NORM,
        turned=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    ),
    Architecture(
        "starcoder",
        "GPTBigCodeForCausalLM",
        "gpt_bigcode",
        _GPT_BLOCK,
        settings=_shared_keys,
        outer=_GPT_OUTER,
        layers="transformer.h.",
        fields=_GPT_FIELDS,
        epsilon=_LAYER_NORM,
    ),
    Architecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        "starcoder2",
        {**ATTENTION, **TWO_NORMS, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        optional_biases=True,
        fields={"rms_norm_eps": "norm_epsilon", "attention_bias": "use_bias", "mlp_bias": None},
        epsilon=_LAYER_NORM,
    ),
    replace(
        _FALCON,
        variants={
            "blk.0.attn_norm_2.weight": replace(
                _FALCON,
                block=_INTERLEAVED | {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"},
                settings=_falcon_two_norms,
            )
        },
    ),
    Architecture(
        "bloom",
        "BloomForCausalLM",
        "bloom",
        _INTERLEAVED | TWO_NORMS,
        outer=_WORDS | {"token_embd_norm": "transformer.word_embeddings_layernorm"},
        layers="transformer.h.",
        fields=_GPT_FIELDS,
        epsilon=_LAYER_NORM,
        in_groups=True,
    ),
    Architecture(
        "gptneox",
        "GPTNeoXForCausalLM",
        "gpt_neox",
        {
            **_INTERLEAVED,
            **TWO_NORMS,
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
        },
        optional_biases=True,
        settings=_parallel,
        outer={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        layers="gpt_neox.layers.",
        fields=_EPS | {"num_key_value_heads": None, "mlp_bias": None},
        epsilon=_LAYER_NORM,
        in_groups=True,
        partial=True,
    ),
    Architecture(
        "phi2",
        "PhiForCausalLM",
        "phi",
        ATTENTION | {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
        outer={"token_embd": "model.embed_tokens", "output_norm": "model.final_layernorm", "output": "lm_head"},
        fields=_EPS,
        epsilon=_LAYER_NORM,
        partial=True,
    ),
    _with_head_norms(
        Architecture(
            "stablelm",
            "StableLmForCausalLM",
            "stablelm",
            {**ATTENTION, **TWO_NORMS, **GATED},
            optional_biases=True,
            settings=_parallel,
            fields=_EPS | {"attention_bias": "use_qkv_bias", "mlp_bias": None},
            epsilon=_LAYER_NORM,
            partial=True,
        ),
        "layernorm",
        "qk_layernorm",
    ),
    _with_head_norms(
        Architecture(
            "command-r",
            "CohereForCausalLM",
            "cohere",
            {**ATTENTION, **GATED},
            settings=_logit_scale,
            fields=_EPS,
            epsilon=_LAYER_NORM,
        ),
        "norm",
        "use_qk_norm",
    ),
    Architecture(
        "cohere2",
        "Cohere2ForCausalLM",
        "cohere2",
        {**ATTENTION, **GATED},
        settings=_logit_scale_and_window,
        fields=_EPS,
        epsilon=_LAYER_NORM,
    ),
    Architecture(
        "gemma",
        "GemmaForCausalLM",
        "gemma",
        {**ATTENTION, **TWO_NORMS, **GATED},
        norms_plus_one=True,
        own_head_size=True,
    ),
    Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        "olmo2",
        {key: value for key, value in ATTENTION.items() if key != "attn_norm"} | HEAD_NORMS | _BEHIND | GATED,
    ),
    Architecture(
        "exaone4",
        "Exaone4ForCausalLM",
        "exaone4",
        {key: value for key, value in ATTENTION.items() if key != "attn_norm"} | HEAD_NORMS | _BEHIND | GATED,
        settings=_sliding_of_four,
    ),
    Architecture(
        "granite",
        "GraniteForCausalLM",
        "granite",
        {**ATTENTION, **TWO_NORMS, **GATED},
        paired_rows=True,
        optional_biases=True,
        settings=_multipliers,
    ),
    Architecture(
        "smollm3",
        "SmolLM3ForCausalLM",
        "smollm3",
        {**ATTENTION, **TWO_NORMS, **GATED},
        paired_rows=True,
        optional_biases=True,
    ),
    Architecture(
        "glm4",
        "Glm4ForCausalLM",
        "glm4",
        {
            **ATTENTION,
            **TWO_NORMS,
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            **_GATE_UP,
        },
        optional_biases=True,
        partial=True,
    ),
    Architecture(
        "chatglm",
        "GlmForCausalLM",
        "glm",
        {**ATTENTION, **TWO_NORMS, **_GATE_UP},
        optional_biases=True,
        partial=True,
        variants={"blk.0.attn_qkv.weight": _names_of_its_own()},
    ),
    Architecture(
        "internlm2",
        "LlamaForCausalLM",
        "llama",
        {**ATTENTION, **TWO_NORMS, **GATED},
        paired_rows=True,
        optional_biases=True,
    ),
    Architecture(
        "baichuan",
        "LlamaForCausalLM",
        "llama",
        {**ATTENTION, **TWO_NORMS, **GATED},
        paired_rows=True,
        settings=_baichuan,
    ),
)
_FIRST = replace(ARCHITECTURES["llama"], variants={"blk.0.ffn_gate_inp.weight": MIXTURE_OF_THE_FIRST})

_ALONE = {row.name: row for row in (*_ROWS, *EXPERTS, *LATENT, *STATE_SPACE, *ENCODERS)}
READ: Mapping[str, Architecture] = {**ARCHITECTURES, _FIRST.name: _FIRST, **_ALONE}
"""Every architecture that is read."""
