# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile: what hadolint says, and what its last stage must have."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) with continued lines joined and comments left out."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(index for index, (name, _) in enumerate(found) if name == "FROM") :]


def test_the_linter_finds_nothing() -> None:
    beside = Path(sys.executable).parent / "hadolint"
    hadolint = str(beside) if beside.is_file() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (the dev extra brings it)")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_last_stage_serves_as_a_plain_user_and_tells_its_health() -> None:
    stage = dict(last_stage())
    assert int(stage["USER"]) > 0
    assert "/health" in stage["HEALTHCHECK"]
    assert stage["ENTRYPOINT"] == '["linnet"]'


def test_nothing_is_compiled_in_an_image() -> None:
    for name, rest in instructions():
        assert not (name == "RUN" and re.search(r"\b(apt-get|apk|gcc|g\+\+|cmake|make)\b", rest)), rest
    copies = [rest for name, rest in instructions() if name == "COPY"]
    assert copies == ["dist/*.whl /wheels/", "--from=install /opt/linnet /opt/linnet"]


def test_only_the_wheel_is_sent_to_the_builder() -> None:
    assert (ROOT / ".dockerignore").read_text(encoding="utf-8").split() == ["*", "!dist/*.whl"]
