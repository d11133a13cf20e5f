# SPDX-License-Identifier: Apache-2.0
"""Reading forward through bytes that nobody vouches for: every length is compared with what is left before its use."""

import struct
from typing import Any

from linnet.errors import CheckpointError

_LENGTH = struct.Struct("<Q")


class Cursor:
    """A place in little-endian bytes; every method raises CheckpointError at their end. ``where`` names the file."""

    def __init__(self, data: Any, where: str) -> None:
        self.data = data
        self.where = where
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes that follow."""
        return len(self.data) - self.at

    def skip(self, count: int, what: str) -> int:
        """Step over ``count`` bytes -> where they began."""
        if count > self.left:
            raise self.wrong(f"{what} needs {count} bytes at byte {self.at}, the file has {self.left} more")
        self.at += count
        return self.at - count

    def number(self, code: str, what: str) -> Any:
        """One value of a ``struct`` code."""
        kind = struct.Struct("<" + code)
        return kind.unpack_from(self.data, self.skip(kind.size, what))[0]

    def text(self, what: str, longest: int) -> str:
        """A length-prefixed UTF-8 text of at most ``longest`` bytes."""
        length = self.number("Q", f"the length of {what}")
        if length > longest:
            raise self.wrong(f"{what} is {length} bytes long, at most {longest} are accepted")
        begin = self.skip(length, what)
        try:
            return bytes(self.data[begin : self.at]).decode()
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is not UTF-8 text") from None

    def skip_texts(self, count: int, what: str) -> int:
        """Step over ``count`` length-prefixed texts -> where they began. What opening a large vocabulary costs."""
        begin = at = self.at
        data, last, unpack = self.data, len(self.data) - 8, _LENGTH.unpack_from
        for index in range(count):
            if at > last:
                raise self.wrong(f"{what} ends after {index} of {count} texts, at the end of the file")
            at += 8 + unpack(data, at)[0]
        self.at = begin
        self.skip(at - begin, what)
        return begin

    def wrong(self, message: str) -> CheckpointError:
        """The error for this file."""
        return CheckpointError(f"{self.where}: {message}")


def split_texts(data: bytes) -> list[bytes]:
    """The texts that ``Cursor.skip_texts`` stepped over."""
    ends, at, unpack = [], 0, _LENGTH.unpack_from
    while at < len(data):
        at += 8 + unpack(data, at)[0]
        ends.append(at)
    return [data[begin + 8 : end] for begin, end in zip([0, *ends], ends, strict=False)]
