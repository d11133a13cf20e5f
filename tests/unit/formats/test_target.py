# SPDX-License-Identifier: Apache-2.0
"""Nothing is ever lost: SHA-256 of everything before and after, for every place an output may not or may be written."""

import ctypes
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from model_files import write_model

from linnet.errors import CheckpointError
from linnet.formats import CheckpointWriter
from linnet.formats.target import check_apart, real_target


def tree(directory: Path) -> dict[str, str]:
    """Every file below, links as what they say."""
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("models/original", "the original itself"),
        ("models/original/", "the original itself"),
        ("models/other/../original", "the original itself"),
        ("link/original", "the original itself"),
        ("deep/up/original", "the original itself"),
        ("models", "lies inside it and would be lost"),
        ("models/original/..", "lies inside it and would be lost"),
        (".", "lies inside it and would be lost"),
        ("link/.", "a symbolic link"),
        ("models/original/out", "lies inside the original"),
        ("link/original/a/b", "lies inside the original"),
        ("to-original", "a symbolic link"),
        ("to-original/", "a symbolic link"),
        ("blobs", "is a link into it"),
    ],
)
def test_an_output_that_would_harm_its_source(
    target: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything is touched (K17)."""
    original = write_model(tmp_path / "models" / "original")
    (tmp_path / "models" / "other").mkdir()
    (tmp_path / "blobs").mkdir()
    (original / "generation_config.json").rename(tmp_path / "blobs" / "0")
    (original / "generation_config.json").symlink_to(tmp_path / "blobs" / "0")
    (tmp_path / "link").symlink_to("models")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "up").symlink_to(tmp_path / "models" / "other" / "..")
    (tmp_path / "to-original").symlink_to(original)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    for source in (original, Path("link/original"), Path("to-original")):
        with pytest.raises(CheckpointError, match=reason) as caught:
            check_apart(real_target(target), source)
        assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before
    for harmless in ("out", "models/out", "models/original-w4", "link/new/out", "models/orig"):
        check_apart(real_target(harmless), original)


def test_a_bind_mount_is_seen_through(tmp_path: Path) -> None:
    original = write_model(tmp_path / "models" / "original")
    (tmp_path / "bound").mkdir()
    if subprocess.run(["mount", "--bind", tmp_path / "models", tmp_path / "bound"], capture_output=True).returncode:
        pytest.skip("bind mounts are not permitted here")
    try:
        for target in ("original", "original/out"):
            with pytest.raises(CheckpointError, match="the original"):
                check_apart(real_target(tmp_path / "bound" / target), original)
        with pytest.raises(CheckpointError, match="would be lost"):
            check_apart(tmp_path / "bound", original)
    finally:
        subprocess.run(["umount", tmp_path / "bound"], check=True)


def test_a_mount_point_is_refused_before_hours_of_work() -> None:
    with pytest.raises(CheckpointError, match="a mount point"):
        CheckpointWriter("/proc", overwrite=True)
    with pytest.raises(CheckpointError, match="a mount point"):
        CheckpointWriter("/")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


FOREIGN = {
    "a file": (lambda path: (path / "notes.txt").write_text("mine"), "notes.txt"),
    "a hidden file": (lambda path: (path / ".env").write_text("mine"), ".env"),
    "a folder": (lambda path: (path / "thesis").mkdir(), "thesis"),
    "a link": (lambda path: (path / "elsewhere").symlink_to("/etc"), "elsewhere"),
    "a link by a known name": (
        lambda path: [
            (path / "generation_config.json").rename(path / "x"),
            (path / "generation_config.json").symlink_to("x"),
        ],
        "generation_config.json, x",
    ),
    "an edited config": (lambda path: (path / "config.json").write_text("{}"), "config.json"),
    "changed weights": (lambda path: damage(path / "model.safetensors"), "model.safetensors"),
    "weights under another name": (
        lambda path: (path / "best.safetensors").write_bytes((path / "model.safetensors").read_bytes()),
        "best.safetensors",
    ),
    "notes named like a certificate": (
        lambda path: (path / "loss_certificate_notes.txt").write_text(""),
        "loss_certificate_notes.txt",
    ),
    "many": (lambda path: [(path / f"f{i}").write_text("") for i in range(8)], "f0, f1, f2, f3, f4 and 3 more"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_a_manifest_does_not_list_is_named_and_kept(case: str, tmp_path: Path) -> None:
    """Only what Linnet wrote is replaced (K17)."""
    put, named = FOREIGN[case]
    target = write_model(tmp_path / "out")
    put(target)
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match="kept as it is") as caught:
        CheckpointWriter(target, overwrite=True)
    assert f": {named}; move that elsewhere" in str(caught.value)
    assert tree(tmp_path) == before


def test_a_model_of_another_program_is_never_overwritten(tmp_path: Path) -> None:
    target = write_model(tmp_path / "out")
    (target / "linnet_manifest.json").unlink()
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match=r"Linnet did not write it \(no linnet_manifest.json\)"):
        CheckpointWriter(target, overwrite=True)
    assert tree(tmp_path) == before


def test_an_unchanged_result_with_shards_and_certificate_is_replaced(tmp_path: Path) -> None:
    target = write_model(tmp_path / "out", shard_bytes=9000)
    (target / "loss_certificate.json").write_text("{}")
    write_model(target, "W8A16", overwrite=True)
    write_model(tmp_path / "fresh", "W8A16")
    assert tree(target) == tree(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out"]


def test_what_appears_while_it_is_published_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import linnet.formats.writer as writer

    target = write_model(tmp_path / "out")
    publish = writer.publish_directory

    def late(source: Path, goal: Path, replace: bool) -> None:
        (goal / "late.txt").write_text("mine")
        publish(source, goal, replace)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "publish_directory", late)
        write_model(target, "W8A16", overwrite=True)
    write_model(tmp_path / "fresh", "W8A16")
    assert tree(target) == tree(tmp_path / "fresh")
    assert (tmp_path / "out.kept-1" / "late.txt").read_text() == "mine"


@pytest.mark.parametrize("strange", ["symlink", "content", "file"])
def test_a_directory_by_the_name_of_the_unfinished_output(strange: str, tmp_path: Path) -> None:
    partial = tmp_path / ".out.linnet-partial"
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "summer.jpg").write_bytes(b"sea")
    if strange == "symlink":
        partial.symlink_to(photos)
    elif strange == "file":
        partial.write_text("mine")
    else:
        photos.rename(partial)
    before = tree(tmp_path)
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=r"Linnet did not"):
            CheckpointWriter(tmp_path / "out", resume=resume)
    assert tree(tmp_path) == before


KILLED = """
    import ctypes, os, signal, sys
    from pathlib import Path
    import linnet.formats.durable as durable
    import linnet.formats.writer as writer
    from model_files import write_model
    point, exchange = int(sys.argv[2]), sys.argv[3] == "True"
    if not exchange:
        durable._exchange = lambda one, other: False
    calls = 0
    def counted(call):
        def counting(*arguments, **options):
            global calls
            if calls == point:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return call(*arguments, **options)
        return counting
    os.rename, os.unlink = counted(os.rename), counted(os.unlink)
    durable._exchange, writer.publish_directory = counted(durable._exchange), counted(writer.publish_directory)
    writer.write_shards, writer.remove_replaced = counted(writer.write_shards), counted(writer.remove_replaced)
    write_model(Path(sys.argv[1]), "W8A16", overwrite=True, resume=True)
    print(calls)
"""


def killed(target: Path, point: int, exchange: bool) -> subprocess.CompletedProcess[str]:
    search = [str(Path(__file__).parent), *[path for path in sys.path if path]]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(target), str(point), str(exchange)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("exchange", [True, False])
def test_killed_at_every_step_of_publishing_the_old_or_the_new_result_is_whole(exchange: bool, tmp_path: Path) -> None:
    old = tree(write_model(tmp_path / "old"))
    new = tree(write_model(tmp_path / "new", "W8A16"))
    between = 0
    for point in range(40):
        place = tmp_path / str(point)
        target = write_model(place / "out")
        done = killed(target, point, exchange)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        if not target.exists():  # between two renames: whatever is asked next puts the old result back first
            between += 1
            assert tree(place / ".out.linnet-partial" / "replaced") == old
            with pytest.raises(CheckpointError, match="exists and is not empty"):
                CheckpointWriter(target)
        assert tree(target) in (old, new)
        CheckpointWriter(target, overwrite=True).abandon()
        assert tree(target) in (old, new)
        write_model(target, "W8A16", overwrite=True)
        assert tree(target) == new
        assert [path.name for path in place.iterdir()] == ["out"]
    else:
        pytest.fail("never finished")
    assert point > 3
    assert between == (0 if exchange else 1)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_result(
    failing: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_model(tmp_path / "out")
    before = tree(target)
    rename, calls = os.rename, 0

    def fail(one: Path, other: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(code, os.strerror(code))
        rename(one, other)

    monkeypatch.setattr("linnet.formats.durable._exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(CheckpointError, match=os.strerror(code)):
        write_model(target, "W8A16", overwrite=True)
    assert tree(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_exchange_that_fails_is_not_tried_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def renameat2(*arguments: object) -> int:
            ctypes.set_errno(errno.EIO)
            return -1

    target = write_model(tmp_path / "out")
    before = tree(target)
    monkeypatch.setattr("ctypes.CDLL", lambda *arguments, **options: Library)
    with pytest.raises(CheckpointError, match="Input/output error"):
        write_model(target, "W8A16", overwrite=True)
    assert tree(target) == before


def test_a_manifest_with_a_strange_record_is_damaged(tmp_path: Path) -> None:
    target = write_model(tmp_path / "out")
    path = target / "linnet_manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"record": ["compressed"]}))
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match=r"linnet_manifest\.json: its record must be an object"):
        CheckpointWriter(target, overwrite=True)
    assert tree(tmp_path) == before
