# SPDX-License-Identifier: Apache-2.0
"""The tile cache: same bits, written once, then mapped; anything it depends on makes another; trouble means none."""

import errno
import gc
import json
import os
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from linnet.backends.cpu import _native, tile_cache, tile_files
from linnet.backends.cpu.backend import CpuBackend, CpuExecutable
from linnet.backends.cpu.tile_cache import TileCache
from linnet.backends.interface import Batch, Limits
from linnet.formats.durable import DirectoryLock

LIMITS = Limits(64, 1, 64, 16, 4)
TOKENS = np.arange(50, dtype=np.int32)


class Stamped:
    """A source whose files are said to be in ``state``."""

    def __init__(self, source: object, state: str = "one", place: str = __file__) -> None:
        self._source, self.state, self.place, self.released = source, state, place, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)

    def weight(self, ref: object) -> object:
        return self._source.weight(ref)  # type: ignore[attr-defined]

    def stamp(self) -> tuple[str, str]:
        return self.place, self.state

    def release(self) -> None:
        self.released += 1


def prepare(source: object, cache: TileCache | None, isa: str | None = None, policy: str = "fast") -> CpuExecutable:
    return CpuBackend(2, isa, cache).prepare(source, policy, LIMITS)  # type: ignore[arg-type]


def logits(model: CpuExecutable) -> bytes:
    rows = np.arange(len(TOKENS), dtype=np.int32)
    table = np.arange(4, dtype=np.int32)[None].copy()
    ends = np.array([0, len(TOKENS)], np.int32)
    model.execute(Batch(TOKENS, rows, rows, ends, ends[1:].copy(), table, rows), model.allocate_states(4))
    return model.logits().tobytes()


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("storage", ["W4A16-g32", "W4A16-g32-asym", "W4A16-g32-head4", "W8A16", "W8A16-head8", "W8A8"])
def test_tiles_change_no_bit(random_model: Callable[..., object], tmp_path: Path, storage: str, isa: str) -> None:
    source = Stamped(random_model("llama", storage, 3))
    expected = logits(prepare(source, None, isa))
    for _ in ("written", "mapped"):
        model = prepare(source, TileCache(tmp_path, 1), isa)
        assert model.tile_bytes > 0
        assert logits(model) == expected
    assert [path.name for path in tmp_path.iterdir()] == [next(tmp_path.iterdir()).name]


WIDE = {"hidden_size": 256, "intermediate_size": 512}
"""Whole super groups of GGUF's blocks."""


@pytest.mark.parametrize("policy", ["fast", "exact"])
@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("storage", ["gguf:Q4_K", "gguf:Q6_K", "gguf:Q5_1", "gguf:Q8_0"])
def test_what_is_read_as_tiles_only_has_them_mapped_or_in_memory(
    random_model: Callable[..., object], tmp_path: Path, storage: str, isa: str, policy: str
) -> None:
    source = Stamped(random_model("llama", storage, 3, WIDE))
    in_memory = prepare(source, None, isa, policy)
    expected = logits(in_memory)
    assert in_memory.tile_bytes > 0
    assert in_memory.mapped == ()
    assert source.released > 0
    small = prepare(source, TileCache(tmp_path), isa, policy)  # smaller than what is written
    assert (small.tile_bytes, os.listdir(tmp_path)) == (in_memory.tile_bytes, [])
    for _ in ("written", "mapped"):
        model = prepare(source, TileCache(tmp_path, 1), isa, policy)
        assert model.tile_bytes >= in_memory.tile_bytes
        assert logits(model) == expected
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("storage", ["W4A16-g32-head8", "W4A16-g32-head4"])
def test_a_tied_embedding_is_looked_up_in_the_head_s_tiles(
    random_model: Callable[..., object], tmp_path: Path, storage: str, isa: str
) -> None:
    tied, apart = (Stamped(random_model("llama", storage, 3, {"tie_word_embeddings": tie})) for tie in (True, False))
    expected = logits(prepare(tied, None, isa))
    assert logits(prepare(tied, TileCache(tmp_path / "tied", 1), isa)) == expected
    files = [sorted(os.listdir(tmp_path / "tied"))]
    prepare(apart, TileCache(tmp_path / "apart", 1), isa)
    files.append(sorted(os.listdir(tmp_path / "apart")))
    sizes = [
        (tmp_path / folder / names[0]).stat().st_size for folder, names in zip(("tied", "apart"), files, strict=True)
    ]
    assert sizes[0] == sizes[1]  # an embedding of its own has no tiles


def test_a_file_is_written_once_and_again_when_the_model_changes(
    random_model: Callable[..., object], tmp_path: Path
) -> None:
    source = Stamped(random_model("llama", "W4A16-g32", 3))
    prepare(source, TileCache(tmp_path, 1))
    (path,) = tmp_path.iterdir()
    first = path.stat().st_ino
    prepare(source, TileCache(tmp_path, 1))
    assert path.stat().st_ino == first
    changed = Stamped(random_model("llama", "W4A16-g32", 4), "two")
    assert logits(prepare(changed, TileCache(tmp_path, 1))) == logits(prepare(changed, None))
    assert path.stat().st_ino != first
    path.write_bytes(path.read_bytes()[:-1])  # cut short
    assert logits(prepare(changed, TileCache(tmp_path, 1))) == logits(prepare(changed, None))


def test_small_models_dense_models_and_exact_numerics_have_none(
    random_model: Callable[..., object], tmp_path: Path
) -> None:
    quantised = Stamped(random_model("llama", "W4A16-g32", 3))
    assert prepare(quantised, TileCache(tmp_path / "cache")).tile_bytes == 0
    assert prepare(quantised, TileCache(tmp_path / "cache", 1), policy="exact").tile_bytes == 0
    assert prepare(Stamped(random_model("llama", "bf16", 3)), TileCache(tmp_path / "cache", 1)).tile_bytes == 0
    assert not (tmp_path / "cache").exists()


def test_trouble_means_the_stored_order(
    random_model: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Stamped(random_model("llama", "W4A16-g32", 3))
    expected = logits(prepare(source, None))

    (tmp_path / "file").write_text("in the way")
    assert logits(prepare(source, TileCache(tmp_path / "file" / "cache", 1))) == expected

    busy = tmp_path / "busy"
    prepare(source, TileCache(busy, 1))
    (path,) = busy.iterdir()
    path.unlink()
    writer = DirectoryLock(path.with_suffix(".partial"), path)
    (path.with_suffix(".partial") / "tiles").write_text("half")
    model = prepare(source, TileCache(busy, 1))
    assert model.tile_bytes == 0
    assert logits(model) == expected
    writer.release(remove=False)
    assert prepare(source, TileCache(busy, 1)).tile_bytes > 0  # what a killed writer leaves is taken over
    assert os.listdir(busy) == [path.name]

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(tile_cache.shutil, "disk_usage", lambda _: usage(100, 99, 1))
    assert prepare(source, TileCache(tmp_path / "full", 1)).tile_bytes == 0
    assert os.listdir(tmp_path / "full") == []


def test_a_failed_write_leaves_nothing(
    random_model: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tile_cache.os, "pwrite", fail)
    assert prepare(Stamped(random_model("llama", "W8A16", 3)), TileCache(tmp_path, 1)).tile_bytes == 0
    assert os.listdir(tmp_path) == []


def test_tiles_go_when_their_checkpoint_is_gone_and_nobody_uses_them(
    random_model: Callable[..., object], tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("kept", "gone", "used")}
    for folder in folders.values():
        folder.mkdir()
    cache = TileCache(tmp_path / "cache", 1)
    model = random_model("llama", "W4A16-g32", 3)
    alive = [prepare(Stamped(model, place=str(folders[name])), cache) for name in ("used",)]
    for name in ("kept", "gone"):
        prepare(Stamped(model, place=str(folders[name])), cache)

    def stored() -> set[str]:
        return {str(file.checkpoint.name) for file in tile_files.tile_files(cache.directory) if file.checkpoint}

    gc.collect()
    assert stored() == set(folders)
    for name in ("gone", "used"):
        folders[name].rmdir()
    (cache.directory / "of-the-killed.partial").mkdir()
    prepare(Stamped(model), cache)
    gc.collect()
    assert stored() == {"kept", "used", Path(__file__).name}
    assert not list(cache.directory.glob("*.partial"))
    assert logits(alive.pop()) == logits(prepare(Stamped(model), None))
    gc.collect()
    tile_files.prune(cache.directory)
    assert stored() == {"kept", Path(__file__).name}


def test_a_file_says_what_it_is_and_when_it_was_used(random_model: Callable[..., object], tmp_path: Path) -> None:
    isa = _native.available_isas()[-1]
    source = Stamped(random_model("llama", "W4A16-g32", 3))
    prepare(source, TileCache(tmp_path, 1), isa)
    assert source.released > 7  # once for every linear
    (file,) = tile_files.tile_files(tmp_path)
    assert (file.checkpoint, file.isa, file.nbytes) == (Path(__file__), isa, file.path.stat().st_size)
    os.utime(file.path, (0, 0))
    prepare(source, TileCache(tmp_path, 1), isa)
    assert tile_files.tile_files(tmp_path)[0].used_s > 1e9
    file.path.write_bytes(b"what is this")
    (damaged,) = tile_files.tile_files(tmp_path)
    assert (damaged.checkpoint, damaged.orphaned) == (None, False)
    gc.collect()
    assert damaged.remove()
    assert not tile_files.tile_files(tmp_path)


def test_a_path_too_long_for_the_first_page_is_left_out() -> None:
    header = {"isa": "portable", "checkpoint": "x" * 5000}
    first, other = (tile_files.page(header | {"checkpoint": mark * 5000}, []) for mark in "xy")
    assert len(first) == tile_files.HEADER_BYTES
    assert first != other
    assert json.loads(first) == {"checkpoint": None, "isa": "portable", "sha256": json.loads(first)["sha256"]}


@pytest.mark.parametrize(
    ("error", "gone"),
    [(errno.ENOENT, True), (errno.ENOTDIR, True), (errno.EACCES, False), (errno.ESTALE, False), (errno.EIO, False)],
)
def test_only_a_checkpoint_known_to_be_gone_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, gone: bool
) -> None:
    path, checkpoint = tmp_path / "0-portable.tiles", tmp_path / "checkpoint"
    path.write_bytes(tile_files.page({"format_version": tile_files.FORMAT_VERSION, "checkpoint": str(checkpoint)}, []))
    found = os.stat

    def stat(name: object, **options: object) -> os.stat_result:
        if name == checkpoint:
            raise OSError(error, os.strerror(error))
        return found(name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat)
    assert [file.orphaned for file in tile_files.tile_files(tmp_path)] == [gone]
    tile_files.prune(tmp_path)
    assert path.exists() != gone


def test_tiles_in_an_older_format_go_unless_somebody_uses_them(tmp_path: Path) -> None:
    for version in (tile_files.FORMAT_VERSION - 1, tile_files.FORMAT_VERSION, tile_files.FORMAT_VERSION + 1):
        content = tile_files.page({"format_version": version, "checkpoint": str(tmp_path)}, [])
        (tmp_path / f"{version}.tiles").write_bytes(content + bytes(4096))
    old = tmp_path / f"{tile_files.FORMAT_VERSION - 1}.tiles"
    mapped = tile_files.map_tiles(old, old.read_bytes()[: tile_files.HEADER_BYTES], 4096)
    tile_files.prune(tmp_path)
    assert old.exists()
    del mapped
    gc.collect()
    tile_files.prune(tmp_path)
    assert not old.exists()
    assert len(tile_files.tile_files(tmp_path)) == 2


def test_a_file_that_must_not_be_deleted_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / f"{name}.tiles").write_bytes(tile_files.page({"checkpoint": str(tmp_path / "gone")}, []))
    unlink = Path.unlink

    def refuse(path: Path) -> None:
        if path.name == "a.tiles":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path)

    monkeypatch.setattr(Path, "unlink", refuse)
    tile_files.prune(tmp_path)
    (left,) = tile_files.tile_files(tmp_path)
    assert left.path.name == "a.tiles"
    with pytest.raises(PermissionError):
        left.remove()
