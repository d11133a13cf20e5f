# SPDX-License-Identifier: Apache-2.0
"""Which files are read anew, and that nothing of them changes. Whether pages become large is the system's business."""

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from linnet.formats import large_pages
from linnet.formats.large_pages import LARGE_PAGE, SMALLEST_BYTES, WINDOWS, read_in_large_pages


@pytest.fixture
def mapped(tmp_path: Path) -> tuple[np.ndarray, Path]:
    """A file just large enough to matter, in the page cache a small page at a time."""
    path = tmp_path / "weights"
    path.write_bytes(np.random.default_rng(0).bytes(1 << 20) * (SMALLEST_BYTES >> 20) + b"end")
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        while file.raw.read(4096):
            pass
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8), path


def test_a_file_is_read_anew_at_most_once_and_stays_what_it_is(mapped: tuple[np.ndarray, Path]) -> None:
    array, path = mapped
    before = bytes(array)
    anew = read_in_large_pages(array, path)
    assert bytes(array) == before == path.read_bytes()
    if anew:
        assert large_pages.mapped_large(array) > 0
        assert not read_in_large_pages(array, path)


@pytest.mark.parametrize(
    ("found", "anew", "forgotten"),
    [
        ([WINDOWS], False, 0),
        ([0, 0], False, WINDOWS),  # the file system has no large pages: only what was tried is read anew
        ([0, WINDOWS], True, WINDOWS + 1),
        ([WINDOWS // 2 - 1, WINDOWS], True, WINDOWS + 1),
    ],
)
def test_what_is_forgotten(
    mapped: tuple[np.ndarray, Path], monkeypatch: pytest.MonkeyPatch, found: list[int], anew: bool, forgotten: int
) -> None:
    array, path = mapped
    asked: list[tuple[int, int]] = []
    answers = iter(found)
    monkeypatch.setattr(large_pages, "mapped_large", lambda _: next(answers))
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, advice: asked.append((start, length)))
    assert read_in_large_pages(array, path) is anew
    assert len(asked) == forgotten
    assert asked[:WINDOWS] == [(i * SMALLEST_BYTES // WINDOWS, LARGE_PAGE) for i in range(WINDOWS)][:forgotten]
    assert asked[WINDOWS:] == ([(0, 0)] if anew else [])


def test_small_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"x" * 4096)
    assert not read_in_large_pages(np.memmap(path, np.uint8, "r"), path)
