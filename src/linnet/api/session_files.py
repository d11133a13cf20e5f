# SPDX-License-Identifier: Apache-2.0
"""Sessions in a folder, one file each, so that they outlive the process that serves them.

A file has its name only when it is whole. Names are digests: neither tenant nor id can be read from them, nor lead
anywhere else. The folder also holds the secret that tenants are told apart by, and is locked by the process that uses
it. What cannot be written is logged; the conversation goes on in memory.
"""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from linnet.api.sessions import NAME, Form, Session
from linnet.errors import ConfigError
from linnet.formats.durable import DirectoryLock, sync_directory, write_durable

logger = logging.getLogger(__name__)

SUFFIX = ".json"
UNFINISHED = ".partial"
SECRET_BYTES = 32


VERSION = 1
CONTENTS: Mapping[Form, Any] = {"messages": tuple[dict[str, Any], ...], "text": str, "token_ids": tuple[int, ...]}
"""What a session holds, by its form: the types that a file's content must have."""

_FIELDS = get_type_hints(Session) | {"content": Any}
_File: Any = msgspec.defstruct(
    "_File", [("version", int), ("model", str), *_FIELDS.items()], frozen=True, forbid_unknown_fields=True
)
"""What a file holds: a session, and the name that its model was served under."""


class SessionFiles:
    """An Archive in a folder that one process holds at a time."""

    def __init__(self, directory: Path, model: str, vocabulary_size: int) -> None:
        """Make and lock the folder, for the sessions of the model served as ``model``. Raises ConfigError, and
        CheckpointError where another process uses it."""
        self._directory, self._model, self._vocabulary_size = directory, model, vocabulary_size
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = DirectoryLock(directory, directory)
            for unfinished in directory.glob(f"*{UNFINISHED}"):  # of a process that ended while it wrote
                unfinished.unlink()
            self.secret = self._read_secret()
        except OSError as error:
            raise ConfigError(
                f"session_dir {directory} cannot be used: {error.strerror or error}; accepted is a folder to write in",
                settings=["session_dir"],
            ) from None

    def close(self) -> None:
        """Unlock the folder."""
        self._lock.release(remove=False)

    def save(self, session: Session) -> None:
        """Write or replace its file."""
        file = _File(VERSION, self._model, *(getattr(session, name) for name in _FIELDS))
        path = self._path(session.owner)
        unfinished = path.with_suffix(UNFINISHED)
        try:
            write_private(unfinished, msgspec.json.encode(file))
            os.replace(unfinished, path)
            sync_directory(self._directory)
        except OSError as error:
            logger.warning("a session could not be written: %s; it lives in memory", error.strerror)
        except (ValueError, OverflowError, RecursionError) as error:  # a lone surrogate, a number beyond 64 bits
            logger.warning("a session holds what no file can (%s); it lives in memory", type(error).__name__)

    def remove(self, owner: bytes) -> None:
        """Remove its file, if there is one."""
        try:
            self._path(owner).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("a session's file could not be removed: %s", error.strerror)

    def load(self) -> Iterator[Session]:
        """The sessions of this model. Files of other models stay, unread; what is no session is logged and stays."""
        others = 0
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            try:
                session = self._read(path)
            except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
                logger.warning("%s is no session of Linnet (%s); it is left alone", path.name, type(error).__name__)
                continue
            if session is None:
                others += 1
            else:
                yield session
        if others:
            logger.warning("%d sessions belong to models served under other names; they are left alone", others)

    def _read(self, path: Path) -> Session | None:
        """None: another model's. Raises ValueError for what could not have been saved here."""
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        if file.version != VERSION:
            raise ValueError("another version")
        if file.model != self._model:
            return None
        held = {name: getattr(file, name) for name in _FIELDS}
        session = Session(**held | {"content": self._content(file.form, file.content)})
        if not NAME.fullmatch(session.id) or path != self._path(session.owner) or session.turns < 1:
            raise ValueError("another place")
        return session

    def _content(self, form: Form, content: Any) -> Any:
        found = msgspec.convert(content, CONTENTS[form])
        if form == "token_ids" and not all(0 <= token < self._vocabulary_size for token in found):
            raise ValueError("token ids of another vocabulary")
        return found

    def _path(self, owner: bytes) -> Path:
        return self._directory / (owner.hex() + SUFFIX)

    def _read_secret(self) -> bytes:
        """Made once: with it a tenant's sessions are found again, and without it nobody's are."""
        path = self._directory / "secret"
        if not path.exists():
            unfinished = path.with_suffix(UNFINISHED)
            write_private(unfinished, secrets.token_bytes(SECRET_BYTES))
            os.replace(unfinished, path)
            sync_directory(self._directory)
        secret = path.read_bytes()
        if len(secret) != SECRET_BYTES:
            raise ConfigError(
                f"{path} has {len(secret)} bytes; accepted are the {SECRET_BYTES} that were written there, or none: "
                "without the file all sessions in the folder belong to nobody",
                settings=["session_dir"],
            )
        return secret


def write_private(path: Path, data: bytes) -> None:
    """``write_durable`` for this user's eyes only."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    write_durable(path, data)
