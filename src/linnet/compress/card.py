# SPDX-License-Identifier: Apache-2.0
"""The model card of a compressed checkpoint: what it is, of what, made how. Quality is for ``linnet eval`` to say."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import linnet
from linnet.compress.figure import SHOWN_MODULES
from linnet.compress.worst import block_errors, worst_modules
from linnet.formats.forms.canonical_written import is_own
from linnet.formats.programs import Model, verdicts
from linnet.formats.programs.of_vllm import GPU_ONLY
from linnet.schemes import LinearScheme

PICTURE_FILE = "errors.png"


@dataclass(frozen=True)
class Made:
    """``source``: a hub id, or a local directory's last name. ``command``: what was typed. ``pictured``: whether
    PICTURE_FILE is there."""

    source: str
    command: str | None = None
    pictured: bool = False


def loaders(schemes: Mapping[str, LinearScheme], zeros: bool = True, own: bool = False) -> str:
    """Which programs read a model whose modules are stored so; without any it is dense, maybe with zeros. ``own``: it
    has what Linnet's own layout alone has a word for, whatever its schemes."""
    if not schemes and not own:
        return f"whatever reads the original: it is dense{', with zeros in it' if zeros else ''}"
    if own or is_own(schemes):
        return "Linnet alone (its own layout, which every other loader refuses)"
    found = verdicts(Model("directory", "compressed-tensors", "", schemes), "")
    read = [f"{verdict.program}{_condition(verdict.why)}" for verdict in found if verdict.loads]
    refused = [
        f"{verdict.program}: {verdict.why}" for verdict in found if not verdict.loads and verdict.program == "vLLM"
    ]
    return "; ".join(["Linnet", *read]) + (f" ({refused[0]})" if refused else "")


def _condition(why: str) -> str:
    """What a program needs beside itself, of why it reads something."""
    if why.startswith("with "):
        return f" {why}"
    _, limited, where = why.partition(GPU_ONLY)
    return f" {limited}{where}" if limited else ""


def model_card(
    made_from: "Made",
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    schemes: Mapping[str, LinearScheme],
    source_bytes: int,
    output_bytes: int,
) -> str:
    """README.md with the hub's front matter."""
    source = made_from.source
    recipe, layers = record["recipe"], record["layers"]
    algorithms = " + ".join(step["algorithm"] for step in recipe["steps"])
    ranks = _ranks(layers)
    summed = bool(ranks) or any(layer.get("outlier_columns") for layer in layers.values())
    rotated = _rotated(record.get("rotations", ()))
    scheme = next((step["scheme"] for step in recipe["steps"] if step["scheme"]), None)
    scheme = scheme or _patterns(layers) or ("low-rank" if ranks else "pruned")
    # what the hub has words for
    relation, made = ("quantized", "quantized") if record["schemes"] else ("finetune", "pruned")
    if not record["schemes"] and ranks:
        made = "low-rank"
    hub = "/" in source
    base = [f"base_model: {source}", f"base_model_relation: {relation}"] if hub else []
    family = str(config.get("model_type", "unknown"))
    front = [*base, "library_name: linnet", "tags:", "- linnet", f"- {made}", f"- {family}", f"- {scheme}"]
    name = source.rsplit("/", 1)[-1]
    calibration = record["calibration"]
    if calibration is None:
        rows = "none (data-free)"
    else:
        text = calibration["name"]
        rows = (
            f"{text}: {calibration['rows']} rows of {calibration['length']} tokens, SHA-256 `{calibration['digest']}`"
        )
    last = [layer | layer.get("repair", {}) for layer in layers.values()]
    errors = [layer["output_error"] for layer in last if "output_error" in layer]
    error = f"{sum(errors) / len(errors):.5f} on the calibration rows" if errors else "not measured (data-free)"
    parts = record["fingerprint"]
    return "\n".join(
        [
            "---",
            *front,
            "---",
            "",
            f"# {name}, {scheme} by {algorithms}",
            "",
            f"Made from {name} by [Linnet](https://github.com/linnet-llm/linnet) {linnet.__version__}.",
            "",
            "| | |",
            "|---|---|",
            f"| bytes | {output_bytes:,} (original {source_bytes:,}, ratio {output_bytes / source_bytes:.3f}) |",
            *(f"| pruned | {_units(pruned)} |" for pruned in record.get("pruned", ())),
            f"| compressed modules | {len(layers)} |",
            *([f"| columns that share a scale | {_groups(record['schemes'])} |"] if record["schemes"] else []),
            *([f"| ranks of terms | {ranks} |"] if ranks else []),
            *([f"| rotated at run time | {rotated} |"] if rotated else []),
            f"| relative output error, mean of modules | {error} |",
            f"| calibration | {rows} |",
            f"| loads in | {loaders(schemes, bool(layers), summed or bool(rotated))} |",
            f"| source | SHA-256 `{parts['source']}` |",
            f"| versions | linnet {parts['linnet']}, torch {parts['torch']}, numpy {parts['numpy']} |",
            "",
            *_warning(record.get("source_codes")),
            *_losses(record, made_from.pictured),
            *(["Made by:", "", "```", made_from.command, "```", ""] if made_from.command else []),
            "Recipe:",
            "",
            "```json",
            json.dumps(recipe, indent=2, ensure_ascii=False),
            "```",
            "",
            "`linnet_manifest.json` holds the SHA-256 of every tensor and the error of every module.",
            "",
        ]
    )


def _warning(codes: str | None) -> list[str]:
    """Of a source that had lost something before."""
    if not codes:
        return []
    return [
        f"**Made from a compressed model** ({codes}), not from the original: what that lost is in here too, and every "
        "error below is against the compressed one.",
        "",
    ]


def _losses(record: Mapping[str, Any], pictured: bool) -> list[str]:
    """Tables of the modules that lost most and of the blocks, and the picture of both."""
    lines = [f"![errors of blocks and modules]({PICTURE_FILE})", ""] if pictured else []
    worst = worst_modules(record["layers"], SHOWN_MODULES)
    if worst:
        of = "output" if worst[0].of_output else "weight"
        lines += [f"| the modules that lost most | relative error of the {of} |", "|---|---|"]
        lines += [f"| {loss.module} | {loss.error:.3g} |" for loss in worst] + [""]
    names, errors = block_errors(record["blocks"])
    if errors:
        lines += ["| block | relative error of its output |", "|---|---|"]
        lines += [f"| {name} | {error:.3g} |" for name, error in zip(names, errors, strict=True)] + [""]
    return lines


def _units(pruned: Mapping[str, Any]) -> str:
    """``192 of 640 neurons of each layer, by wanda``."""
    where = "" if pruned["what"] == "layers" else " of each layer"
    gone = pruned["of"] - pruned["kept"]
    return f"{gone} of {pruned['of']} {pruned['what'].replace('_', ' ')}{where}, by {pruned['algorithm']}"


def _patterns(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """``2:4 + 50%``: how modules were pruned, the most frequent first."""
    found = Counter(layer["pattern"] for layer in layers.values() if "pattern" in layer)
    return " + ".join(pattern for pattern, _ in found.most_common())


def _ranks(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """``rank 16 (30 modules)``, the most frequent first; empty without terms of low rank."""
    found = Counter(rank for layer in layers.values() if (rank := (layer | layer.get("repair", {})).get("rank")))
    return ", ".join(f"rank {rank} ({count} modules)" for rank, count in found.most_common())


def _rotated(rotations: Sequence[Mapping[str, Any]]) -> str:
    """``input of 30 modules in runs of 512``; empty without such."""
    what = {"input": "input of {} modules", "attention": "queries and keys of {} layers"}
    each = ((what[found["of"]].format(len(found["targets"])), found["size"]) for found in rotations)
    return ", ".join(f"{shown} in runs of {size}" for shown, size in each)


def _groups(schemes: Mapping[str, Any]) -> str:
    """``64 (180 modules), 128 (30 modules)``."""
    counts = Counter(scheme["weight"]["group_size"] or "all of a row" for scheme in schemes.values())
    return ", ".join(f"{size} ({count} modules)" for size, count in sorted(counts.items(), key=str))
