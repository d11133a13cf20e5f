# SPDX-License-Identifier: Apache-2.0
"""What ggml calls an architecture, and what it is among Hugging Face's: names, settings and what converters change.

Besides models/families the one file that names families: these names are ggml's and stand in its files. A row says
everything in which two architectures differ as files; what they compute is said by the family alone. Source:
llama.cpp's converters (conversion/*.py) and gguf-py's constants.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from linnet.formats.gguf.hyperparameters import Hyperparameters

ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
TWO_NORMS = {"ffn_norm": "post_attention_layernorm"}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

Change = Literal[
    "", "paired rows", "plus one", "turned", "in groups", "one row", "decay", "flat", "channels", "heads",
    "turned heads",
]  # fmt: skip
"""What converters do to a tensor, see ``names.Named``."""
Settings = Callable[[Hyperparameters], dict[str, Any]]


def _no_settings(_: Hyperparameters) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Architecture:
    """One value of ``general.architecture``. ``block`` maps the tensors of a layer, ``blk.N.X`` to
    ``model.layers.N.Y``; ``paired_rows``: rows of query and key lie in adjacent pairs for the rope instead of two
    halves of a head; ``norms_plus_one``: gains are stored with the 1 added that the family adds itself."""

    name: str
    family: str
    model_type: str
    block: Mapping[str, str]
    paired_rows: bool = False
    norms_plus_one: bool = False
    optional_biases: bool = False
    own_head_size: bool = False
    own_value_size: bool = False
    """Whether values may have another size than keys."""
    also: tuple[str, ...] = ()
    """Model types that are written as this architecture too, told apart by their settings."""
    settings: Settings = field(default=_no_settings)
    outer: Mapping[str, str] = field(default_factory=lambda: _OUTER)
    """The tensors outside the layers."""
    layers: str = "model.layers."
    scaling: Mapping[str, Any] = field(default_factory=dict)
    """What the family's yarn is besides what keys of the metadata say."""
    fields: Mapping[str, str | None] = field(default_factory=dict)
    """What the config calls a setting instead; None: it has no such."""
    epsilon: str = "attention.layer_norm_rms_epsilon"
    turned: tuple[str, ...] = ()
    """Tensors of a layer that the family publishes [inputs, outputs]."""
    in_groups: bool = False
    """Rows of ``attn_qkv`` lie one after the other instead of in groups of a key's queries, it and its value."""
    experts: bool = False
    """Whether feed-forwards are mixtures: tensors of all experts in one, ``{expert}`` in the names they have apart."""
    partial: bool = False
    """Whether the family turns a part of a head unless its config says otherwise."""
    parameters: Mapping[str, tuple[str, Change]] = field(default_factory=dict)
    """Tensors of a layer whose names end otherwise here and there: whole names behind ``blk.N.`` and ``layers`` + N."""
    attends: bool = True
    """Whether there are heads, positions and feed-forwards."""
    causal: bool = True
    """Whether tokens see only those before them."""
    variants: Mapping[str, "Architecture"] = field(default_factory=dict)
    """A tensor that only another arrangement has -> that arrangement."""


def _sliding(parameters: Hyperparameters) -> dict[str, Any]:
    """Files of the families' one converter carry a window only where the model has one."""
    window = parameters.size("attention.sliding_window", optional=True)
    if window is None:
        return {}
    return {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}


def _phi3(parameters: Hyperparameters) -> dict[str, Any]:
    return {"sliding_window": parameters.size("attention.sliding_window", optional=True)}


def _layer_types(layers: int, pattern: int) -> list[str]:
    """Every ``pattern``-th layer sees everything, the others a window."""
    return ["full_attention" if layer % pattern == pattern - 1 else "sliding_attention" for layer in range(layers)]


def _query_scale(parameters: Hyperparameters, largest_layers: int) -> float:
    """No key says how queries are scaled; llama.cpp knows the largest member of the family by its layers."""
    if parameters.needed_size("block_count") == largest_layers:
        return parameters.needed_size("embedding_length") / parameters.needed_size("attention.head_count")
    return parameters.needed_size("attention.key_length")


def _gemma2(parameters: Hyperparameters) -> dict[str, Any]:
    return {
        "attn_logit_softcapping": parameters.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": parameters.number("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _query_scale(parameters, 46),
        "sliding_window": parameters.needed_size("attention.sliding_window"),
        "layer_types": _layer_types(parameters.needed_size("block_count"), 2),
    }


def _gemma3(parameters: Hyperparameters) -> dict[str, Any]:
    layers = parameters.needed_size("block_count")
    window = parameters.size("attention.sliding_window", optional=True)
    types = parameters.layer_flags("attention.sliding_window_pattern", layers, every=6)
    if window is None:
        types = [False] * layers
    return {
        "final_logit_softcapping": parameters.number("final_logit_softcapping", None),
        "query_pre_attn_scalar": _query_scale(parameters, 62),
        "rope_local_base_freq": parameters.number("rope.freq_base_swa", 10000.0),
        "sliding_window": window,
        "layer_types": ["sliding_attention" if sliding else "full_attention" for sliding in types],
    }


_ROWS = (
    Architecture(
        "llama",
        "LlamaForCausalLM",
        "llama",
        {**ATTENTION, **TWO_NORMS, **GATED},
        paired_rows=True,
        optional_biases=True,
        also=("mistral",),
        settings=_sliding,
    ),
    Architecture("qwen2", "Qwen2ForCausalLM", "qwen2", {**ATTENTION, **TWO_NORMS, **GATED}),
    Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        "qwen3",
        {**ATTENTION, **HEAD_NORMS, **TWO_NORMS, **GATED},
        optional_biases=True,
        own_head_size=True,
    ),
    Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        "gemma2",
        {**ATTENTION, **_FOUR_NORMS, **GATED},
        norms_plus_one=True,
        own_head_size=True,
        settings=_gemma2,
    ),
    Architecture(
        "gemma3",
        "Gemma3ForCausalLM",
        "gemma3_text",
        {**ATTENTION, **HEAD_NORMS, **_FOUR_NORMS, **GATED},
        norms_plus_one=True,
        own_head_size=True,
        settings=_gemma3,
    ),
    Architecture(
        "phi3",
        "Phi3ForCausalLM",
        "phi3",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            **TWO_NORMS,
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        settings=_phi3,
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = {row.name: row for row in _ROWS}
"""Those that are read and written; ``architectures_read.py`` has those that are only read."""
