# SPDX-License-Identifier: Apache-2.0
"""A model is hashed once and not at every start; whatever was written since is hashed again."""

import time
from pathlib import Path

import pytest
from model_files import write_model

from linnet.errors import CheckpointError
from linnet.formats import Checkpoint, checkpoint, verified


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories that were hashed, in order; the user's cache lies in tmp_path and nothing is too new."""
    seen: list[str] = []
    real = checkpoint.verify

    def noting(directory: Path, *rest: object) -> None:
        seen.append(directory.name)
        real(directory, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "verify", noting)
    monkeypatch.setattr(verified, "SETTLED_S", 0.0)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return seen


def flip(path: Path, at: int = -1) -> None:
    time.sleep(0.05)  # coarser than the clock of any file system here
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_the_second_start_hashes_nothing(tmp_path: Path, hashed: list[str]) -> None:
    for _ in range(3):
        Checkpoint.open(write_model(tmp_path / "a") if not hashed else tmp_path / "a").close()
    assert hashed == ["a"]
    Checkpoint.open(tmp_path / "a", verify=False).close()
    assert hashed == ["a"]
    Checkpoint.open(tmp_path / "a", verify=True).close()
    Checkpoint.open(write_model(tmp_path / "b")).close()
    assert hashed == ["a", "a", "b"]


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json"])
def test_what_was_written_since_is_hashed_and_found(tmp_path: Path, hashed: list[str], name: str) -> None:
    directory = write_model(tmp_path / "a")
    Checkpoint.open(directory).close()
    flip(directory / name)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"damaged|changed since"):
            Checkpoint.open(directory)
    flip(directory / name)
    Checkpoint.open(directory).close()
    Checkpoint.open(directory).close()
    assert hashed == ["a"] * 4


def test_what_is_new_is_not_remembered(tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "SETTLED_S", 3600.0)
    directory = write_model(tmp_path / "a")
    for _ in range(2):
        Checkpoint.open(directory).close()
    assert hashed == ["a", "a"]
    assert not (tmp_path / "home").exists()


def test_a_cache_that_cannot_be_written_is_no_trouble(tmp_path: Path, hashed: list[str]) -> None:
    (tmp_path / "home").write_text("a file where the home should be")
    directory = write_model(tmp_path / "a")
    for _ in range(2):
        Checkpoint.open(directory).close()
    assert hashed == ["a", "a"]
    assert verified.identity([tmp_path / "missing"]) is None
