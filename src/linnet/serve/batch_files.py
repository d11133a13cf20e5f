# SPDX-License-Identifier: Apache-2.0
"""The two files of a batch: requests, one JSON object a line, and answers, which survive whatever ends the process.

An answer is one line that is appended to ``OUT.partial`` as a whole. Its id is a digest of its request, of the line
that it stands on and of the model, so a run that begins again knows by the ids alone what has been answered, and a file
of other requests or of another model is told from it. A line that a kill cut off is forgotten and asked again. When all
are there they are written in the order of the requests, and the file gets its name by one rename.
"""

import fcntl
import hashlib
import json
import os
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from linnet.errors import ConfigError, LinnetError, machine_sentence
from linnet.serve.answers import encode

PARTIAL = ".partial"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the requests' file. number: from 1. content: None where it is longer than is read."""

    number: int
    identity: str
    content: bytes | None


class Requests:
    """The lines of a file that are not blank, each with its identity. Raises ConfigError for a file that is none."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path, self._most = path, most_bytes
        try:
            if path.is_dir():
                raise ConfigError(f"{path} is a folder; accepted is a file with one request a line")
            with path.open("rb") as file:
                empty = not any(part.strip() for part in iter(partial(file.read, _CHUNK_BYTES), b""))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
        if empty:
            raise ConfigError(f"{path} holds no request; accepted is one JSON object a line")

    def lines(self, model: str) -> Iterator[Line]:
        """In their order, one in memory at a time. ``model``: says which one answers them."""
        with self.path.open("rb") as file:
            number = 0
            while content := file.readline(self._most + 1):
                number += 1
                if number == 1:
                    content = content.removeprefix(BOM_UTF8)
                digest = hashlib.sha256(f"{model}\n{number}\n".encode())
                digest.update(content.rstrip(b"\r\n"))
                whole = len(content) <= self._most
                while not whole and not content.endswith(b"\n") and (content := file.readline(_CHUNK_BYTES)):
                    digest.update(content.rstrip(b"\r\n"))
                if whole and not content.strip():
                    continue
                yield Line(number, f"batch_req_{digest.hexdigest()[:32]}", content if whole else None)


class Answers:
    """``OUT.partial`` while the body of ``with`` runs, for one process at a time. Raises ConfigError."""

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, path.with_name(path.name + PARTIAL)
        self._places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> "Answers":
        if self.path.exists():
            raise ConfigError(f"{self.path} exists already; give another name, or remove it to answer all again")
        try:
            self._file = self.partial.open("a+b")
        except OSError as error:
            raise ConfigError(f"{self.partial} cannot be written: {error.strerror or error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(f"{self.partial} is being written by another linnet batch") from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        with suppress(OSError):
            if not self._places and self.partial.stat().st_size == 0:
                self.partial.unlink()  # nothing was begun

    def __contains__(self, identity: str) -> bool:
        return identity in self._places

    def __len__(self) -> int:
        return len(self._places)

    def check(self, asked: Sequence[str]) -> None:
        """Every answer is one of these requests'. Raises ConfigError."""
        if not set(self._places) <= set(asked):
            raise ConfigError(
                f"{self.partial} has answers to other requests, or of another model; remove it to begin again, or give "
                "another -o"
            )

    def add(self, record: dict[str, Any]) -> None:
        """One answer, whole or not there. Raises LinnetError where the disk is full."""
        line = encode(record) + b"\n"
        place = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise LinnetError(f"{self.partial} cannot be written: {machine_sentence(error)}") from None
        self._places[str(record["id"])] = (place, len(line))

    def publish(self, order: Sequence[str]) -> None:
        """All are there: in this order under the file's name, by one rename. Raises LinnetError."""
        new = self.path.with_name(self.path.name + ".new")
        try:
            with new.open("wb") as file:
                for identity in order:
                    place, size = self._places[identity]
                    self._file.seek(place)
                    file.write(self._file.read(size))
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
            self.partial.unlink()
        except OSError as error:
            raise LinnetError(f"{self.path} cannot be written: {machine_sentence(error)}") from None

    def _read(self) -> None:
        """What an earlier run has written; a last line without its end is cut off."""
        self._file.seek(0)
        place = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                identity = json.loads(line)["id"]
            except (ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"{self.partial} is no file of answers (byte {place}); remove it, or give another -o"
                ) from None
            self._places[str(identity)] = (place, len(line))
            place += len(line)
        self._file.truncate(place)
