# SPDX-License-Identifier: Apache-2.0
"""Families whose feed-forwards are mixtures of experts around Llama's attention."""

from dataclasses import replace

from linnet.errors import CheckpointError
from linnet.formats.stacked import Stacked
from linnet.models.config import ConfigReader
from linnet.models.families.gated import optional_windows
from linnet.models.parts import GatedParts, Windows, alike, read_window, read_windows
from linnet.models.spec import ArchSpec, AttentionSpec, ExpertsSpec, FeedForward, LayerSpec, SharedSpec
from linnet.program.signatures import MOST_EXPERTS

TRAINING = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "num_experts_shared")
"""What of a router matters while it is trained."""


def routed(
    parts: GatedParts,
    width: int,
    *,
    normalise: bool,
    block: str = "mlp",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    chosen: int,
    experts: int | None = None,
) -> ExpertsSpec:
    """The experts of a block. ``width``: of one; ``names``: its gate, up and down."""
    config = parts.config
    count = config.size("num_experts", "num_local_experts", "n_routed_experts", default=experts, maximum=MOST_EXPERTS)
    taken = config.size("num_experts_per_tok", default=chosen)
    if taken > count:
        raise CheckpointError(f"{config.where}: num_experts_per_tok is {taken} of {count} experts")
    config.ignore(*TRAINING)
    gate, up, down = (f"{block}.experts.{{expert}}.{name}" for name in names)
    return ExpertsSpec(
        norm=parts.block_norm("post_attention_layernorm"),
        router=parts.projection(f"{block}.gate", count, parts.hidden),
        gate=parts.projection(gate, width, parts.hidden),
        up=parts.projection(up, width, parts.hidden),
        down=parts.projection(down, parts.hidden, width),
        activation=parts.activation,
        experts=count,
        chosen=taken,
        normalise=normalise,
    )


def mixtral(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Mixtral: two of eight experts, their weights made to sum to one."""
    parts = GatedParts(config, max_context, epsilon=1e-5, max_positions=4096 * 32)
    experts = routed(
        parts,
        parts.intermediate,
        normalise=True,
        block="block_sparse_moe",
        names=("w1", "w3", "w2"),
        chosen=2,
        experts=8,
    )
    windows = read_windows(config, parts.layers, config.optional_size("sliding_window"), lambda _: True)
    return parts.spec("MixtralForCausalLM", alike(parts.attention(), experts, windows))


def olmoe(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """OLMoE: queries and keys normalised over their whole width."""
    parts = GatedParts(config, max_context, epsilon=1e-5, max_positions=4096)
    config.require_off("clip_qkv")
    bias = config.flag("attention_bias")
    attention = replace(parts.with_head_norms(parts.attention(bias, bias)), norm_whole=True)
    normalise = config.flag("norm_topk_prob")
    experts = routed(parts, parts.intermediate, normalise=normalise, chosen=8, experts=64)
    return parts.spec("OlmoeForCausalLM", alike(attention, experts, (None,) * parts.layers))


def _mixed(
    parts: GatedParts, attention: AttentionSpec, experts: ExpertsSpec, windows: Windows
) -> tuple[LayerSpec, ...]:
    """Qwen's rule: experts in every ``decoder_sparse_step``-th layer that ``mlp_only_layers`` does not name."""
    config = parts.config
    step = config.size("decoder_sparse_step", default=1)
    _, dense = config.find(("mlp_only_layers",))
    dense = [] if dense is None else dense
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        raise CheckpointError(f"{config.where}: mlp_only_layers is {dense!r}; accepted is a list of layers")
    made: dict[tuple[int | None, bool], LayerSpec] = {}
    layers = []
    for layer, window in enumerate(windows):
        sparse = layer not in dense and (layer + 1) % step == 0
        half: FeedForward = experts if sparse else parts.mlp()
        key = window, sparse
        layers.append(made.setdefault(key, LayerSpec(replace(attention, window=window), half)))
    return tuple(layers)


def gpt_oss(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """gpt-oss: biases everywhere, a sink for every head, windows in every second layer; gate and up by turns in one
    tensor, held within a limit."""
    parts = GatedParts(
        config, max_context, epsilon=1e-5, head_size=64, max_positions=131072, rope={"default_theta": 150000}
    )
    config.ignore("initial_context_length", "experts_per_token")
    config.require("swiglu_alpha", 1.702)
    bias, block = config.flag("attention_bias", default=True), "model.layers.{layer}.mlp.experts"
    windows = read_windows(config, parts.layers, read_window(config, 128), lambda layer: layer % 2 == 0)
    attention = replace(parts.attention(bias, bias), sinks="model.layers.{layer}.self_attn.sinks")
    experts = routed(parts, parts.intermediate, normalise=True, chosen=4, experts=128)
    apart = config.flag("_gate_and_up_apart")
    gate, up = (
        parts.projection(f"mlp.experts.{{expert}}.{name}", parts.intermediate, parts.hidden, True)
        for name in ("gate_proj", "up_proj")
    )
    both = parts.projection("mlp.experts.{expert}.gate_up_proj", 2 * parts.intermediate, parts.hidden, True)
    experts = replace(
        experts,
        router=parts.projection("mlp.router", experts.experts, parts.hidden, True),
        gate=gate if apart else None,
        up=up if apart else both,
        down=replace(experts.down, bias=True),
        activation="gelu_sigmoid",
        limit=config.number("swiglu_limit", default=7.0),
        up_offset=1.0,
    )
    stacked = [
        rule
        for name in ("gate_up_proj", "down_proj")
        for rule in (
            Stacked(f"{block}.{name}", f"{block}.{{expert}}.{name}.weight", by_inputs=True),
            Stacked(f"{block}.{name}_bias", f"{block}.{{expert}}.{name}.bias"),
            Stacked(f"{block}.{name}_blocks", f"{block}.{{expert}}.{name}_blocks", keeps_axis=True),
            Stacked(f"{block}.{name}_scales", f"{block}.{{expert}}.{name}_scales", keeps_axis=True),
        )
    ]
    return replace(parts.spec("GptOssForCausalLM", alike(attention, experts, windows)), arranged=tuple(stacked))


def qwen2_moe(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Qwen1.5-MoE and Qwen2-MoE: biases as Qwen2; a shared expert with a gate of its own beside the chosen ones."""
    parts = GatedParts(config, max_context, max_positions=32768)
    width = config.size("moe_intermediate_size", default=1408)
    shared = config.size("shared_expert_intermediate_size", default=5632)
    experts = routed(parts, width, normalise=config.flag("norm_topk_prob"), chosen=4, experts=60)
    common = parts.shared_expert("mlp.shared_expert", shared)
    gate = parts.projection("mlp.shared_expert_gate", 1, parts.hidden)
    experts = replace(experts, shared=SharedSpec(common, gate))
    attention = parts.attention(qkv_bias=config.flag("qkv_bias", default=True))
    layers = _mixed(parts, attention, experts, optional_windows(config, parts.layers))
    return parts.spec("Qwen2MoeForCausalLM", layers)


def qwen3_moe(config: ConfigReader, max_context: int | None) -> ArchSpec:
    """Qwen3-MoE: attention as Qwen3, no shared expert."""
    parts = GatedParts(config, max_context, head_size=128, max_positions=32768)
    bias = config.flag("attention_bias")
    attention = parts.with_head_norms(parts.attention(bias, bias))
    width = config.size("moe_intermediate_size", default=768)
    experts = routed(parts, width, normalise=config.flag("norm_topk_prob"), chosen=8, experts=128)
    layers = _mixed(parts, attention, experts, optional_windows(config, parts.layers))
    return parts.spec("Qwen3MoeForCausalLM", layers)
