# SPDX-License-Identifier: Apache-2.0
"""Texts that a user names: plain or .xz, and one sentence for what cannot be read."""

import lzma
from pathlib import Path

import pytest

from linnet.errors import ConfigError
from linnet.text.files import read_corpus


def test_plain_and_packed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.xz"
    plain.write_text("Grüße\n", encoding="utf-8")
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    assert read_corpus(plain) == read_corpus(packed) == "Grüße\n"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.txt", None, "the calibration text .*missing.txt cannot be read: No such file"),
        ("a.xz", b"plain", "a.xz is not an xz file"),
        ("a.xz", lzma.compress(b"plain")[:-4], "a.xz is not an xz file"),
        ("a.txt", b"ab\xff", r"a.txt is not UTF-8 \(byte 2\)"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read_corpus(tmp_path / name, "calibration text")
