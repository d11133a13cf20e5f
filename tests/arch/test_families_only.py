# SPDX-License-Identifier: Apache-2.0
"""Model families are data: their names appear in one folder of the package and nowhere else in its code.

The exception is GGUF files, which say in ggml's words what they hold.
"""

import ast
import re
from pathlib import Path

import pytest

from linnet.models.families import ALIASES, FAMILIES, MODEL_TYPES

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "linnet"
ALLOWED = {"models/families/", "formats/gguf/architectures.py", "text/gguf_pretokenizers.py"}
ALLOWED |= {
    "formats/gguf/architectures_read.py",
    "formats/gguf/architectures_encoders.py",
    "formats/gguf/architectures_experts.py",
    "formats/gguf/architectures_latent.py",
    "formats/gguf/architectures_state_space.py",
}
ALLOWED |= {
    "api/tools/names.py",
    "formats/programs/of_vllm.py",
    "formats/programs/of_transformers.py",
    "formats/forms/bitnet.py",
}
ALLOWED |= {
    "formats/programs/of_llama_cpp.py",
    "formats/programs/gguf_of_transformers.py",
    "formats/programs/gguf_of_vllm.py",
}
"""A folder; ggml's own names for them, which stand in its files, and which of them llama.cpp, transformers and vLLM's
plugin know; vLLM's names of the forms of calls, and of the one architecture whose MXFP4 it reads; methods of
quantising, of which one is called as its family is."""
BRANDS = re.compile(
    r"llama(?!3\b|\.cpp\b)|mistral|mixtral|qwen|gemma|phi-?[34]|neox|pythia|bloom|falcon|deepseek", re.IGNORECASE
)


def _code_names(path: Path) -> list[tuple[int, str]]:
    """Identifiers and strings of a file with their lines; docstrings are prose, not code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found.append((node.lineno, node.value))
        elif isinstance(node, ast.Name):
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute):
            found.append((node.lineno, node.attr))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append((node.lineno, node.name))
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_family_name_in_code(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    if name.startswith(tuple(ALLOWED)):
        return
    exact = {*FAMILIES, *ALIASES, *MODEL_TYPES}
    found = [(line, text) for line, text in _code_names(path) if text in exact or BRANDS.search(text)]
    assert found == [], f"{name} names a family; only {', '.join(ALLOWED)} may"


def test_the_rule_would_notice() -> None:
    assert BRANDS.search("Qwen2ForCausalLM")
    assert BRANDS.search("is_llama")
    assert not BRANDS.search("llama3"), "the name of a rope rule in config.json"
    assert not BRANDS.search("as llama.cpp reads it"), "the name of a program"
