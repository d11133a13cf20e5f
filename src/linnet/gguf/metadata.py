# SPDX-License-Identifier: Apache-2.0
"""The key-value pairs of a GGUF file: read with bounds, typed when asked for; long lists of texts stay undecoded."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from linnet.errors import CheckpointError
from linnet.gguf.cursor import Cursor, split_texts

LONGEST_KEY = (1 << 16) - 1
LONGEST_TEXT = 64 << 20
MOST_KEYS = 1 << 16
MOST_TEXTS = 1 << 24
"""Texts of all lists together; a vocabulary of a quarter of a million has about as many merges."""
_DEEPEST = 4

_BOOL, _STRING, _ARRAY = 7, 8, 9
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
"""Value type -> struct code, which is also numpy's."""


class TextList:
    """A list of texts that is decoded when asked for."""

    def __init__(self, cursor: Cursor, begin: int, count: int, key: str) -> None:
        self._data = cursor.data
        self._range = (begin, cursor.at)
        self._count = count
        self._what = f"{cursor.where}: {key}"

    def __len__(self) -> int:
        return self._count

    def raw(self) -> list[bytes]:
        """The bytes of every text."""
        begin, end = self._range
        return split_texts(bytes(self._data[begin:end]))

    def decode(self) -> list[str]:
        """Every text; CheckpointError for the first that is not UTF-8."""
        texts = self.raw()
        try:
            return [text.decode() for text in texts]
        except UnicodeDecodeError:
            bad = next(index for index, text in enumerate(texts) if not _is_text(text))
            raise CheckpointError(f"{self._what}: entry {bad} is not UTF-8 text") from None


class Metadata(Mapping[str, Any]):
    """Keys to int, float, bool, str, numpy arrays, ``TextList`` or lists of those.

    The typed readers raise CheckpointError, naming file and key, for a value of another type.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = dict(values)
        self.where = where

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def text(self, key: str, default: str | None = None) -> str | None:
        """A text, or ``default`` if the key is missing."""
        return self._typed(key, default, str, "a text")  # type: ignore[no-any-return]

    def flag(self, key: str, default: bool | None = None) -> bool | None:
        """True or false, or ``default``."""
        return self._typed(key, default, bool, "true or false")  # type: ignore[no-any-return]

    def integer(self, key: str, default: int | None = None) -> int | None:
        """A whole number, or ``default``."""
        return self._typed(key, default, int, "a whole number")  # type: ignore[no-any-return]

    def number(self, key: str, default: float | None = None) -> float | None:
        """A number, or ``default``. A float32 comes as the shortest decimal that rounds to it: 1e-05, not 9.99e-06."""
        value = self._typed(key, default, (int, float, np.float32), "a number")
        return float(str(value)) if isinstance(value, np.float32) else value

    def texts(self, key: str) -> list[str] | None:
        """A list of texts, or None."""
        found = self._typed(key, None, TextList, "a list of texts")
        return None if found is None else found.decode()

    def numbers(self, key: str) -> np.ndarray[Any, Any] | None:
        """A list of numbers as the stored array, or None."""
        return self._typed(key, None, np.ndarray, "a list of numbers")  # type: ignore[no-any-return]

    def _typed(self, key: str, default: Any, kind: type | tuple[type, ...], words: str) -> Any:
        if key not in self._values:
            return default
        value = self._values[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CheckpointError(f"{self.where}: {key} is {shown(value)}; {words} is needed")
        return value


def shown(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, TextList):
        return f"a list of {len(value)} texts"
    if isinstance(value, np.ndarray):
        return f"a list of {value.size} numbers"
    return repr(value)[:80] if not isinstance(value, np.float32) else str(value)


def read_metadata(cursor: Cursor, count: int) -> Metadata:
    """``count`` pairs from the cursor on. Nothing is allocated for a length before it is known to lie in the file."""
    if count > min(MOST_KEYS, cursor.left // 13):
        raise cursor.wrong(f"{count} metadata entries, the file has room for {min(MOST_KEYS, cursor.left // 13)}")
    budget = _Budget(MOST_TEXTS)
    values: dict[str, Any] = {}
    for index in range(count):
        key = cursor.text(f"key {index} of the metadata", LONGEST_KEY)
        if not key or not key.isprintable():
            raise cursor.wrong(f"key {index} of the metadata is {key[:80]!r}; a printable name is needed")
        if key in values:
            raise cursor.wrong(f"the metadata has {key[:200]!r} twice")
        shown_key = key[:200]
        values[key] = _value(cursor, cursor.number("I", f"the type of {shown_key!r}"), shown_key, budget, 0)
    return Metadata(values, cursor.where)


class _Budget:
    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, cursor: Cursor, count: int, key: str) -> None:
        self.left -= count
        if self.left < 0:
            raise cursor.wrong(f"{key!r} has {count} entries, at most {MOST_TEXTS} are accepted")


def _value(cursor: Cursor, kind: int, key: str, budget: _Budget, depth: int) -> Any:
    if kind == _STRING:
        return cursor.text(f"the value of {key!r}", LONGEST_TEXT)
    if kind == _BOOL:
        value = cursor.number("B", f"the value of {key!r}")
        if value > 1:
            raise cursor.wrong(f"{key!r} is {value}; true (1) or false (0) is needed")
        return bool(value)
    if kind == _ARRAY:
        return _list(cursor, key, budget, depth)
    if kind not in _CODES:
        raise cursor.wrong(f"{key!r} has the value type {kind}, which GGUF does not have")
    value = cursor.number(_CODES[kind], f"the value of {key!r}")
    return np.float32(value) if _CODES[kind] == "f" else value


def _list(cursor: Cursor, key: str, budget: _Budget, depth: int) -> Any:
    kind, count = cursor.number("I", f"the type of {key!r}"), cursor.number("Q", f"the length of {key!r}")
    if kind == _STRING:
        budget.take(cursor, count, key)
        if count > cursor.left // 8:
            raise cursor.wrong(f"{key!r} has {count} texts, the file has {cursor.left} bytes left")
        return TextList(cursor, cursor.skip_texts(count, repr(key)), count, key)
    if kind == _ARRAY:
        budget.take(cursor, count, key)
        if depth == _DEEPEST:
            raise cursor.wrong(f"{key!r} is nested more than {_DEEPEST} lists deep")
        if count > cursor.left // 12:
            raise cursor.wrong(f"{key!r} has {count} lists, the file has {cursor.left} bytes left")
        return [_list(cursor, key, budget, depth + 1) for _ in range(count)]
    if kind not in _CODES and kind != _BOOL:
        raise cursor.wrong(f"{key!r} is a list of the value type {kind}, which GGUF does not have")
    dtype = np.dtype("<" + _CODES.get(kind, "B"))
    begin = cursor.skip(count * dtype.itemsize, f"the list {key!r}")
    array = np.frombuffer(cursor.data, dtype, count, begin) if count else np.empty(0, dtype)
    return array.astype(np.bool_) if kind == _BOOL else array.copy() if array.nbytes < 1 << 16 else array


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
