# SPDX-License-Identifier: Apache-2.0
"""The house stands as planned: import contracts, lean imports, file budget, licences, no unsafe loading."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("tools/**/*.py"), *ROOT.glob("bench/**/*.py")])
NATIVE = sorted(path for suffix in ("cpp", "h", "inc") for path in ROOT.glob(f"csrc/**/*.{suffix}"))
FILE_LINES_LIMIT = 800


def test_import_contracts() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", [*SOURCES, *NATIVE], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_is_licensed_and_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= FILE_LINES_LIMIT, f"{len(lines)} lines; split it"
    assert not lines or "SPDX-License-Identifier: Apache-2.0" in lines[0]


@pytest.mark.parametrize(
    "module",
    ["linnet", "linnet.cli.main", "linnet.api", "linnet.evals", "linnet.serve", "linnet.formats", "linnet.plan"],
)
def test_importing_does_not_pull_in_torch(module: str) -> None:
    code = f"import sys, {module}; print([n for n in ('torch', 'transformers', 'matplotlib') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ["numpy", "fastapi", "linnet.api", "linnet.backends"])
def test_help_does_not_import_what_it_does_not_show(room: str) -> None:
    code = f"import sys, linnet.cli.main; print({room!r} in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


BANNED_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}


def executions(path: Path) -> Iterator[str]:
    """Everything in a file that could turn data into code: unsafe imports, eval and its kin, torch.load."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name for name in names if name.partition(".")[0] in BANNED_IMPORTS)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in BANNED_CALLS or called == "torch.load":
                yield called
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False":
                    yield "trust_remote_code"


def test_nothing_in_the_package_executes_data() -> None:
    found = {str(path.relative_to(ROOT)): list(executions(path)) for path in ROOT.glob("src/**/*.py")}
    assert {path: calls for path, calls in found.items() if calls} == {}


def test_the_check_for_executed_data_sees(tmp_path: Path) -> None:
    source = "import pickle\nfrom dill import loads\neval('1')\ntorch.load('x')\nf(trust_remote_code=True)\n"
    (tmp_path / "planted.py").write_text(source)
    assert list(executions(tmp_path / "planted.py")) == ["pickle", "dill", "eval", "torch.load", "trust_remote_code"]


def test_only_the_command_line_reads_the_environment() -> None:
    allowed = {"cli", "formats"}  # formats: HF_* of huggingface_hub, in one place
    found = [
        str(path.relative_to(ROOT))
        for path in ROOT.glob("src/linnet/**/*.py")
        if path.relative_to(ROOT / "src/linnet").parts[0] not in allowed
        and re.search(r"os\.environ|os\.getenv", path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_nothing_outside_api_reaches_into_an_engine() -> None:
    """Outside the engine there are its facts and messages."""
    found = []
    for path in ROOT.glob("src/linnet/**/*.py"):
        if path.relative_to(ROOT / "src/linnet").parts[0] in {"engine", "api"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            reaches = isinstance(node, ast.Attribute) and node.attr in {"engine", "_engine"}
            imports = isinstance(node, ast.ImportFrom) and any(name.name == "Engine" for name in node.names)
            if reaches or imports:
                found.append(f"{path.relative_to(ROOT)}: {ast.unparse(node)}")
    assert found == []


def test_one_place_makes_submits() -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in ROOT.glob("src/linnet/**/*.py")
        if re.search(r"\bSubmit\(", path.read_text(encoding="utf-8"))
    ]
    assert found == ["src/linnet/api/requests.py"]


KINDS_OF_CHECKPOINTS = [f"K{number}" for number in range(1, 19)]
"""Those that strangers tripped over."""


def docstrings_of_tests() -> Iterator[str]:
    for path in ROOT.glob("tests/**/test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.lower().startswith("test"):
                yield ast.get_docstring(node) or ""


def test_every_kind_of_checkpoint_has_a_test_that_names_it() -> None:
    named = {word for said in docstrings_of_tests() for word in re.findall(r"\bK\d+\b", said)}
    assert [kind for kind in KINDS_OF_CHECKPOINTS if kind not in named] == []
