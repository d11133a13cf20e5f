# SPDX-License-Identifier: Apache-2.0
"""Pieces that several families are made of: how a config's sizes become projections, windows and slopes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from linnet.errors import CheckpointError, UnsupportedError
from linnet.models.config import MAXIMUM_LAYERS, MAXIMUM_POSITIONS, ConfigReader
from linnet.models.rope import read_layer_ropes, read_rope
from linnet.models.spec import ArchSpec, AttentionSpec, FeedForward, LayerSpec, MlpSpec, NormSpec, Projection, RopeSpec
from linnet.program.attributes import Activation

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
}

MAXIMUM_HEADS = 1 << 16

Windows = tuple[int | None, ...]


def divides(config: ConfigReader, whole_name: str, whole: int, part_name: str, part: int) -> int:
    """whole / part, or a sentence saying that it does not come out even."""
    if whole % part:
        raise CheckpointError(f"{config.where}: {whole_name} {whole} is not a multiple of {part_name} {part}")
    return whole // part


def read_layers(config: ConfigReader, *names: str) -> int:
    return config.size(*(names or ("num_hidden_layers",)), maximum=MAXIMUM_LAYERS)


def read_window(config: ConfigReader, default: int) -> int | None:
    """An absent sliding_window means the family's default, as in transformers; an explicit null means none."""
    return config.optional_size("sliding_window") if "sliding_window" in config.fields else default


def read_windows(config: ConfigReader, layers: int, window: int | None, sliding: Callable[[int], bool]) -> Windows:
    """One window per layer: from ``layer_types`` when the config lists them, else by the family's rule."""
    listed = config.words("layer_types", layers)
    if listed is None:
        return tuple(window if sliding(layer) else None for layer in range(layers))
    known = {"full_attention": None, "sliding_attention": window}
    for layer, kind in enumerate(listed):
        if kind not in known:
            raise UnsupportedError(
                f"{config.where}: layer_types[{layer}] is {kind!r}; supported are full_attention and sliding_attention"
            )
        if kind == "sliding_attention" and window is None:
            raise CheckpointError(f"{config.where}: layer_types[{layer}] is sliding_attention without sliding_window")
    return tuple(known[kind] for kind in listed)


def consecutive(fused: Projection, *sizes: int) -> tuple[Projection, ...]:
    """Linears that lie one after the other in a tensor."""
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return tuple(replace(fused, rows=((start, start + size),)) for start, size in zip(starts, sizes, strict=True))


QKV = tuple[Projection, Projection, Projection]


def in_groups(fused: Projection, groups: int, queries: int, size: int) -> QKV:
    """Query, key and value of a tensor laid out [groups, queries + 2, size]: a key's queries, it and its value."""
    width = (queries + 2) * size
    query = tuple((group * width, group * width + queries * size) for group in range(groups))
    key, value = (tuple((stop + n * size, stop + (n + 1) * size) for _, stop in query) for n in range(2))
    return replace(fused, rows=query), replace(fused, rows=key), replace(fused, rows=value)


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Press et al. 2022: powers of 2^(-8/n) for n heads; for other n the next power of two fills every second one."""
    power = 1 << (heads.bit_length() - 1)
    first = 2.0 ** (-(2.0 ** -(math.log2(power) - 3)))
    slopes = [first**exponent for exponent in range(1, power + 1)]
    second = 2.0 ** (-(2.0 ** -(math.log2(2 * power) - 3)))
    return tuple(slopes + [second**exponent for exponent in range(1, 2 * (heads - power) + 1, 2)])


def alike(
    mixer: AttentionSpec, feed_forward: FeedForward, windows: Windows, parallel_residual: bool = False
) -> tuple[LayerSpec, ...]:
    """Blocks that differ in their windows only; those of one window are one object."""
    kinds = {
        window: LayerSpec(replace(mixer, window=window), feed_forward, parallel_residual) for window in set(windows)
    }
    return tuple(kinds[window] for window in windows)


class GatedParts:
    """What the gated-RMS families share: names, sizes, heads, norms and the gated feed-forward."""

    def __init__(
        self,
        config: ConfigReader,
        max_context: int | None,
        *,
        tied: bool = False,
        epsilon: float = 1e-6,
        norm_offset: float = 0.0,
        activation: tuple[tuple[str, ...], str] = (("hidden_act",), "silu"),
        head_size: int | None = None,
        max_positions: int | None = None,
        rope: Mapping[str, Any] | None = None,
        layer_thetas: Mapping[str, tuple[str, float]] | None = None,
    ) -> None:
        self.config = config
        self.vocabulary = config.size("vocab_size")
        self.hidden = config.size("hidden_size")
        self.intermediate = config.size("intermediate_size")
        self.layers = read_layers(config)
        self.heads = config.size("num_attention_heads", maximum=MAXIMUM_HEADS)
        self.kv_heads = config.size("num_key_value_heads", default=self.heads, maximum=MAXIMUM_HEADS)
        divides(config, "num_attention_heads", self.heads, "num_key_value_heads", self.kv_heads)
        if head_size is None and config.fields.get("head_dim") is None:
            head_size = divides(config, "hidden_size", self.hidden, "num_attention_heads", self.heads)
        self.head_size = config.size("head_dim", default=head_size, maximum=1 << 14)
        self.epsilon, self.norm_offset = config.number("rms_norm_eps", default=epsilon, high=1.0), norm_offset
        self.tied = config.flag("tie_word_embeddings", default=tied)
        self.activation = config.choice(*activation[0], accepted=ACTIVATIONS, default=activation[1])
        longest = config.size("max_position_embeddings", default=max_positions, maximum=MAXIMUM_POSITIONS)
        if layer_thetas is None:
            found = {"": read_rope(config, self.head_size, longest, max_context, **(rope or {}))}
        else:
            found = read_layer_ropes(config, self.head_size, longest, max_context, layer_thetas)
        self.ropes: dict[str, RopeSpec] = {kind: positions.rope for kind, positions in found.items()}
        self.rope = next(iter(self.ropes.values()))
        self.max_positions = min(positions.usable for positions in found.values())
        self.longest = min(positions.longest for positions in found.values())

    def norm(self, module: str) -> NormSpec:
        return NormSpec(f"model.{module}", "rms", self.epsilon, self.norm_offset)

    def block_norm(self, name: str) -> NormSpec:
        return self.norm(f"layers.{{layer}}.{name}")

    def projection(self, name: str, outputs: int, columns: int, bias: bool = False) -> Projection:
        return Projection(f"model.layers.{{layer}}.{name}", outputs, columns, bias)

    def attention(self, qkv_bias: bool = False, output_bias: bool = False) -> AttentionSpec:
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return AttentionSpec(
            norm=self.block_norm("input_layernorm"),
            query=self.projection("self_attn.q_proj", queries, self.hidden, qkv_bias),
            key=self.projection("self_attn.k_proj", keys, self.hidden, qkv_bias),
            value=self.projection("self_attn.v_proj", keys, self.hidden, qkv_bias),
            output=self.projection("self_attn.o_proj", self.hidden, queries, output_bias),
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            scale=self.head_size**-0.5,
            rope=self.rope,
        )

    def with_head_norms(self, attention: AttentionSpec) -> AttentionSpec:
        """The same with queries and keys normalised before the rope, under the names that all families have for it."""
        norms = self.block_norm("self_attn.q_norm"), self.block_norm("self_attn.k_norm")
        return replace(attention, query_norm=norms[0], key_norm=norms[1])

    def mlp(self, bias: bool = False) -> MlpSpec:
        return MlpSpec(
            norm=self.block_norm("post_attention_layernorm"),
            gate=self.projection("mlp.gate_proj", self.intermediate, self.hidden, bias),
            up=self.projection("mlp.up_proj", self.intermediate, self.hidden, bias),
            down=self.projection("mlp.down_proj", self.hidden, self.intermediate, bias),
            activation=self.activation,
        )

    def shared_expert(self, prefix: str, width: int) -> MlpSpec:
        """What all tokens go through beside the experts that are chosen for them; it reads what these read."""
        return MlpSpec(
            norm=None,
            gate=self.projection(f"{prefix}.gate_proj", width, self.hidden),
            up=self.projection(f"{prefix}.up_proj", width, self.hidden),
            down=self.projection(f"{prefix}.down_proj", self.hidden, width),
            activation=self.activation,
        )

    def between_norms(self, attention: AttentionSpec, mlp: MlpSpec) -> tuple[AttentionSpec, MlpSpec]:
        """Both halves with a norm before and one after, the names shifted as the files have them."""
        middle = self.block_norm("post_attention_layernorm")
        before = self.block_norm("pre_feedforward_layernorm")
        last = self.block_norm("post_feedforward_layernorm")
        return replace(attention, post_norm=middle), replace(mlp, norm=before, post_norm=last)

    def spec(self, family: str, layers: tuple[LayerSpec, ...]) -> ArchSpec:
        return ArchSpec(
            family=family,
            prefix="model.",
            vocabulary_size=self.vocabulary,
            hidden_size=self.hidden,
            max_positions=self.max_positions,
            longest_positions=self.longest,
            layers=layers,
            embedding="model.embed_tokens",
            final_norm=self.norm("norm"),
            head="lm_head",
            tied_head=self.tied,
        )


def read_softcap(config: ConfigReader, name: str, default: float | None) -> float | None:
    """Absent means the family's default; an explicit null means no cap."""
    return config.optional_number(name) if name in config.fields else default


def interleaved_attention(config: ConfigReader, module: str, hidden: int, heads: int, bias: bool) -> dict[str, Any]:
    """Attention fields of a fused tensor laid out [heads, 3, head_size]: query, key and value of each head together."""
    size = divides(config, "hidden_size", hidden, "number of heads", heads)
    fused = Projection(f"{module}.query_key_value", 3 * hidden, hidden, bias)
    output = Projection(f"{module}.dense", hidden, hidden, bias)
    common = {"heads": heads, "kv_heads": heads, "head_size": size, "scale": size**-0.5}
    query, key, value = in_groups(fused, heads, 1, size)
    return {"query": query, "key": key, "value": value, "output": output, **common}


def plain_mlp(block: str, norm: NormSpec, hidden: int, intermediate: int, activation: Activation) -> MlpSpec:
    return MlpSpec(
        norm=norm,
        gate=None,
        up=Projection(f"{block}.mlp.dense_h_to_4h", intermediate, hidden, True),
        down=Projection(f"{block}.mlp.dense_4h_to_h", hidden, intermediate, True),
        activation=activation,
    )
