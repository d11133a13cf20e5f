# SPDX-License-Identifier: Apache-2.0
"""Random LoRA adapters as PEFT writes them, and what a model becomes when they are merged into it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    directory: Path,
    shapes: Mapping[str, tuple[int, int]],
    *,
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 0,
    spread: float = 0.3,
    dtype: Any = np.float32,
    prefix: str = "base_model.model.",
    ranks: Mapping[str, int] | None = None,
    **config: Any,
) -> Path:
    """``shapes``: [rows, columns] of the linears, by module. ``ranks``: of modules with another one."""
    random = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        own = (ranks or {}).get(module, rank)
        for side, shape in (("A", (own, columns)), ("B", (rows, own))):
            values = random.normal(0, spread / np.sqrt(shape[1]), shape).astype(np.float32)
            tensors[f"{prefix}{module}.lora_{side}.weight"] = values.astype(dtype)
    directory.mkdir(parents=True, exist_ok=True)
    record = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0,
        "bias": "none", "target_modules": sorted({module.rpartition(".")[2] for module in shapes}),
        "base_model_name_or_path": "owner/base", "inference_mode": True, "fan_in_fan_out": False,
        "modules_to_save": None, "use_dora": False, "use_rslora": False, "rank_pattern": dict(ranks or {}),
        "alpha_pattern": {}, "init_lora_weights": True,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(record | config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def linears_of(model: Path) -> dict[str, tuple[int, int]]:
    """The linears of a llama's layers."""
    tensors = load_file(model / "model.safetensors")
    names = [name.removesuffix(".weight") for name in sorted(tensors)]
    return {name: tensors[f"{name}.weight"].shape for name in names if name.rpartition(".")[2] in TARGETS}


def factor_of(adapter: Path, module: str, rank: int) -> float:
    """Of one linear: alpha by its rank, as PEFT multiplies."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    own = [value for key, value in config["alpha_pattern"].items() if module.endswith(key)]
    alpha = own[0] if own else config["lora_alpha"]
    return float(alpha / np.sqrt(rank) if config["use_rslora"] else alpha / rank)


def deltas(adapter: Path) -> dict[str, np.ndarray]:
    """What every linear's weight gains, float64."""
    stored = load_file(adapter / "adapter_model.safetensors")
    tensors = {name: values.astype(np.float64) for name, values in stored.items()}
    found = {}
    for name, down in tensors.items():
        if ".lora_A" in name:
            up = tensors[name.replace(".lora_A", ".lora_B")]
            module = name.removeprefix("base_model.model.").partition(".lora_A")[0]
            found[module] = factor_of(adapter, module, len(down)) * up @ down
    return found


def merged(model: Path, adapter: Path, target: Path) -> Path:
    """A model with the adapter in its weights, fp32."""
    shutil.copytree(model, target)
    tensors = load_file(model / "model.safetensors")
    for module, delta in deltas(adapter).items():
        weight = tensors[f"{module}.weight"]
        assert weight.dtype in (np.float32, ml_dtypes.bfloat16)
        tensors[f"{module}.weight"] = (weight.astype(np.float64) + delta).astype(np.float32)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target
