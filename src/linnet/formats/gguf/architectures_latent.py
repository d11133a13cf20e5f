# SPDX-License-Identifier: Apache-2.0
"""Architectures of GGUF files with latent attention; they are read and not written, see architectures.py."""

from typing import Any

from linnet.errors import UnsupportedError
from linnet.formats.gguf.architectures import ATTENTION, GATED, TWO_NORMS, Architecture
from linnet.formats.gguf.hyperparameters import Hyperparameters

_EXPERTS = "mlp.experts.{expert}"
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": ATTENTION["attn_q"],
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_output": ATTENTION["attn_output"],
    **TWO_NORMS,
    **GATED,
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": f"{_EXPERTS}.gate_proj",
    "ffn_up_exps": f"{_EXPERTS}.up_proj",
    "ffn_down_exps": f"{_EXPERTS}.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_SIGMOID = 2


def _latent(parameters: Hyperparameters) -> dict[str, Any]:
    """Which of the two families it is, its router says. In files of newer converters keys and values are the narrow
    vector itself, and what makes those of every head of it lies in two parts."""
    turning, rank = parameters.needed_size("rope.dimension_count"), parameters.needed_size("attention.kv_lora_rank")
    size, value = parameters.needed_size("attention.key_length"), parameters.needed_size("attention.value_length")
    whole = parameters.size("attention.key_length_mla", optional=True)
    if whole is not None:
        parameters.require("attention.key_length", rank + turning, why=f"of a vector of {rank} and {turning}")
        parameters.require("attention.value_length", rank, why=f"of a vector of {rank}")
        parameters.require("attention.head_count_kv", 1, why="all heads share one narrow vector")
        size, value = whole, parameters.needed_size("attention.value_length_mla")
    if turning >= size:
        raise UnsupportedError(
            f"{parameters.metadata.where}: rope.dimension_count is {turning}; of keys of {size} a part must not turn"
        )
    sigmoid = parameters.size("expert_gating_func", optional=True) == _SIGMOID
    parameters.require("expert_gating_func", 0, 1, _SIGMOID, why="supported are 1 (softmax) and 2 (sigmoid)")
    groups = parameters.size("expert_group_count", optional=True) or 1
    by_softmax = "greedy" if groups == 1 else "group_limited_greedy"
    family, kind = ("DeepseekV3ForCausalLM", "deepseek_v3") if sigmoid else ("DeepseekV2ForCausalLM", "deepseek_v2")
    return {
        "architectures": [family],
        "model_type": kind,
        "q_lora_rank": parameters.size("attention.q_lora_rank", optional=True),
        "kv_lora_rank": rank,
        "head_dim": size,
        "num_key_value_heads": parameters.needed_size("attention.head_count"),
        "_keys_and_values_apart": whole is not None,
        "qk_rope_head_dim": turning,
        "qk_nope_head_dim": size - turning,
        "v_head_dim": value,
        "first_k_dense_replace": parameters.size("leading_dense_block_count", optional=True),
        "n_routed_experts": parameters.needed_size("expert_count"),
        "num_experts_per_tok": parameters.needed_size("expert_used_count"),
        "n_shared_experts": parameters.needed_size("expert_shared_count"),
        "moe_intermediate_size": parameters.needed_size("expert_feed_forward_length"),
        "routed_scaling_factor": parameters.number("expert_weights_scale", None) or 1.0,
        "norm_topk_prob": parameters.flag("expert_weights_norm", False),
        "scoring_func": "sigmoid" if sigmoid else "softmax",
        "topk_method": "noaux_tc" if sigmoid else by_softmax,
        "n_group": groups,
        "topk_group": parameters.size("expert_group_used_count", optional=True) or 1,
    }


ROWS = (
    Architecture(
        "deepseek2",
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        _BLOCK,
        own_head_size=True,
        also=("deepseek_v3",),
        settings=_latent,
        fields={"head_dim": "qk_head_dim", "partial_rotary_factor": None},
        experts=True,
        own_value_size=True,
        parameters={
            "exp_probs_b.bias": ("mlp.gate.e_score_correction_bias", ""),
            "attn_k_b.weight": ("self_attn.k_b_proj.weight", "turned heads"),
            "attn_v_b.weight": ("self_attn.v_b_proj.weight", "heads"),
        },
    ),
)
