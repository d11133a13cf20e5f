# SPDX-License-Identifier: Apache-2.0
"""Architectures of GGUF files whose layers carry a state; they are read and not written, see architectures.py."""

from typing import Any

from linnet.formats.gguf.architectures import Architecture, Change
from linnet.formats.gguf.hyperparameters import Hyperparameters

_OUTER = {"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f", "output": "lm_head"}
_BLOCK = {"attn_norm": "norm", "ssm_in": "mixer.in_proj", "ssm_out": "mixer.out_proj"}
_FIELDS: dict[str, str | None] = {"rms_norm_eps": "layer_norm_epsilon", "max_position_embeddings": None}


def scan_parameters(module: str) -> dict[str, tuple[str, Change]]:
    """Tensors of a mixer by the names that both sides have for them."""
    return {
        "ssm_a": (f"{module}.A_log", "decay"),
        "ssm_d": (f"{module}.D", "flat"),
        "ssm_conv1d.weight": (f"{module}.conv1d.weight", "channels"),
        "ssm_conv1d.bias": (f"{module}.conv1d.bias", ""),
    }


def _mixer(parameters: Hyperparameters) -> dict[str, Any]:
    width = parameters.needed_size("ssm.inner_size")
    return {
        "state_size": parameters.needed_size("ssm.state_size"),
        "conv_kernel": parameters.needed_size("ssm.conv_kernel"),
        "intermediate_size": width,
        "expand": width / parameters.needed_size("embedding_length"),
    }


def _mamba(parameters: Hyperparameters) -> dict[str, Any]:
    parameters.require("ssm.dt_b_c_rms", False, why="steps, B and C that are normalised are not supported")
    return _mixer(parameters) | {"time_step_rank": parameters.needed_size("ssm.time_step_rank")}


def _mamba2(parameters: Hyperparameters) -> dict[str, Any]:
    """What is the rank of the steps elsewhere is the number of heads here."""
    heads, groups = (parameters.needed_size(f"ssm.{key}") for key in ("time_step_rank", "group_count"))
    return _mixer(parameters) | {"num_heads": heads, "n_groups": groups}


ROWS = (
    Architecture(
        "mamba",
        "MambaForCausalLM",
        "mamba",
        _BLOCK | {"ssm_x": "mixer.x_proj", "ssm_dt": "mixer.dt_proj"},
        settings=_mamba,
        outer=_OUTER,
        layers="backbone.layers.",
        fields=_FIELDS,
        parameters=scan_parameters("mixer"),
        attends=False,
    ),
    Architecture(
        "mamba2",
        "Mamba2ForCausalLM",
        "mamba2",
        _BLOCK,
        settings=_mamba2,
        outer=_OUTER,
        layers="backbone.layers.",
        fields=_FIELDS,
        parameters=scan_parameters("mixer")
        | {"ssm_norm.weight": ("mixer.norm.weight", "flat"), "ssm_dt.bias": ("mixer.dt_bias", "")},
        attends=False,
    ),
)
