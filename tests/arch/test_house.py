# SPDX-License-Identifier: Apache-2.0
"""The house stands as planned: import contracts, lean imports, file budget, licences, no unsafe loading."""

import re
import subprocess
import sys
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
    "module", ["linnet", "linnet.cli.main", "linnet.api", "linnet.evals", "linnet.serve", "linnet.formats", "linnet.plan"]
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


def test_nothing_in_the_package_executes_data() -> None:
    banned = re.compile(r"\bpickle\b|torch\.load\b|(?<![\w.])eval\(|(?<![\w.])exec\(|trust_remote_code")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in ROOT.glob("src/**/*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if banned.search(line) and "never" not in line.lower()
    ]
    assert found == []


def test_only_the_command_line_reads_the_environment() -> None:
    allowed = {"cli", "formats"}  # formats: HF_* of huggingface_hub, in one place
    found = [
        str(path.relative_to(ROOT))
        for path in ROOT.glob("src/linnet/**/*.py")
        if path.relative_to(ROOT / "src/linnet").parts[0] not in allowed
        and re.search(r"os\.environ|os\.getenv", path.read_text(encoding="utf-8"))
    ]
    assert found == []
