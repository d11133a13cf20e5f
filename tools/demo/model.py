# SPDX-License-Identifier: Apache-2.0
"""A small Llama in plain torch, for training; its parameters carry the names of the Hugging Face checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """The sizes of the bundled model."""

    vocabulary: int = 2048
    hidden: int = 256
    intermediate: int = 640
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    context_tokens: int = 1024
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5

    def config(self, stop_id: int) -> dict[str, object]:
        """Return the config.json of the checkpoint."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context_tokens,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_epsilon,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": stop_id,
            "torch_dtype": "bfloat16",
        }


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor, visible: Tensor | None) -> Tensor:
        """Map hidden states [rows, tokens, hidden] to the same shape."""
        rows, tokens, _ = hidden.shape
        groups = self.shape.heads // self.shape.kv_heads

        def split(projected: Tensor, heads: int) -> Tensor:
            return projected.view(rows, tokens, heads, self.shape.head_dim).transpose(1, 2)

        query = rotate(split(self.q_proj(hidden), self.shape.heads), cosine, sine)
        key = rotate(split(self.k_proj(hidden), self.shape.kv_heads), cosine, sine).repeat_interleave(groups, dim=1)
        value = split(self.v_proj(hidden), self.shape.kv_heads).repeat_interleave(groups, dim=1)
        mixed = causal_attention(query, key, value, visible)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))


class FeedForward(nn.Module):
    """The gated SiLU network."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states to the same shape."""
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        self.mlp = FeedForward(shape)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor, visible: Tensor | None) -> Tensor:
        """Add attention and feed-forward to the stream."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cosine, sine, visible)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Backbone(nn.Module):
    """Embedding, layers and final norm, under the names of the checkpoint."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)


class SmallLlama(nn.Module):
    """The causal language model with tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # The two matrices that write into the stream begin smaller, so that depth does not inflate it.
                depth = (2 * shape.layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(parameter, std=0.03 * depth)

    def forward(self, ids: Tensor, separator: int | None = None) -> Tensor:
        """Return logits [rows, tokens, vocabulary] of token ids [rows, tokens].

        With a separator, no token sees anything before the separator that precedes its own document.
        """
        cosine, sine = rotary_tables(self.shape, ids.shape[1])
        visible = None if separator is None else same_document(ids, separator)
        hidden = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            hidden = layer(hidden, cosine, sine, visible)
        return functional.linear(self.model.norm(hidden), self.model.embed_tokens.weight)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    """Attend causally over [rows, heads, tokens, head_dim], or to what `visible` says (short rows: written out)."""
    if visible is None:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    weights = torch.softmax(scores.float().masked_fill(~visible, float("-inf")), dim=-1)
    return weights.to(value.dtype) @ value


def same_document(ids: Tensor, separator: int) -> Tensor:
    """Return the causal mask [rows, 1, tokens, tokens] that ends at documents; a separator closes its document."""
    closed = (ids == separator).long()
    document = closed.cumsum(dim=1) - closed
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    return (causal & (document[:, :, None] == document[:, None, :]))[:, None]


def rotary_tables(shape: Shape, tokens: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine [tokens, head_dim] in Llama's half-split order."""
    frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angles = torch.outer(torch.arange(tokens).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate [rows, heads, tokens, head_dim] by position."""
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return heads * cosine.to(heads.dtype) + turned * sine.to(heads.dtype)
