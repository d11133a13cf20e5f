# SPDX-License-Identifier: Apache-2.0
"""``linnet cache clear`` says what is so, also when something cannot be deleted or vanishes meanwhile."""

import os
from pathlib import Path

import pytest

from linnet.cli import caching


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(caching, "_directory", lambda: tmp_path)
    (tmp_path / "tiles").mkdir()
    (tmp_path / "verified").mkdir()
    return tmp_path


def test_what_cannot_be_deleted_is_not_said_to_be_in_use_or_freed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    for path in (folder / "tiles" / "0.tiles", folder / "verified" / "note"):
        path.write_bytes(bytes(1000))
    monkeypatch.setattr(Path, "unlink", refuse)
    caching.clear()
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("cannot be deleted: Permission denied") == 2
    assert "in use" not in said
    assert "0 B freed" in said


@pytest.mark.parametrize("name", ["tokenizers", "verified", "models"])
def test_a_folder_that_is_a_link_keeps_what_it_points_to(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").write_bytes(b"mine")
    (folder / "verified").rmdir()
    (folder / name).symlink_to(elsewhere, target_is_directory=True)
    caching.clear()
    assert (elsewhere / "precious").read_bytes() == b"mine"
    assert "is a link" in capsys.readouterr().out.replace("\n", " ")


def test_files_that_vanish_meanwhile_count_as_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "verified" / "note").write_bytes(bytes(10))
    monkeypatch.setattr(os, "walk", lambda path: [(str(path), ["gone"], ["note", "vanished"])])
    assert caching._bytes(folder / "verified") == 10
