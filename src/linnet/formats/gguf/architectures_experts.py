# SPDX-License-Identifier: Apache-2.0
"""Architectures of GGUF files whose feed-forwards are mixtures of experts around Llama's attention; they are read and
not written, see architectures.py."""

from typing import Any

from linnet.formats.gguf.architectures import ATTENTION, HEAD_NORMS, TWO_NORMS, Architecture
from linnet.formats.gguf.hyperparameters import Hyperparameters


def _mixture(parameters: Hyperparameters) -> dict[str, Any]:
    return {
        "num_experts": parameters.needed_size("expert_count"),
        "num_experts_per_tok": parameters.needed_size("expert_used_count"),
    }


def _narrow_mixture(parameters: Hyperparameters) -> dict[str, Any]:
    narrow = {"moe_intermediate_size": parameters.needed_size("expert_feed_forward_length")}
    return _mixture(parameters) | narrow | {"norm_topk_prob": True}


def _shared_mixture(parameters: Hyperparameters) -> dict[str, Any]:
    shared = parameters.needed_size("expert_shared_feed_forward_length")
    return _narrow_mixture(parameters) | {"shared_expert_intermediate_size": shared, "norm_topk_prob": False}


def _sinks(parameters: Hyperparameters) -> dict[str, Any]:
    """Every second layer sees a window, the first one too. The experts' gate and up, which the family publishes by
    turns in one tensor, lie apart."""
    window = parameters.needed_size("attention.sliding_window")
    sliding = parameters.layer_flags("attention.sliding_window_pattern", parameters.needed_size("block_count"), every=2)
    return _mixture(parameters) | {
        "intermediate_size": parameters.needed_size("expert_feed_forward_length"),
        "sliding_window": window,
        "layer_types": ["sliding_attention" if each else "full_attention" for each in sliding],
        "_gate_and_up_apart": True,
    }


def _stacked(gate: str, up: str, down: str, router: str, experts: str) -> dict[str, str]:
    names = {"ffn_gate_exps": gate, "ffn_up_exps": up, "ffn_down_exps": down}
    return {"ffn_gate_inp": router} | {theirs: f"{experts}.{{expert}}.{ours}" for theirs, ours in names.items()}


_WITH_ROUTER = _stacked("gate_proj", "up_proj", "down_proj", "mlp.router", "mlp.experts")
_EXPERTS = _stacked("gate_proj", "up_proj", "down_proj", "mlp.gate", "mlp.experts")
_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}


ROWS = (
    Architecture(
        "qwen2moe",
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        {**ATTENTION, **TWO_NORMS, **_EXPERTS, **_SHARED},
        experts=True,
        settings=_shared_mixture,
    ),
    Architecture(
        "qwen3moe",
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        {**ATTENTION, **HEAD_NORMS, **TWO_NORMS, **_EXPERTS},
        experts=True,
        optional_biases=True,
        own_head_size=True,
        settings=_narrow_mixture,
    ),
    Architecture(
        "olmoe",
        "OlmoeForCausalLM",
        "olmoe",
        {**ATTENTION, **HEAD_NORMS, **TWO_NORMS, **_EXPERTS},
        experts=True,
        settings=_mixture,
    ),
    Architecture(
        "gpt-oss",
        "GptOssForCausalLM",
        "gpt_oss",
        {**ATTENTION, "post_attention_norm": "post_attention_layernorm", **_WITH_ROUTER},
        experts=True,
        own_head_size=True,
        settings=_sinks,
        scaling={"truncate": False},
        parameters={"attn_sinks.weight": ("self_attn.sinks", "")},
    ),
)
MIXTURE_OF_THE_FIRST = Architecture(
    "llama",
    "MixtralForCausalLM",
    "mixtral",
    {
        **ATTENTION,
        **TWO_NORMS,
        **_stacked("w1", "w3", "w2", "block_sparse_moe.gate", "block_sparse_moe.experts"),
    },
    paired_rows=True,
    experts=True,
    settings=_mixture,
)
"""What files of the first architecture are that have a router."""
