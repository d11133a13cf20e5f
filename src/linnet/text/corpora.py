# SPDX-License-Identifier: Apache-2.0
"""Texts that a user names, of whatever kind of file: plain text, JSON lines, Parquet, a saved Hugging Face dataset.

Records become documents: a text as it is, a conversation through the model's chat template. Documents follow each other
in the file's order, a blank line between them. Parquet and Arrow need linnet[data].
"""

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from linnet.errors import ConfigError, LinnetError, UnsupportedError
from linnet.extras import install_command
from linnet.text.files import read_corpus
from linnet.text.template import ChatTemplates

MOST_CHARACTERS = 64 << 20
"""No more of a set of records is read."""

TEXT_FIELDS = ("text", "content", "document", "article", "passage")
CHAT_FIELDS = ("messages", "conversations", "conversation", "chat")
_ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names."""
_JSON_LINES = (".jsonl", ".ndjson")
_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}
_SEPARATOR = "\n\n"


def read_text_of(path: Path, what: str, templates: Callable[[], ChatTemplates]) -> str:
    """All of a text, or of records the first MOST_CHARACTERS; ``templates`` is asked once there is a chat.

    ConfigError, which calls it ``what``, when it cannot be read or has no field to read; UnsupportedError without the
    library for its kind.
    """
    records = _records(path, what)
    if records is None:
        return read_corpus(path, what)
    parts: list[str] = []
    length = 0
    for number, record in enumerate(records, start=1):
        parts.append(_document(record, f"the {what} {path}, record {number}", templates))
        length += len(parts[-1]) + len(_SEPARATOR)
        if length >= MOST_CHARACTERS:
            break
    if not parts:
        raise ConfigError(f"the {what} {path} has no records")
    return _SEPARATOR.join(parts)


def _records(path: Path, what: str) -> Iterator[Any] | None:
    """The records of a file or directory of them; None: it is plain text."""
    if path.is_dir():
        return _of_directory(path, what)
    name = path.name.lower()
    if name.removesuffix(".xz").removesuffix(".gz").endswith(_JSON_LINES):
        return _of_json_lines(path, what)
    if name.endswith(".parquet"):
        return _of_parquet(path, what)
    return _of_arrow(path, what) if name.endswith(".arrow") else None


def _of_directory(path: Path, what: str) -> Iterator[Any]:
    """What ``datasets`` saves, or a folder of files of records; of several splits ``train``."""
    place = path / "train" if (path / "train").is_dir() else path
    found = False
    for file in sorted(place.rglob("*")):
        if file.is_file() and not file.name.startswith((".", "cache-")):
            records = _records(file, what)
            found |= records is not None
            yield from records or ()
    if not found:
        raise ConfigError(f"the {what} {path} is a directory without .jsonl, .parquet or .arrow files")


def _of_json_lines(path: Path, what: str) -> Iterator[Any]:
    try:
        with _OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _json(line, f"the {what} {path}, line {number}")
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ConfigError(f"the {what} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not UTF-8") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{where}: not JSON: {line[:40]!r}") from None


def _of_parquet(path: Path, what: str) -> Iterator[Any]:
    pyarrow = _pyarrow()
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"the {what} {path} cannot be read as Parquet: {_first_line(error)}") from error


def _of_arrow(path: Path, what: str) -> Iterator[Any]:
    pyarrow = _pyarrow()
    from pyarrow import ipc

    try:
        with pyarrow.memory_map(str(path)) as file, ipc.open_stream(file) as stream:
            for batch in stream:
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"the {what} {path} cannot be read as an Arrow stream: {_first_line(error)}") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UnsupportedError(f"reading Parquet and Arrow needs pyarrow: {install_command('data')}") from error
    return pyarrow


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _document(record: Any, where: str, templates: Callable[[], ChatTemplates]) -> str:
    if isinstance(record, str):
        return record
    if not isinstance(record, Mapping):
        raise ConfigError(f"{where} is a {type(record).__name__}; accepted is a text, or an object with one")
    for name in CHAT_FIELDS:
        if isinstance(record.get(name), list):
            return _chat(record[name], where, templates())
    texts = [name for name, value in record.items() if isinstance(value, str)]
    chosen = next((name for name in TEXT_FIELDS if name in texts), texts[0] if len(texts) == 1 else None)
    if chosen is None:
        raise ConfigError(
            f"{where} has the fields {', '.join(map(str, record)) or '(none)'}; accepted is one of "
            f"{', '.join(TEXT_FIELDS)} with a text, or of {', '.join(CHAT_FIELDS)} with the turns of a chat"
        )
    return str(record[chosen])


def _chat(turns: Iterable[Any], where: str, templates: ChatTemplates) -> str:
    """Turns of {role, content}, or of ShareGPT's {from, value}, through the template."""
    messages = []
    for turn in turns:
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        content = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise ConfigError(f"{where}: a turn of a chat is {{role, content}}, both text, not {turn!r:.60}")
        messages.append({"role": _ROLES.get(role, role), "content": content})
    try:
        return templates.render(messages, add_generation_prompt=False)
    except LinnetError as error:
        raise ConfigError(f"{where}: the chat cannot be rendered: {error}") from error
