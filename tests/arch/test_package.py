# SPDX-License-Identifier: Apache-2.0
"""What is packed is what is in the repository: a pattern that leaves one folder out must not leave out others."""

import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("src/", "csrc/", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE")
LEFT_OUT = ("tests/", "bench/", "docs/", ".ci/")


def test_the_source_archive_has_every_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel is made of the same list of files."""
    backend = pytest.importorskip("scikit_build_core.build", reason="the dev extra brings what builds the package")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout")
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / backend.build_sdist(str(tmp_path))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in listed.stdout.splitlines() if name.startswith(NEEDED)} - packed == set()
    assert {name for name in packed if name.startswith(LEFT_OUT)} == set()
