# SPDX-License-Identifier: Apache-2.0
"""Where swapped blocks lie: memory, a file that nobody sees, or one that is kept for the next engine."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from linnet.engine import StorePlace, block_store
from linnet.engine.block_store import KEPT_NAME, BlockStore
from linnet.errors import CapacityError, ConfigError

DIGESTS = [bytes([index] * 31 + [0]) for index in range(1, 4)]


def kept(directory: Path, identity: str = "a model") -> StorePlace:
    return StorePlace(directory, identity)


def left_with(directory: Path) -> Path:
    """A kept file with three blocks."""
    store = BlockStore(kept(directory), 3, 100)
    for slot in range(3):
        store.memory[slot] = slot + 1
    store.save([(digest, slot) for slot, digest in enumerate(DIGESTS)])
    store.close()
    return directory / KEPT_NAME


def found(directory: Path, identity: str = "a model", slots: int = 3) -> list[tuple[bytes, int]]:
    """What the next process finds, which leaves it as it was."""
    store = BlockStore(kept(directory, identity), slots, 100)
    store.save(store.index)
    store.close()
    return list(store.index)


@pytest.mark.parametrize("in_file", [False, True])
def test_slots_hold_what_is_written_and_nothing_is_seen_of_it(tmp_path: Path, in_file: bool) -> None:
    store = BlockStore(StorePlace(tmp_path if in_file else None), 3, 100)
    assert store.memory.shape == (3, 100)
    store.memory[1] = np.arange(100)
    assert store.memory[1].tolist() == list(range(100))
    assert (store.memory[[0, 2]] == 0).all()
    assert store.index == ()
    assert list(tmp_path.iterdir()) == []
    store.close()
    store.close()


def test_a_file_system_without_nameless_files_shows_none_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no")
        return real(path, flags, *rest)

    monkeypatch.setattr(block_store.os, "open", refuse)
    store = BlockStore(StorePlace(tmp_path), 3, 100)
    store.memory[:] = 7
    assert list(tmp_path.iterdir()) == []
    store.close()


def test_nothing_is_left_of_a_process_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from linnet.engine import StorePlace\n"
        "from linnet.engine.block_store import BlockStore\n"
        "store = BlockStore(StorePlace(Path(sys.argv[1])), 8, 4096); store.memory[:] = 1\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(block_store.os, "posix_fallocate", full)
    for blocks, mebibytes in ((3, "3"), (1 << 26, "67,108,864")):  # the second is not even tried
        with pytest.raises(
            CapacityError, match=rf"a file of {mebibytes} MiB is asked for and [\d,]+ MiB are free; ask"
        ):
            BlockStore(StorePlace(tmp_path), blocks, 1 << 20)
        monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere, where no file can be written: No such file"):
        BlockStore(StorePlace(tmp_path / "nowhere"), 3, 100)


def test_a_kept_file_has_its_blocks_when_it_was_left_in_order(tmp_path: Path) -> None:
    store = BlockStore(kept(tmp_path), 300, 1000)
    for slot in range(3):
        store.memory[slot + 5] = slot + 1
    index = [(digest, slot + 5) for slot, digest in enumerate(DIGESTS)][::-1]
    store.save(index)
    store.close()
    assert (tmp_path / KEPT_NAME).stat().st_mode & 0o777 == 0o600
    again = BlockStore(kept(tmp_path), 300, 1000)
    assert list(again.index) == index
    assert again.memory[5:8, 0].tolist() == [1, 2, 3]
    again.close()  # without save: a crash
    assert BlockStore(kept(tmp_path), 300, 1000).index == ()


def test_a_kept_file_is_one_engine_s(tmp_path: Path) -> None:
    first = BlockStore(kept(tmp_path), 3, 100)
    with pytest.raises(ConfigError, match="in use by another process"):
        BlockStore(kept(tmp_path), 3, 100)
    first.close()
    BlockStore(kept(tmp_path), 3, 100).close()


@pytest.mark.parametrize(
    ("identity", "slots", "message"),
    [("another", 3, "of another model, KV type or build"), ("a model", 4, "of another size")],
)
def test_what_a_file_of_something_else_holds_is_forgotten(
    tmp_path: Path, identity: str, slots: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    left_with(tmp_path)
    assert found(tmp_path, identity, slots) == []
    assert [one.getMessage().split(" holds ")[1] for one in caplog.records] == [
        f"blocks {message}; they are forgotten and will be computed again"
    ]
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"", b"my diary", b"{}", b"[1]", b"\xff" * 5000, b"[" * 5000, b'{"magic": "linnet block store 2"}']
)
def test_a_file_that_cannot_be_read_is_begun_anew(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / KEPT_NAME).write_bytes(content)
    assert found(tmp_path) == []
    assert len(caplog.records) == (1 if content else 0)
    left_with(tmp_path)
    assert len(found(tmp_path)) == 3


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_block_is_not_there(tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Wherever bytes were changed: what is found is what was left, and the log says once what is not."""
    rng = Random(seed)
    path = left_with(tmp_path)
    content = bytearray(path.read_bytes())
    size = len(content)
    before = dict(zip(DIGESTS, range(3), strict=True))
    for _ in range(rng.randrange(1, 3)):
        part = rng.choice([range(120), range(4096, 4096 + 3 * 56), range(size - 300, size)])
        content[rng.choice(part)] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    store = BlockStore(kept(tmp_path), 3, 100)
    assert set(store.index) <= set(before.items())
    assert all((store.memory[slot] == slot + 1).all() for _, slot in store.index)
    assert len(store.index) < 3
    assert len(caplog.records) == 1


@pytest.mark.parametrize("length", [1, 4095, 4096, 5000, 8191, 8192, 8491])
def test_a_file_that_was_cut_off_is_begun_anew(tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture) -> None:
    path = left_with(tmp_path)
    assert path.stat().st_size == 8492
    os.truncate(path, length)
    assert found(tmp_path) == []
    assert len(caplog.records) == 1


def test_a_link_and_a_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / KEPT_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="no file can be written"):
        BlockStore(kept(tmp_path), 3, 100)
    (tmp_path / KEPT_NAME).unlink()
    os.mkfifo(tmp_path / KEPT_NAME)
    with pytest.raises(ConfigError, match="no regular file"):
        BlockStore(kept(tmp_path), 3, 100)


def test_two_names_of_one_slot_are_one(tmp_path: Path) -> None:
    store = BlockStore(kept(tmp_path), 3, 100)
    store.save([(DIGESTS[0], 1), (DIGESTS[1], 1)])
    store.close()
    assert list(BlockStore(kept(tmp_path), 3, 100).index) == [(DIGESTS[0], 1)]
