# SPDX-License-Identifier: Apache-2.0
"""Families whose tokens see all others, and that tell hidden states instead of a next token: BERT and its kin."""

from dataclasses import replace

from linnet.errors import CheckpointError
from linnet.models.config import ConfigReader
from linnet.models.parts import alike
from linnet.models.plain_parts import PlainParts
from linnet.models.spec import ArchSpec, PositionTable, TokenTypes

TRAINING = ("classifier_dropout", "tie_word_embeddings", "layer_norm_epsilon", "pooler_fc_size", "pooler_num_fc_layers")
POOLER = ("pooler_num_attention_heads", "pooler_size_per_head", "pooler_type", "directionality", "output_past")
"""Of the layer behind the first token, which answers what is asked in training and is no part of an embedding; and how
other programs run it."""


def _encoder(config: ConfigReader, family: str, prefix: str, first_position: int) -> ArchSpec:
    """Norms behind the sums, learned positions from ``first_position`` on, one kind of token."""
    block = f"{prefix}encoder.layer.{{layer}}"
    parts = PlainParts(config, block, tied=False, epsilon=1e-12)
    parts.tied = False  # there is no head
    config.require_off("is_decoder", "add_cross_attention")
    config.require("position_embedding_type", "absolute")
    config.ignore(*TRAINING, *POOLER)
    qkv = (
        parts.linear("attention.self.query", parts.hidden, parts.hidden),
        parts.linear("attention.self.key", parts.hidden, parts.hidden),
        parts.linear("attention.self.value", parts.hidden, parts.hidden),
    )
    output = parts.linear("attention.output.dense", parts.hidden, parts.hidden)
    attention = replace(
        parts.attention(None, qkv, output), full=True, stream_norm=parts.block_norm("attention.output.LayerNorm")
    )
    activation = parts.activation("hidden_act", default="gelu")
    mlp = parts.mlp(None, "intermediate.dense", "output.dense", parts.intermediate("intermediate_size"), activation)
    mlp = replace(mlp, stream_norm=parts.block_norm("output.LayerNorm"))
    rows, embeddings = parts.longest(512), f"{prefix}embeddings"
    if rows <= first_position:
        raise CheckpointError(
            f"{config.where}: max_position_embeddings is {rows}; accepted is more than {first_position}, behind which "
            "positions begin"
        )
    return parts.spec(
        family,
        alike(attention, mlp, (None,) * parts.layers),
        rows - first_position,
        prefix=prefix,
        embedding=f"{embeddings}.word_embeddings",
        token_types=TokenTypes(f"{embeddings}.token_type_embeddings", config.size("type_vocab_size", default=2)),
        positions=PositionTable(f"{embeddings}.position_embeddings", rows, first_position),
        embedding_norm=parts.norm(f"{embeddings}.LayerNorm"),
        final_norm=None,
        head=None,
    )


def bert(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """BERT: MiniLM, BGE, E5, GTE and others of sentence-transformers."""
    return _encoder(config, "BertModel", "bert.", 0)


def roberta(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """RoBERTa and XLM-R: BERT whose positions begin behind the padding's row."""
    return _encoder(config, "RobertaModel", "roberta.", config.size("pad_token_id", default=1) + 1)
