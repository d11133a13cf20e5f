# SPDX-License-Identifier: Apache-2.0
"""Asks a program that lives in an environment of its own, once for all cases of a file of tests that run."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

Make = TypeVar("Make")


def chosen_cases(
    request: pytest.FixtureRequest, cases: Mapping[str, Make], folder: Path
) -> Iterator[tuple[str, Make, Path]]:
    """The cases (parameter ``name``) that this run asks for, and a new folder for each."""
    chosen = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    for number, (name, make) in enumerate(cases.items()):
        if name in chosen:
            inside = folder / str(number)
            inside.mkdir()
            yield name, make, inside


def answers_to(questions: Mapping[str, Any], python: str, script: str, folder: Path, limit_s: int) -> dict[str, Any]:
    """What the ``script`` beside this file, run by another interpreter, answers."""
    (folder / "questions.json").write_text(json.dumps(questions))
    path = Path(__file__).with_name(script)
    command = [python, str(path), str(folder / "questions.json"), str(folder / "answers.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    answers: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    return answers
