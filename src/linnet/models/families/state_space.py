# SPDX-License-Identifier: Apache-2.0
"""Families whose layers carry a state instead of attending: Mamba and Mamba-2."""

import math
from dataclasses import replace

from linnet.errors import CheckpointError
from linnet.models.config import ConfigReader
from linnet.models.parts import ACTIVATIONS, MAXIMUM_HEADS, consecutive, divides, read_layers
from linnet.models.spec import ArchSpec, LayerSpec, NormSpec, Projection, StateSpaceSpec

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


def mamba2(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Mamba-2: channels of a head share a decay and a time step, heads of a group share B and C; all are read from the
    stream by one linear, and what the scan yields is gated and normalised by groups."""
    parts = _StateSpaceParts(config, tied=False)
    heads, groups = config.size("num_heads", maximum=MAXIMUM_HEADS), config.size("n_groups", default=8)
    divides(config, "num_heads", heads, "n_groups", groups)
    head_size = divides(config, "expand times hidden_size", parts.width, "num_heads", heads)
    config.require("head_dim", head_size)
    config.require("time_step_limit", *NO_LIMIT)
    config.ignore("time_step_rank", "norm_before_gate")  # transformers gates first, whatever the latter says
    inner = groups * parts.states
    sizes = parts.width, parts.width, inner, inner, heads
    gate, x, inward, outward, steps = consecutive(parts.linear("in_proj", sum(sizes), parts.hidden, parts.bias), *sizes)
    mixer = StateSpaceSpec(
        norm=parts.norm(f"{parts.block}.norm"),
        module_name=f"{parts.block}.mixer",
        gate=gate,
        x=x,
        steps=steps,
        inward=inward,
        outward=outward,
        output=parts.linear("out_proj", parts.hidden, parts.width, parts.bias),
        taps=parts.taps,
        states=parts.states,
        activation=parts.activation,
        head_size=head_size,
        groups=groups,
        conv_bias=parts.conv_bias,
        step_bias=True,
        shared_decay=True,
        gated_norm=replace(parts.norm(f"{parts.block}.mixer.norm"), apart=True),
    )
    return parts.spec("Mamba2ForCausalLM", mixer, max_context)
