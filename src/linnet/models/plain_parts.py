# SPDX-License-Identifier: Apache-2.0
"""Pieces of the families whose norms are layer norms: the GPT line and its kin, whose names all differ."""

from dataclasses import replace
from typing import Any

from linnet.models.config import MAXIMUM_POSITIONS, ConfigReader
from linnet.models.parts import ACTIVATIONS, MAXIMUM_HEADS, QKV, consecutive, divides, read_layers
from linnet.models.rope import Positions
from linnet.models.spec import ArchSpec, AttentionSpec, LayerSpec, MlpSpec, NormSpec, Projection, RopeSpec
from linnet.program.attributes import Activation

MODEL: dict[str, Any] = {"prefix": "model.", "embedding": "model.embed_tokens", "head": "lm_head"}
"""Names that most newer families have."""
SUMMARY = ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout")
"""Settings of a head that is no language model's."""
RUNTIME = (
    *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "inference_runner", "validate_runner_input"),
    *("pre_allocate_kv_cache", "max_sequence_length", "max_batch_size", "pad_key_length"),
)
"""How other programs should run a model."""
EPSILONS = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")


class PlainParts:
    """Sizes under any of their spellings, norms and linears by the names they have within a block.

    ``block``: the checkpoint modules of a block, with a ``{layer}`` placeholder. Heads share keys only where a family
    says so (``kv_heads``).
    """

    def __init__(
        self,
        config: ConfigReader,
        block: str,
        *,
        tied: bool,
        biases: bool = True,
        norm_biases: bool = True,
        epsilon: float = 1e-5,
    ) -> None:
        self.config, self.block, self.biases, self.norm_biases = config, block, biases, norm_biases
        self.vocabulary = config.size("vocab_size")
        self.hidden = config.size("hidden_size", "n_embd", "n_embed")
        self.layers = read_layers(config, "num_hidden_layers", "n_layer")
        self.heads = config.size("num_attention_heads", "n_head", maximum=MAXIMUM_HEADS)
        self.kv_heads = self.heads
        self.head_size = divides(config, "hidden_size", self.hidden, "number of heads", self.heads)
        self.epsilon = config.number(*EPSILONS, default=epsilon, high=1.0)
        self.tied = config.flag("tie_word_embeddings", default=tied)

    def read_kv_heads(self) -> None:
        """Of families whose heads share keys."""
        self.kv_heads = self.config.size("num_key_value_heads", default=self.heads, maximum=MAXIMUM_HEADS)
        divides(self.config, "num_attention_heads", self.heads, "num_key_value_heads", self.kv_heads)

    @property
    def queries(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all keys."""
        return self.kv_heads * self.head_size

    def intermediate(self, *names: str) -> int:
        """Width of the feed-forward, four times the stream's unless the config says another."""
        return self.config.size(*names, default=4 * self.hidden)

    def longest(self, default: int = 2048) -> int:
        """Positions of the model, in tokens."""
        return self.config.size("max_position_embeddings", "n_positions", default=default, maximum=MAXIMUM_POSITIONS)

    def activation(self, *names: str, default: str) -> Activation:
        """What stands between the linears of the feed-forward."""
        return self.config.choice(*names, accepted=ACTIVATIONS, default=default)

    def norm(self, module: str) -> NormSpec:
        """Of a whole checkpoint module name."""
        return NormSpec(module, "layer", self.epsilon, bias=self.norm_biases)

    def block_norm(self, name: str) -> NormSpec:
        return self.norm(f"{self.block}.{name}")

    def linear(self, name: str, outputs: int, columns: int, bias: bool | None = None) -> Projection:
        return Projection(f"{self.block}.{name}", outputs, columns, self.biases if bias is None else bias)

    def apart(self, names: str, bias: bool | None = None) -> QKV:
        """Query, key and value as tensors of their own; in ``names`` a * stands for q, k and v."""
        widths = (self.queries, self.keys, self.keys)
        query, key, value = (
            self.linear(names.replace("*", letter), width, self.hidden, bias)
            for letter, width in zip("qkv", widths, strict=True)
        )
        return query, key, value

    def fused(self, name: str, bias: bool | None = None) -> Projection:
        """Query, key and value in one tensor, of which each takes its rows."""
        return self.linear(name, self.queries + 2 * self.keys, self.hidden, bias)

    def split(self, fused: Projection) -> QKV:
        """Query, key and value one after the other in a tensor."""
        query, key, value = consecutive(fused, self.queries, self.keys, self.keys)
        return query, key, value

    def attention(
        self, norm: NormSpec | None, qkv: QKV, output: Projection, rope: RopeSpec | None = None
    ) -> AttentionSpec:
        query, key, value = qkv
        return AttentionSpec(
            norm=norm,
            query=query,
            key=key,
            value=value,
            output=output,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            scale=self.head_size**-0.5,
            rope=rope,
        )

    def mlp(self, norm: NormSpec | None, up: str, down: str, intermediate: int, activation: Activation) -> MlpSpec:
        """Without a gate."""
        return MlpSpec(
            norm=norm,
            gate=None,
            up=self.linear(up, intermediate, self.hidden),
            down=self.linear(down, self.hidden, intermediate),
            activation=activation,
        )

    def spec(self, family: str, layers: tuple[LayerSpec, ...], reach: Positions | int, **names: Any) -> ArchSpec:
        """``reach``: of a rope, or how many positions there are; ``names``: fields of ArchSpec."""
        usable, longest = (reach, reach) if isinstance(reach, int) else reach[1:]
        return ArchSpec(
            family=family,
            vocabulary_size=self.vocabulary,
            hidden_size=self.hidden,
            max_positions=usable,
            longest_positions=longest,
            layers=layers,
            tied_head=self.tied,
            **names,
        )


def by_inputs(projection: Projection) -> Projection:
    """A linear whose dense tensor is published [inputs, outputs]."""
    return replace(projection, by_inputs=True)
