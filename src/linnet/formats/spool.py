# SPDX-License-Identifier: Apache-2.0
"""Tensors on their way to a checkpoint: raw pieces on disk and an append-only journal of what is finished.

Order of side effects of a commit: the piece's bytes, fsync of the piece, fsync of its name, one journal line, fsync
of the journal. A piece without a journal line, or half a line, is as if it had never been. A line is
``{"line": ..., "sha256": of the line's JSON}``: any other damage is noticed.
A piece whose tensors lie durably in a file of the result is given up (``placed``: journal line, fsync, unlink), so that
a result is on disk once, and not twice, while it is assembled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, ConfigError
from linnet.formats.dtypes import NUMPY_TO_NAME
from linnet.formats.durable import START_AFRESH, read_errors, sync_directory
from linnet.formats.hashing import sha256
from linnet.formats.header import MAX_NAME_CHARACTERS, METADATA_KEY, TensorInfo
from linnet.formats.mapped_file import map_bytes

JOURNAL_VERSION = 3
JOURNAL_FILE = "journal.jsonl"
PIECES = "pieces"
_WRITE_BYTES = 8 << 20


@dataclass(frozen=True)
class Finished:
    """A tensor in a finished piece, or already where it will be published. ``info.file``: see ``Spool.path_of``."""

    info: TensorInfo
    sha256: str


def read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a journal and how many bytes they take; none if there is no journal.

    CheckpointError, with what to do, if it cannot be read or a whole line is not what was written.
    """
    with read_errors(path, START_AFRESH):
        text = path.read_bytes() if path.exists() else b""
    whole = text[: text.rfind(b"\n") + 1]
    lines = []
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            if entry["sha256"] != sha256(_json_bytes(entry["line"])):
                raise ValueError
            lines.append(entry["line"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise CheckpointError(f"{path}: line {number} is damaged; {START_AFRESH}") from None
    return lines, len(whole)


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Spool:
    """Owns ``journal.jsonl`` and ``pieces/`` in a directory that only this process writes.

    ``resume`` keeps what an interrupted run with the same ``identity`` finished; ConfigError if the identity differs.
    """

    def __init__(self, directory: Path, identity: str, resume: bool) -> None:
        self._directory = directory
        self._journal = directory / JOURNAL_FILE
        self._pieces = directory / PIECES
        self.finished: dict[str, Finished] = {}
        self.notes: list[dict[str, Any]] = []
        self._pending: dict[str, Finished] = {}
        self._piece: BinaryIO | None = None
        self._position = 0
        self._broken = False
        if not (resume and self._load(identity)):
            self._journal.unlink(missing_ok=True)
            shutil.rmtree(self._pieces, ignore_errors=True)
            self._pieces.mkdir()
            self._append({"journal_version": JOURNAL_VERSION, "identity": identity}, "wb")
            sync_directory(directory)

    def path_of(self, file: str) -> Path:
        """Where a file named by ``Finished.info.file`` lies."""
        return self._directory / file

    @property
    def assembled(self) -> bool:
        """Whether some tensors lie in files of the result and nowhere else."""
        return any(not item.info.file.startswith(f"{PIECES}/") for item in self.finished.values())

    def placed(self, piece: str, tensors: Mapping[str, TensorInfo]) -> None:
        """Give up a piece (``info.file``), all of whose tensors now lie durably in files ``tensors`` says, which are
        named relative to the spool's directory."""
        places = {name: [info.file, info.offset] for name, info in tensors.items()}
        self._append({"given_up": piece, "placed": places}, "ab")
        self._move(places)
        self.path_of(piece).unlink()

    def _move(self, places: Mapping[str, Any]) -> None:
        for name, (file, offset) in places.items():
            item = self.finished[name]
            self.finished[name] = replace(item, info=replace(item.info, file=file, offset=offset))

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Append a tensor to the current piece; it counts once ``commit`` returned."""
        if self._broken:
            raise CheckpointError(f"{self._directory}: an earlier write failed, nothing more can be added")
        if not name or len(name) > MAX_NAME_CHARACTERS or name == METADATA_KEY:
            raise ConfigError(f"{name[:200]!r} cannot be a tensor's name")
        if name in self.finished or name in self._pending:
            raise ConfigError(f"tensor {name!r} was already written")
        dtype = NUMPY_TO_NAME.get(array.dtype)
        if dtype is None:
            raise ConfigError(
                f"tensor {name!r}: {array.dtype} cannot be stored; types: {', '.join(NUMPY_TO_NAME.values())}"
            )
        self._broken = True  # until the bytes are out
        if self._piece is None:
            self._piece = open(self.path_of(self._piece_name()), "wb", buffering=0)  # noqa: SIM115
            self._position = 0
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        digest = hashlib.sha256()
        for start in range(0, len(data), _WRITE_BYTES):
            part = data[start : start + _WRITE_BYTES]
            digest.update(part)
            while part:
                part = part[self._piece.write(part) :]
        info = TensorInfo(dtype, array.shape, len(data), self._piece_name(), self._position)
        self._pending[name] = Finished(info, digest.hexdigest())
        self._position += len(data)
        self._broken = False

    def commit(self, note: Mapping[str, Any]) -> None:
        """Make everything added so far durable, with the caller's note."""
        if self._broken:
            raise CheckpointError(f"{self._directory}: an earlier write failed, nothing more can be added")
        self._broken = True
        if self._piece is not None:
            os.fsync(self._piece.fileno())
            self._piece.close()
            self._piece = None
            sync_directory(self._pieces)
        tensors = [
            [name, item.info.dtype, list(item.info.shape), item.info.offset, item.info.nbytes, item.sha256]
            for name, item in self._pending.items()
        ]
        self._append({"piece": self._piece_name(), "tensors": tensors, "note": dict(note)}, "ab")
        self.finished |= self._pending
        self._pending = {}
        self.notes.append(dict(note))
        self._broken = False

    @property
    def pending(self) -> bool:
        """Whether tensors were added since the last commit."""
        return bool(self._pending)

    def close(self) -> None:
        """Drop the unfinished piece's handle."""
        if self._piece is not None:
            self._piece.close()
            self._piece = None

    def _piece_name(self) -> str:
        return f"{PIECES}/{len(self.notes):05d}.bin"

    def _append(self, line: dict[str, Any], mode: str) -> None:
        with open(self._journal, mode) as file:
            text = _json_bytes(line)
            file.write(b'{"line":' + text + b',"sha256":"' + sha256(text).encode() + b'"}\n')
            file.flush()
            os.fsync(file.fileno())

    def _load(self, identity: str) -> bool:
        """Read the journal back; False if there is none. Cuts a half-written last line off."""
        lines, length = read_journal(self._journal)
        if not lines:
            return False
        if lines[0].get("journal_version") != JOURNAL_VERSION or lines[0].get("identity") != identity:
            raise ConfigError(
                f"{self._directory} holds the unfinished output of another run (other model, recipe, settings or "
                f"versions); repeat that run, or {START_AFRESH}"
            )
        if self._journal.stat().st_size != length:
            with open(self._journal, "r+b") as file:
                file.truncate(length)
                os.fsync(file.fileno())
        for line in lines[1:]:
            if "given_up" in line:
                self._move(line["placed"])
                continue
            for name, dtype, shape, offset, nbytes, digest in line["tensors"]:
                self.finished[name] = Finished(TensorInfo(dtype, tuple(shape), nbytes, line["piece"], offset), digest)
            self.notes.append(line["note"])
        self._check_pieces()
        return True

    def _check_pieces(self) -> None:
        """Every finished tensor is still what the journal says; pieces nobody finished are deleted."""
        known = {item.info.file for item in self.finished.values()}
        with read_errors(self._pieces, START_AFRESH):
            present = list(self._pieces.iterdir())
        for path in present:
            if f"{PIECES}/{path.name}" not in known:
                path.unlink()
        by_piece: dict[str, list[tuple[str, Finished]]] = {}
        for name, item in self.finished.items():
            by_piece.setdefault(item.info.file, []).append((name, item))
        for piece, members in by_piece.items():
            path = self.path_of(piece)
            with read_errors(path, START_AFRESH), map_bytes(path) as data:
                for name, item in members:
                    with data[item.info.offset : item.info.offset + item.info.nbytes] as part:
                        whole = len(part) == item.info.nbytes and sha256(part) == item.sha256
                    if not whole:
                        raise CheckpointError(f"{path}: the spooled tensor {name!r} is damaged; {START_AFRESH}")
