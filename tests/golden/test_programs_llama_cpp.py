# SPDX-License-Identifier: Apache-2.0
"""What ``linnet doctor`` says of llama.cpp, asked of llama.cpp itself: it opens each file that it is said to open, and
computes what Linnet computes of it; it refuses the others.

Needs llama-cpp-python, installed here or in an environment of its own: LINNET_LLAMA_CPP_PYTHON=path/to/bin/python
(bench/peers/install.py makes one).
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the dev extra")
pytest.importorskip("transformers", reason="needs the dev extra")
pytest.importorskip("gguf", reason="the files are written by the gguf package")

from asking import answers_to, chosen_cases
from program_files import CASES, IDS, header, off, said

from linnet.formats.programs.of_llama_cpp import ARCHITECTURES, CUTS, ELSE

PYTHON = os.environ.get("LINNET_LLAMA_CPP_PYTHON", "")
if not PYTHON and importlib.util.find_spec("llama_cpp"):
    PYTHON = sys.executable
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not Path(PYTHON).is_file(), reason="neither here nor at LINNET_LLAMA_CPP_PYTHON is llama_cpp"),
]
ALIKE = {"family": 1e-3, "type": 0.1, "written": 0.1, "first": 1e-3, "no": 1e-3, "longer": 1e-3}
"""By how much, relative, the logits of one computation may be off: weights in F32 meet F32 (1e-6; 4e-4 where a GELU is
looked up in a table of F16), others meet inputs that are rounded to 8 bits or to BF16."""
UNCHECKED = ("no layers' number", "no context", "no epsilon", "no heads", "a tensor gone")
"""Files that are not whole, of which it is not said what llama.cpp misses."""


@pytest.fixture(scope="module")
def asked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Path], dict[str, Any]]:
    """The files of the cases that run, and what llama.cpp answered."""
    folder = tmp_path_factory.mktemp("llama_cpp")
    paths = {name: make(inside) for name, make, inside in chosen_cases(request, CASES, folder)}
    return paths, ask(folder, paths)


def ask(folder: Path, paths: dict[str, Path]) -> dict[str, Any]:
    """An answer for each path (ask_llama_cpp.py)."""
    questions = {name: {"path": str(path), "ids": IDS} for name, path in paths.items()}
    return answers_to(questions, PYTHON, "ask_llama_cpp.py", folder, 600)


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_does_as_it_is_said_to(name: str, asked: tuple[dict[str, Path], dict[str, Any]]) -> None:
    path, answer = asked[0][name], asked[1][name]
    verdicts = said(path)
    loaded = answer["stage"] == "loaded"
    print(name, verdicts, answer["stage"], answer.get("why"))
    if not isinstance(verdicts, list):
        assert not loaded
        return
    linnet, llama_cpp = verdicts[0], verdicts[-1]
    if llama_cpp.loads is None:
        assert name in UNCHECKED
        assert not loaded
        return
    differs = llama_cpp.why.endswith(ELSE)
    assert llama_cpp.loads == (loaded and not differs)
    if loaded and linnet.loads:
        error = off(path, answer["logits"])
        print(f"off by {error:.2g}")
        assert (error < ALIKE[name.partition(" ")[0]]) != differs


def test_its_architectures_are_known(tmp_path: Path) -> None:
    paths = {name: header(tmp_path, name) for name in (*ARCHITECTURES, "nobodys")}
    answers = ask(tmp_path, paths)
    assert {name for name, answer in answers.items() if "unknown model architecture" in answer["why"]} == {"nobodys"}


def test_its_ways_of_cutting_are_known(tmp_path: Path) -> None:
    paths = {name: header(tmp_path, "llama", name) for name in (*CUTS, "nobodys")}
    answers = ask(tmp_path, paths)
    assert {name for name, answer in answers.items() if "unknown pre-tokenizer" in answer["why"]} == {"nobodys"}
