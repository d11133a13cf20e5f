# SPDX-License-Identifier: Apache-2.0
"""The wheel that `make wheel` built installs where no compiler is, and what is installed runs."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel() -> Path:
    built = sorted(ROOT.glob(f"dist/linnet-*-{TAG}-manylinux_*.whl"), key=lambda path: path.stat().st_mtime)
    if not built:
        pytest.skip(f"dist/ has no manylinux wheel for {TAG}: make wheel builds one")
    return built[-1]


def test_it_has_kernels_types_and_the_bundled_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"linnet/py.typed", "linnet/backends/cpu/_native.pyi", "linnet/demo/model/model.safetensors"} <= names
    assert any(name.startswith("linnet/backends/cpu/_native.") and name.endswith(".so") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "csrc/"))]


def test_it_installs_and_runs_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    binaries = tmp_path / "venv" / "bin"
    alone = {**os.environ, "PATH": str(binaries), "HOME": str(tmp_path)}
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "CXX", "CC"):
        alone.pop(name, None)

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(binaries / command[0]), *command[1:]], env=alone, cwd=tmp_path, capture_output=True, text=True,
            check=False, timeout=600,
        )  # fmt: skip
        if done.returncode and re.search("Name or service not known|new connection|timed out", done.stderr):
            pytest.skip("the package index cannot be reached")
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = ("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:")
    run(*pip, str(wheel))
    model = run("python", "-c", "from linnet import demo; print(demo.model_directory())").strip()
    assert model.startswith(str(tmp_path))
    assert re.search(r"^kernel tiers +.*portable", run("linnet", "env"), re.MULTILINE)
    assert run("linnet", "generate", model, "Once upon a time", "--max-tokens", "8", "--backend", "cpu").strip()
