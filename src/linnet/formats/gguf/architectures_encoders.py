# SPDX-License-Identifier: Apache-2.0
"""Architectures of GGUF files whose tokens see all others; they are read and not written, see architectures.py."""

from typing import Any

from linnet.formats.gguf.architectures import Architecture
from linnet.formats.gguf.hyperparameters import Hyperparameters

_EMBEDDINGS = "embeddings"
_FIELDS: dict[str, str | None] = {
    "rms_norm_eps": "layer_norm_eps",
    "num_key_value_heads": None,
    "rope_theta": None,
    "tie_word_embeddings": None,
}


def _encoder(parameters: Hyperparameters) -> dict[str, Any]:
    return {"type_vocab_size": parameters.metadata.integer("tokenizer.ggml.token_type_count", 2)}


ROWS = (
    Architecture(
        "bert",
        "BertModel",
        "bert",
        {
            "attn_q": "attention.self.query",
            "attn_k": "attention.self.key",
            "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense",
            "attn_output_norm": "attention.output.LayerNorm",
            "ffn_up": "intermediate.dense",
            "ffn_down": "output.dense",
            "layer_output_norm": "output.LayerNorm",
        },
        settings=_encoder,
        outer={
            "token_embd": f"{_EMBEDDINGS}.word_embeddings",
            "token_types": f"{_EMBEDDINGS}.token_type_embeddings",
            "position_embd": f"{_EMBEDDINGS}.position_embeddings",
            "token_embd_norm": f"{_EMBEDDINGS}.LayerNorm",
        },
        layers="encoder.layer.",
        fields=_FIELDS,
        epsilon="attention.layer_norm_epsilon",
        causal=False,
    ),
)
