# SPDX-License-Identifier: Apache-2.0
"""What ``linnet doctor`` says of vLLM and GGUF files, asked of vLLM with its plugin: it opens each file with the
original's config, and what it then multiplies by is compared with the original's weights.

Needs vLLM in an environment of its own that has vllm-gguf-plugin too: LINNET_VLLM_PYTHON=path/to/vllm/bin/python
(bench/peers/install.py makes one).
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the dev extra")
pytest.importorskip("transformers", reason="needs the dev extra")
pytest.importorskip("gguf", reason="the files are written by the gguf package")

import transformers
from asking import answers_to, chosen_cases
from gguf_models import write_gguf
from program_files import again, family, once
from safetensors.torch import load_file
from test_gguf import MODELS
from tiny_models import TinyModel, gated, write

from linnet.cli.doctoring import examine
from linnet.formats import Checkpoint
from linnet.formats.programs import Verdict
from linnet.formats.programs.gguf_of_vllm import PACKAGE, PLAIN_TYPES
from linnet.formats.programs.of_vllm import GPU_ONLY
from linnet.schemes.gguf_blocks import BLOCK_TYPES

PYTHON = os.environ.get("LINNET_VLLM_PYTHON", "")


def _has_plugin() -> bool:
    ask = [PYTHON, "-c", f"import importlib.metadata as m; m.version({PACKAGE!r})"]
    return Path(PYTHON).is_file() and subprocess.run(ask, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not _has_plugin(), reason=f"LINNET_VLLM_PYTHON names no interpreter that has {PACKAGE}"),
]
Make = Callable[[Path], tuple[Path, Path]]
"""A folder -> a file in it, and the directory of its original."""
PROJECTIONS = ("_q.weight", "_k.weight", "_v.weight", "_qkv.weight", "attn_output.weight", "ffn_up.weight",
               "ffn_gate.weight", "ffn_down.weight", "_exps.weight")  # fmt: skip
TOLERATED = 0.05
"""Inputs and weights are rounded to bf16, some weights to 8 bits; rows in another order are off by about 1."""
NAMED = {tiny.name: tiny for tiny in MODELS}


def plain(tiny: TinyModel) -> Make:
    """A family as its converter writes it, in F32."""

    def make(folder: Path) -> tuple[Path, Path]:
        return family(tiny)(folder), folder / "directory"

    return make


def wide(tiny: TinyModel) -> Any:
    """Its config with widths of whole blocks."""
    config = tiny.config()
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    said = {name: value for name, value in config.to_dict().items() if name not in ("rope_parameters", "rope_scaling")}
    own = {name: value for name, value in sizes.items() if name in said}
    return type(config)(**{**said, **own, **({"head_dim": 16} if said.get("head_dim") else {})})


def coded(tiny: TinyModel, *types: str) -> Make:
    """Wide, with matrices in Q8_0, the embedding among them if it is said so."""

    def make(folder: Path) -> tuple[Path, Path]:
        model = write(TinyModel(tiny.name, lambda: wide(tiny)), folder / "directory")
        saved = load_file(folder / "directory" / "model.safetensors")
        tensors = saved if any(".experts." in name for name in saved) else None
        path = write_gguf(model, folder / "m.gguf", dict.fromkeys(types, "Q8_0"), tensors=tensors, tokenizer=True)
        return path, folder / "directory"

    return make


def qwen(tied: bool) -> TinyModel:
    """Of whole blocks of every type."""
    sizes = gated(hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4)
    name = "qwen, tied" if tied else "qwen"
    return TinyModel(name, lambda: transformers.Qwen2Config(**sizes, tie_word_embeddings=tied))


def again_as(tied: bool = False, **changes: Any) -> Make:
    """A file with another type of matrices, or in parts."""

    def make(folder: Path) -> tuple[Path, Path]:
        path = again(once(folder, qwen(tied)), folder / "again.gguf", {}, **changes)
        return path, folder.parent / qwen(tied).name / "directory"

    return make


EVERYTHING = (*PROJECTIONS, "token_embd.weight")
WITHOUT = "without the original's config"
CODED = ("llama-1", "qwen2", "qwen3", "phi-3", "gemma-2", "gemma-3", "falcon-7b", "stablelm", "olmo-2",
         "granite", "smollm-3", "glm-4", "exaone-4", "olmoe", "starcoder-2")  # fmt: skip
CASES: dict[str, Make] = {
    **{f"plain {tiny.name}": plain(tiny) for tiny in MODELS},
    **{f"coded {name}": coded(NAMED[name], *EVERYTHING) for name in CODED},
    "queries in codes": coded(NAMED["qwen2"], "token_embd.weight", "_q.weight"),
    "embedding plain": coded(NAMED["qwen2"], *PROJECTIONS),
    **{f"type {name}": again_as(kind=name) for name in (*PLAIN_TYPES, *BLOCK_TYPES)},
    "a set": again_as(parts_of=4),
    "a set, tied": again_as(tied=True, parts_of=4),
    WITHOUT: coded(NAMED["qwen2"], *EVERYTHING),
}


def meaning(path: Path, original: Path) -> dict[str, np.ndarray]:
    """The original's weights, or, where Linnet finds codes, what they mean."""
    found = {
        name.removesuffix(".weight") if value.ndim == 2 else name: value.float().numpy()
        for name, value in load_file(original / "model.safetensors").items()
    }
    with Checkpoint.open(path) as checkpoint:
        for module in found.keys() & checkpoint.schemes().keys():
            found[module] = checkpoint.linear(module).dequantize()  # type: ignore[union-attr]
    return found


@pytest.fixture(scope="module")
def asked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Verdict], dict[str, Any]]:
    """The doctor's verdicts by case, of those that run, and what vLLM answered, in one process."""
    folder = tmp_path_factory.mktemp("vllm")
    questions, said = {}, {}
    for name, make, inside in chosen_cases(request, CASES, folder):
        path, original = make(inside)
        np.savez(inside / "expected.npz", **meaning(path, original))
        said[name] = examine(path)[2]
        beside = None if name == WITHOUT else str(original)
        expected = str(inside / "expected.npz")
        questions[name] = {"path": str(path), "expected": expected, "deprecated": False, "config": beside}
    return said, answers_to(questions, PYTHON, "ask_vllm.py", folder, 1500)


@pytest.mark.parametrize("name", CASES)
def test_vllm_does_as_it_is_said_to(name: str, asked: tuple[dict[str, Verdict], dict[str, Any]]) -> None:
    verdict, answer = asked[0][name], asked[1]["answers"][name]
    print(name, verdict.loads, verdict.why, answer)
    right = answer["stage"] == "loaded" and answer["worst"] < TOLERATED
    if name == WITHOUT:
        assert "config.json" in verdict.why
        assert answer["stage"] == "config"
        return
    assert verdict.loads == right
    assert not right or GPU_ONLY in verdict.why
