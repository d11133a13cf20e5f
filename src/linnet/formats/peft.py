# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter as PEFT writes it: adapter_config.json and adapter_model.safetensors of one directory.

Which linears it changes is what its tensors say. What would change the result otherwise than y + factor * B (A x) is
refused in words, and so is what this reader has never heard of: nothing is left out silently.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.copied_file import CopiedFile, copied_file
from linnet.formats.finite import check_finite
from linnet.formats.json_file import read_json_object

Array = npt.NDArray[Any]

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MOST_RANK = 1024

HARMLESS = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
"""Keys that say where an adapter comes from, how it was trained, or what is looked at here."""
REFUSED = {
    "use_dora": "DoRA, whose magnitudes are no low-rank term",
    "use_qalora": "QA-LoRA, which pools its inputs",
    "lora_bias": "biases beside its matrices",
    "modules_to_save": "whole modules of its own (modules_to_save)",
    "trainable_token_indices": "embeddings of its own (trainable_token_indices)",
    "target_parameters": "parameters that are no linear's weight (target_parameters)",
    "layer_replication": "layers that are repeated (layer_replication)",
    "megatron_config": "layers split over machines (megatron_config)",
    "alora_invocation_tokens": "activation from a token on (aLoRA)",
    "arrow_config": "a choice among other adapters (Arrow)",
}
TASKS = ("CAUSAL_LM", "FEATURE_EXTRACTION")
BEGINNINGS = (True, False, None, "gaussian", "eva", "mica", "orthogonal")
"""Ways to begin an adapter that leave the base's weights as they are; others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
change them too, and without that the adapter means something else."""

_NAME = re.compile(r"\^?(?:[\w-]|\\?\.)+")
"""Of the regular expressions that PEFT looks modules up by: names, whole from the beginning (^) or their last parts.
Anything more may take for ever to match, and nobody writes it."""
_TENSOR = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")


@dataclass(frozen=True, eq=False)
class AdapterLinear:
    """What an adapter adds to one linear: factor * B (A x). ``down``: A [rank, columns]; ``up``: B [rows, rank]; fp32
    or bf16, in memory of their own."""

    down: Array
    up: Array
    factor: float


@dataclass(frozen=True, eq=False)
class PeftAdapter:
    """A whole adapter. ``linears``: by the module's name as PEFT has it. ``digest``: of everything that its result
    depends on. ``base``: what it says it was trained on."""

    path: Path
    linears: Mapping[str, AdapterLinear]
    digest: bytes
    base: str | None

    @property
    def rank(self) -> int:
        """The greatest of its linears."""
        return max(int(linear.down.shape[0]) for linear in self.linears.values())


def read_peft_config(directory: Path) -> dict[str, Any]:
    """The checked adapter_config.json. Raises CheckpointError and UnsupportedError with one sentence."""
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: no such directory; an adapter is one with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    if not (directory / CONFIG_FILE).exists():
        raise CheckpointError(f"{directory}: no {CONFIG_FILE}, so not a PEFT adapter")
    config = read_json_object(directory / CONFIG_FILE, MAX_CONFIG_BYTES)
    where = f"{directory / CONFIG_FILE}"
    if config.get("peft_type", "LORA") != "LORA":
        raise UnsupportedError(f"{where}: peft_type is {str(config['peft_type'])[:40]!r}; supported is LORA")
    if config.get("task_type") not in (None, *TASKS):
        given = str(config["task_type"])[:40]
        raise UnsupportedError(f"{where}: task_type is {given!r}; supported are {' and '.join(TASKS)}")
    for key, what in REFUSED.items():
        if config.get(key):
            raise UnsupportedError(f"{where}: the adapter has {what}; supported is LoRA on linears of the layers")
    if config.get("bias", "none") != "none":
        raise UnsupportedError(f"{where}: bias is {str(config['bias'])[:40]!r}; supported is none")
    begun = config.get("init_lora_weights")
    if begun not in BEGINNINGS:
        raise UnsupportedError(
            f"{where}: init_lora_weights is {str(begun)[:40]!r}, which may change the base model too; convert it to a "
            "plain LoRA first (peft: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    unknown = sorted(key for key, value in config.items() if key not in HARMLESS and key not in REFUSED and value)
    if unknown:
        raise UnsupportedError(
            f"{where}: {unknown[0][:80]} is set, which is not known here; it might change the result"
        )
    targets = config.get("target_modules")
    if not (isinstance(targets, str) or (isinstance(targets, list) and all(isinstance(one, str) for one in targets))):
        raise CheckpointError(f"{where}: target_modules must be a list of names, a regular expression or all-linear")
    _count(config.get("r"), "r", where)
    _number(config.get("lora_alpha"), "lora_alpha", where)
    return config


def peft_rank(config: Mapping[str, Any]) -> int:
    """The greatest rank that a checked config names."""
    return max([int(config["r"]), *(int(rank) for _, rank in _named(config, "rank_pattern", CONFIG_FILE).values())])


def read_peft(directory: Path, most_bytes: int | None = None) -> PeftAdapter:
    """The whole adapter, read once. Raises CheckpointError and UnsupportedError with one sentence, before anything is
    copied also for matrices of more than ``most_bytes``."""
    config = read_peft_config(directory)
    path = directory / WEIGHTS_FILE
    if not path.exists():
        pickled = (directory / "adapter_model.bin").exists()
        reason = "only a pickle; Linnet never unpickles, save it as safetensors first" if pickled else "no such file"
        raise CheckpointError(f"{path}: {reason}")
    with copied_file(path) as file:
        pairs = _pairs(file, most_bytes)
    ranks, alphas = (_named(config, name, str(directory / CONFIG_FILE)) for name in ("rank_pattern", "alpha_pattern"))
    linears = {
        module: _linear(
            f"{directory}: {module[:120]}",
            sides,
            int(_value_of(module, ranks, config["r"])),
            float(_value_of(module, alphas, config["lora_alpha"])),
            bool(config.get("use_rslora")),
        )
        for module, sides in sorted(pairs.items())
    }
    base = config.get("base_model_name_or_path")
    return PeftAdapter(directory, linears, _digest(linears), base if isinstance(base, str) else None)


def _pairs(file: CopiedFile, most_bytes: int | None) -> dict[str, dict[str, Array]]:
    """The matrices of each linear, by their side. Nothing is read before all of them are known to be few enough."""
    path = file.path
    size = sum(info.nbytes for info in file.tensors.values())
    if most_bytes is not None and size > most_bytes:
        largest = max(file.tensors, key=lambda name: file.tensors[name].nbytes)
        raise CheckpointError(
            f"{path}: matrices of {size} bytes, {largest[:120]!r} the largest; with that rank those of this model's "
            f"linears have at most {most_bytes}"
        )
    pairs: dict[str, dict[str, Array]] = {}
    for name, info in file.tensors.items():
        found = _TENSOR.match(name)
        if found is None:
            raise UnsupportedError(
                f"{path}: tensor {name[:120]!r} is no lora_A or lora_B of a linear; supported is LoRA on linears of "
                "the layers"
            )
        if info.dtype not in ("fp32", "bf16", "fp16") or len(info.shape) != 2 or 0 in info.shape:
            raise UnsupportedError(
                f"{path}: tensor {name[:120]!r} is {info.dtype} {list(info.shape)}; supported are matrices of float32, "
                "bfloat16 and float16"
            )
        matrix = file.copy(info)
        check_finite(matrix.reshape(-1).view(np.uint8).data, 0, info, f"{path}: tensor {name[:120]!r}")
        sides = pairs.setdefault(found["module"], {})
        if found["side"] in sides:
            raise CheckpointError(f"{path}: {found['module'][:120]} has lora_{found['side']} twice")
        sides[found["side"]] = matrix.astype(np.float32) if matrix.dtype == np.float16 else matrix
    if not pairs:
        raise CheckpointError(f"{path}: an adapter without tensors")
    return pairs


def _linear(where: str, sides: Mapping[str, Array], rank: int, alpha: float, stabilised: bool) -> AdapterLinear:
    """``stabilised``: rank-stabilised LoRA, which divides by the root of the rank."""
    if len(sides) != 2:
        raise CheckpointError(f"{where} has lora_{next(iter(sides))} alone; lora_A and lora_B are needed")
    down, up = sides["A"], sides["B"]
    if down.shape[0] != rank or up.shape[1] != rank:
        raise CheckpointError(
            f"{where} has matrices of rank {down.shape[0]} and {up.shape[1]}; {CONFIG_FILE} says {rank}"
        )
    return AdapterLinear(down, up, alpha / (math.sqrt(rank) if stabilised else rank))


Named = Mapping[str, tuple[int, float]]
"""Last parts of modules' names, or whole ones behind a ^, with their place among the config's and a value."""


def _named(config: Mapping[str, Any], patterns: str, where: str) -> Named:
    found = config.get(patterns) or {}
    if not isinstance(found, dict) or len(found) > 4096 or any(len(key) > 200 for key in found):
        raise CheckpointError(f"{where}: {patterns} must map names of modules to numbers")
    named: dict[str, tuple[int, float]] = {}
    for place, (pattern, value) in enumerate(found.items()):
        if not _NAME.fullmatch(pattern):
            raise UnsupportedError(f"{where}: {patterns} has {pattern[:80]!r}; supported are names of modules")
        checked = _count(value, patterns, where) if patterns == "rank_pattern" else _number(value, patterns, where)
        named.setdefault(pattern.replace("\\.", "."), (place, checked))
    return named


def _value_of(module: str, named: Named, default: float) -> float:
    """That of the first pattern that is the module's name or whole parts at its end, as PEFT looks it up."""
    parts = module.split(".")
    ends = [".".join(parts[start:]) for start in range(len(parts))]
    found = [named[name] for name in (f"^{module}", *ends) if name in named]
    return min(found)[1] if found else default


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise CheckpointError(f"{where}: {name} is {str(value)[:40]}; accepted is a number above 0")
    return value


def _count(value: Any, name: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_RANK:
        raise CheckpointError(f"{where}: {name} is {str(value)[:40]}; accepted is 1 to {MOST_RANK}")
    return value


def _digest(linears: Mapping[str, AdapterLinear]) -> bytes:
    digest = hashlib.blake2b(digest_size=32, person=b"linnet-adapter")
    for module, linear in linears.items():
        for part in (linear.down, linear.up):
            digest.update(f"{module}\0{part.dtype}\0{part.shape}\0{linear.factor!r}\n".encode())
            digest.update(part.reshape(-1).view(np.uint8).data)
    return digest.digest()
