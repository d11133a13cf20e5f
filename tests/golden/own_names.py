# SPDX-License-Identifier: Apache-2.0
"""Checkpoints under the names of repositories that transformers has no code for, made of those that compute the same.

Written from the modelling files of these repositories (InternLM2's ``wqkv`` is rearranged "(h gs d)", ChatGLM's
``query_key_value`` is q, k, v one after the other), apart from what Linnet's families say.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Arrange = Callable[[Tensors, dict[str, Any]], tuple[Tensors, dict[str, Any]]]
"""(tensors, config.json) as transformers writes them -> both as the repository has them."""


def rearrange(directory: Path, arrange: Arrange) -> None:
    """Rewrite a directory that transformers wrote."""
    config = json.loads((directory / "config.json").read_text())
    tensors, config = arrange(load_file(directory / "model.safetensors"), config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))


def _renamed(tensors: Tensors, parts: dict[str, str]) -> Tensors:
    """Every part of a name that stands in ``parts`` replaced, in their order."""
    found = {}
    for name, tensor in tensors.items():
        for before, after in parts.items():
            name = name.replace(before, after)
        found[name] = tensor
    return found


def _fused(tensors: Tensors, layers: int, target: str, fuse: Callable[..., torch.Tensor]) -> Tensors:
    """q_proj, k_proj and v_proj of every layer as ``target``, weights and biases alike."""
    found = dict(tensors)
    for layer in range(layers):
        for leaf in ("weight", "bias"):
            names = [f"model.layers.{layer}.self_attn.{each}_proj.{leaf}" for each in "qkv"]
            if names[0] in tensors:
                found[f"model.layers.{layer}.{target}.{leaf}"] = fuse(*(found.pop(name) for name in names))
    return found


def internlm2(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Llama with the keys of a group of queries behind them."""
    groups, size = config["num_key_value_heads"], config["head_dim"]

    def fuse(*parts: torch.Tensor) -> torch.Tensor:
        grouped = [part.reshape(groups, -1, size, *part.shape[1:]) for part in parts]
        return torch.cat(grouped, dim=1).flatten(0, 2)

    found = _renamed(
        _fused(tensors, config["num_hidden_layers"], "attention.wqkv", fuse),
        {
            "self_attn.o_proj": "attention.wo",
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.up_proj": "feed_forward.w3",
            "mlp.down_proj": "feed_forward.w2",
            "post_attention_layernorm": "ffn_norm",
            "input_layernorm": "attention_norm",
            "embed_tokens": "tok_embeddings",
            "lm_head": "output",
        },
    )
    config = {key: value for key, value in config.items() if key not in ("rope_parameters", "mlp_bias", "head_dim")}
    bias = config.pop("attention_bias")
    own = {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": bias, "rope_theta": 10000.0}
    return found, {**config, **own, "rope_scaling": {"type": "dynamic", "factor": 2.0}}


def baichuan(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Llama with one tensor for query, key and value."""
    found = _fused(tensors, config["num_hidden_layers"], "self_attn.W_pack", lambda *parts: torch.cat(parts))
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    own = {key: config[key] for key in (*kept, "max_position_embeddings", "rms_norm_eps", "hidden_act")}
    return found, {**own, "architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan"}


def baichuan_alibi(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """The 13B of the same repository: what its positions are called, and that they are ALiBi's."""
    found, own = baichuan(tensors, config)
    own["model_max_length"] = own.pop("max_position_embeddings")
    return found, own | {"architectures": ["BaichuanForCausalLM"]}


def chatglm(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """GLM as ChatGLM2, ChatGLM3 and the first GLM-4 files have it."""
    layers = config["num_hidden_layers"]
    found = _renamed(
        _fused(tensors, layers, "self_attention.query_key_value", lambda *parts: torch.cat(parts)),
        {
            "model.layers.": "transformer.encoder.layers.",
            "model.norm": "transformer.encoder.final_layernorm",
            "model.embed_tokens": "transformer.embedding.word_embeddings",
            "lm_head": "transformer.output_layer",
            "self_attn.o_proj": "self_attention.dense",
            "mlp.gate_up_proj": "mlp.dense_h_to_4h",
            "mlp.down_proj": "mlp.dense_4h_to_h",
        },
    )
    found["transformer.rotary_pos_emb.inv_freq"] = torch.ones(4)
    own = {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": config["intermediate_size"],
        "fp32_residual_connection": False,
        "hidden_size": config["hidden_size"],
        "kv_channels": config["head_dim"],
        "layernorm_epsilon": config["rms_norm_eps"],
        "multi_query_attention": True,
        "multi_query_group_num": config["num_key_value_heads"],
        "num_attention_heads": config["num_attention_heads"],
        "num_layers": layers,
        "original_rope": True,
        "padded_vocab_size": config["vocab_size"],
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": 50,
        "seq_length": config["max_position_embeddings"],
    }
    return found, own
