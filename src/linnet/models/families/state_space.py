# SPDX-License-Identifier: Apache-2.0
"""Families whose layers carry a state instead of attending, all of them or most: Mamba, Mamba-2, Granite 4.0."""

import math
from dataclasses import replace
from typing import Any

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.stacked import Stacked
from linnet.models.config import ConfigReader
from linnet.models.families.experts import routed
from linnet.models.parts import ACTIVATIONS, MAXIMUM_HEADS, GatedParts, consecutive, divides, read_layers
from linnet.models.spec import (
    ArchSpec,
    FeedForward,
    LayerSpec,
    MlpSpec,
    NormSpec,
    Projection,
    SharedSpec,
    StateSpaceSpec,
)

USUAL_POSITIONS, MOST_POSITIONS = 32768, 1 << 20
"""Nothing in these models ends with a position: the context that is served unless a longer one is asked for, in tokens,
and the longest that can be."""

MOST_STATES = 256
"""Numbers per channel, as many as any published model has."""

INITIAL = (
    *("time_step_min", "time_step_max", "time_step_floor", "time_step_scale", "time_step_init_scheme"),
    *("rescale_prenorm_residual", "ssm_cfg"),
)
"""How weights were drawn before training."""
RUNTIME = ("residual_in_fp32", "fused_add_norm", "use_mambapy", "use_associative_scan", "chunk_size")
"""How other programs compute the same."""
REPEATED = ("d_model", "d_inner", "n_layer", "pad_vocab_size_multiple")
"""Sizes that are said twice."""
NO_LIMIT = ([0.0, math.inf], (0.0, math.inf), [0.0, {"__float__": "Infinity"}])
"""Time steps as they come, in the spellings of the files."""


class _StateSpaceParts:
    """What such families share: sizes, names, norms."""

    block = "backbone.layers.{layer}"

    def __init__(self, config: ConfigReader, *, tied: bool) -> None:
        self.config = config
        self.vocabulary = config.size("vocab_size")
        self.hidden = config.size("hidden_size")
        self.layers = read_layers(config)
        self.states = config.size("state_size", maximum=MOST_STATES)
        self.taps = config.size("conv_kernel", default=4, maximum=64)
        if self.taps < 2:
            raise CheckpointError(f"{config.where}: conv_kernel is 1; accepted is 2 to 64")
        self.width = int(config.number("expand", default=2.0, high=64.0) * self.hidden)
        if self.width < 1:
            raise CheckpointError(f"{config.where}: expand leaves no channels of hidden_size {self.hidden}")
        said = config.optional_size("intermediate_size")
        if said is not None and said != self.width:
            raise CheckpointError(f"{config.where}: intermediate_size is {said}; expand says {self.width}")
        self.bias = config.flag("use_bias")
        self.conv_bias = config.flag("use_conv_bias", default=True)
        self.activation = config.choice("hidden_act", accepted=ACTIVATIONS, default="silu")
        self.epsilon = config.number("layer_norm_epsilon", default=1e-5, high=1.0)
        self.tied = config.flag("tie_word_embeddings", default=tied)
        config.require("rms_norm", True)
        config.ignore(*INITIAL, *RUNTIME, *REPEATED)

    def linear(self, name: str, outputs: int, columns: int, bias: bool) -> Projection:
        return Projection(f"{self.block}.mixer.{name}", outputs, columns, bias)

    def norm(self, module: str) -> NormSpec:
        return NormSpec(module, "rms", self.epsilon)

    def spec(self, family: str, mixer: StateSpaceSpec, max_context: int | None) -> ArchSpec:
        """Blocks that are nothing but the mixer."""
        return ArchSpec(
            family=family,
            prefix="backbone.",
            vocabulary_size=self.vocabulary,
            hidden_size=self.hidden,
            max_positions=min(max(max_context or 0, USUAL_POSITIONS), MOST_POSITIONS),
            longest_positions=MOST_POSITIONS,
            layers=(LayerSpec(mixer, None),) * self.layers,
            embedding="backbone.embeddings",
            final_norm=self.norm("backbone.norm_f"),
            head="lm_head",
            tied_head=self.tied,
        )


def mamba(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Mamba: every channel has its own decays; time steps, B and C are made of the convolved channels."""
    parts = _StateSpaceParts(config, tied=True)
    rank = -(-parts.hidden // 16)
    if config.fields.get("time_step_rank") != "auto":
        rank = config.size("time_step_rank", default=rank)
    config.ignore("time_step_rank")
    x, gate = consecutive(parts.linear("in_proj", 2 * parts.width, parts.hidden, parts.bias), parts.width, parts.width)
    read = parts.linear("x_proj", rank + 2 * parts.states, parts.width, False)
    narrow, inward, outward = consecutive(read, rank, parts.states, parts.states)
    mixer = StateSpaceSpec(
        norm=parts.norm(f"{parts.block}.norm"),
        module_name=f"{parts.block}.mixer",
        gate=gate,
        x=x,
        steps=parts.linear("dt_proj", parts.width, rank, True),
        inward=inward,
        outward=outward,
        output=parts.linear("out_proj", parts.hidden, parts.width, parts.bias),
        taps=parts.taps,
        states=parts.states,
        activation=parts.activation,
        narrow_steps=narrow,
        conv_bias=parts.conv_bias,
    )
    return parts.spec("MambaForCausalLM", mixer, max_context)


def _many_heads(
    block: str, module: str, norm: NormSpec, hidden: int, heads: int, head_size: int, groups: int, **fields: Any
) -> StateSpaceSpec:
    """The mixer of Mamba-2: channels of a head share a decay and a time step, heads of a group share B and C; all are
    read from the stream by one linear, and what the scan yields is gated and normalised by groups."""
    width, inner, bias = heads * head_size, groups * fields["states"], fields.pop("bias")
    sizes = width, width, inner, inner, heads
    fused = Projection(f"{block}.{module}.in_proj", sum(sizes), hidden, bias)
    gate, x, inward, outward, steps = consecutive(fused, *sizes)
    return StateSpaceSpec(
        norm=norm,
        module_name=f"{block}.{module}",
        gate=gate,
        x=x,
        steps=steps,
        inward=inward,
        outward=outward,
        output=Projection(f"{block}.{module}.out_proj", hidden, width, bias),
        head_size=head_size,
        groups=groups,
        step_bias=True,
        shared_decay=True,
        gated_norm=NormSpec(f"{block}.{module}.norm", "rms", norm.epsilon, apart=True),
        **fields,
    )


def mamba2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Mamba-2, see ``_many_heads``."""
    parts = _StateSpaceParts(config, tied=False)
    heads, groups = config.size("num_heads", maximum=MAXIMUM_HEADS), config.size("n_groups", default=8)
    divides(config, "num_heads", heads, "n_groups", groups)
    head_size = divides(config, "expand times hidden_size", parts.width, "num_heads", heads)
    config.require("head_dim", head_size)
    config.require("time_step_limit", *NO_LIMIT)
    config.ignore("time_step_rank", "norm_before_gate")  # transformers gates first, whatever the latter says
    mixer = _many_heads(
        parts.block,
        "mixer",
        parts.norm(f"{parts.block}.norm"),
        parts.hidden,
        heads,
        head_size,
        groups,
        states=parts.states,
        taps=parts.taps,
        activation=parts.activation,
        bias=parts.bias,
        conv_bias=parts.conv_bias,
    )
    return parts.spec("Mamba2ForCausalLM", mixer, max_context)


def granite_hybrid(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Granite 4.0: layers of Mamba-2 and a few that attend, most without positions; multipliers as in Granite 3. The
    larger ones have experts beside the feed-forward that all have."""
    parts = GatedParts(config, max_context, max_positions=2048)
    config.ignore("init_method", "mamba_chunk_size", "output_router_logits", "router_aux_loss_coef")
    config.require("normalization_function", "rmsnorm")
    config.require("time_step_limit", *NO_LIMIT)
    turns = config.choice("position_embedding_type", accepted={"rope": True, "nope": False}, default="nope")
    multiplier = config.number("residual_multiplier", default=1.0)
    bias = config.flag("attention_bias")
    attention = replace(
        parts.attention(bias, bias),
        scale=config.number("attention_multiplier", default=1.0),
        multiplier=multiplier,
        rope=parts.rope if turns else None,
    )
    expand = config.size("mamba_expand", default=2, maximum=64)
    heads = config.size("mamba_n_heads", default=128, maximum=MAXIMUM_HEADS)
    head_size = divides(config, "mamba_expand times hidden_size", expand * parts.hidden, "mamba_n_heads", heads)
    config.require("mamba_d_head", head_size, "auto")
    groups = config.size("mamba_n_groups", default=1)
    divides(config, "mamba_n_heads", heads, "mamba_n_groups", groups)
    state_space = _many_heads(
        "model.layers.{layer}",
        "mamba",
        parts.block_norm("input_layernorm"),
        parts.hidden,
        heads,
        head_size,
        groups,
        states=config.size("mamba_d_state", default=256, maximum=MOST_STATES),
        taps=config.size("mamba_d_conv", default=4, maximum=64),
        activation=parts.activation,
        bias=config.flag("mamba_proj_bias"),
        conv_bias=config.flag("mamba_conv_bias", default=True),
        multiplier=multiplier,
    )
    shared = config.size("shared_intermediate_size", default=1024)
    gate, up = consecutive(parts.projection("shared_mlp.input_linear", 2 * shared, parts.hidden), shared, shared)
    down = parts.projection("shared_mlp.output_linear", parts.hidden, shared)
    half, stacked = _with_experts(parts, replace(parts.mlp(), gate=gate, up=up, down=down, multiplier=multiplier))
    kinds = {"mamba": LayerSpec(state_space, half), "attention": LayerSpec(attention, half)}
    kinds |= {"linear_attention": kinds["mamba"], "full_attention": kinds["attention"]}
    listed = config.words("layer_types", parts.layers) or ("mamba",) * parts.layers
    unknown = sorted(set(listed) - set(kinds))
    if unknown:
        raise UnsupportedError(f"{config.where}: layer_types holds {unknown[0]!r}; supported are {', '.join(kinds)}")
    return replace(
        parts.spec("GraniteMoeHybridForCausalLM", tuple(kinds[kind] for kind in listed)),
        embedding_scale=config.number("embedding_multiplier", default=1.0),
        logits_multiplier=1 / config.number("logits_scaling", default=1.0),
        arranged=stacked,
    )


def _with_experts(parts: GatedParts, common: MlpSpec) -> tuple[FeedForward, tuple[Stacked, ...]]:
    """``common`` alone, or beside experts where the config has any; those of a layer lie in one tensor, with gate and
    up one after the other."""
    config, block = parts.config, "block_sparse_moe"
    _, count = config.find(("num_local_experts",))
    if count in (None, 0):
        config.require("num_experts_per_tok", 0)
        return common, ()
    width = parts.intermediate
    experts = routed(parts, width, normalise=True, block=block, chosen=8)
    both = parts.projection(f"{block}.{{expert}}.input_linear", 2 * width, parts.hidden)
    gate, up = consecutive(both, width, width)
    half = replace(
        experts,
        router=replace(experts.router, module=f"model.layers.{{layer}}.{block}.router.layer"),
        gate=gate,
        up=up,
        down=parts.projection(f"{block}.{{expert}}.output_linear", parts.hidden, width),
        shared=SharedSpec(replace(common, norm=None, multiplier=None), None),
        multiplier=common.multiplier,
    )
    here = f"model.layers.{{layer}}.{block}"
    names = ("input_linear", "output_linear")
    return half, tuple(Stacked(f"{here}.{name}.weight", f"{here}.{{expert}}.{name}.weight") for name in names)
