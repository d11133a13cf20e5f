# SPDX-License-Identifier: Apache-2.0
"""Lying, damaged and cut GGUF files: each ends in one error that names file and fault, before anything is allocated."""

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")
from gguf_files import by_hand, entry, everything, pair, refusal, text, write_small

from linnet.errors import LinnetError

U32, F32_LIST, TEXT_LIST = 4, struct.pack("<I", 6), struct.pack("<I", 8)
HUGE = struct.pack("<Q", 2**64 - 1)
NEARLY = struct.pack("<Q", 2**64 - 7)
"""Lengths whose sum with a position wraps around in 64 bits."""


def align(value: int) -> bytes:
    return pair("general.alignment", U32, struct.pack("<I", value))


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes are too short for a GGUF file"),
    "three bytes": (b"GGU", "not a GGUF file"),
    "another magic": (b"GGML" + bytes(28), "not a GGUF file: it begins with b'GGML'"),
    "only magic": (b"GGUF", "the version needs 4 bytes at byte 4, the file has 0 more"),
    "no counts": (b"GGUF\3\0\0\0", "the number of tensors"),
    "2^64 - 1 tensors": (by_hand(counts=(2**64 - 1, 0)), "18446744073709551615 tensors, the file has room for 0"),
    "2^64 - 1 keys": (by_hand(counts=(0, 2**64 - 1)), "metadata entries, the file has room for"),
    "2^61 tensors": (by_hand(counts=(2**61, 0)), "tensors, the file has room for"),
    "one key too many": (by_hand([align(32)], counts=(0, 2)), "the length of key 1 of the metadata needs 8 bytes"),
    "key without end": (by_hand([HUGE + bytes(64)]), "key 0 of the metadata is 18446744073709551615 bytes long"),
    "key past the end": (by_hand([struct.pack("<Q", 60000) + b"a" * 20]), "needs 60000 bytes"),
    "no key": (by_hand([pair("", U32, bytes(4))]), "a printable name is needed"),
    "key with a newline": (by_hand([pair("a\nb", U32, bytes(4))]), "a printable name is needed"),
    "key that is no text": (by_hand([pair(b"\xff\xfe", U32, bytes(4))]), "key 0 of the metadata is not UTF-8"),
    "key twice": (by_hand([align(32), align(64)]), "the metadata has 'general.alignment' twice"),
    "value type 13": (by_hand([pair("a", 13, bytes(8))]), "'a' has the value type 13"),
    "value type 2^32 - 1": (by_hand([pair("a", 2**32 - 1, bytes(8))]), "value type 4294967295"),
    "bool of 2": (by_hand([pair("a", 7, b"\2")]), "'a' is 2; true (1) or false (0) is needed"),
    "text without end": (by_hand([pair("a", 8, HUGE + bytes(32))]), "the value of 'a' is 18446744073709551615 bytes"),
    "text past the end": (by_hand([pair("a", 8, struct.pack("<Q", 2**20))]), "needs 1048576 bytes"),
    "text that is none": (by_hand([pair("a", 8, text(b"\xc3"))]), "the value of 'a' is not UTF-8"),
    "2^64 - 1 numbers": (by_hand([pair("a", 9, F32_LIST + HUGE)]), "the list 'a' needs 73786976294838206460 bytes"),
    "2^62 numbers": (by_hand([pair("a", 9, F32_LIST + struct.pack("<Q", 2**62))]), "the list 'a' needs"),
    "2^64 - 1 texts": (by_hand([pair("a", 9, TEXT_LIST + HUGE)]), "'a' has 18446744073709551615 entries"),
    "2^20 texts": (by_hand([pair("a", 9, TEXT_LIST + struct.pack("<Q", 2**20))]), "has 1048576 texts"),
    "wrapping text": (
        by_hand([pair("a", 9, TEXT_LIST + struct.pack("<Q", 2) + NEARLY + bytes(64))]),
        "'a' ends after 1 of 2 texts",
    ),
    "last text past the end": (
        by_hand([pair("a", 9, TEXT_LIST + struct.pack("<Q", 1) + NEARLY + bytes(64))]),
        "'a' needs 18446744073709551617 bytes",
    ),
    "list of unknown type": (by_hand([pair("a", 9, struct.pack("<IQ", 99, 1) + bytes(8))]), "value type 99"),
    "2^40 lists": (by_hand([pair("a", 9, struct.pack("<IQ", 9, 2**40))]), "has 1099511627776 entries"),
    "many lists": (by_hand([pair("a", 9, struct.pack("<IQ", 9, 1000))]), "has 1000 lists"),
    "lists in lists": (by_hand([pair("a", 9, struct.pack("<IQ", 9, 1) * 60)]), "nested more than 4 lists deep"),
    "alignment 0": (by_hand([align(0)]), "general.alignment is 0; a power of two"),
    "alignment 48": (by_hand([align(48)]), "general.alignment is 48"),
    "alignment 2^31": (by_hand([align(1 << 31)]), "general.alignment is 2147483648"),
    "alignment is a text": (by_hand([pair("general.alignment", 8, text("32"))]), "a whole number is needed"),
    "tensor twice": (by_hand([], [entry("t", (8,)), entry("t", (8,), 0, 32)], bytes(64)), "'t' is listed twice"),
    "tensor without name": (by_hand([], [entry("", (8,))], bytes(32)), "the name of tensor 0 is ''"),
    "endless tensor name": (by_hand([], [entry("x" * 5000, (8,))], bytes(32)), "5000 bytes long"),
    "no dimension": (by_hand([], [entry("t", ())], bytes(32)), "0 dimensions; 1 to 4 are accepted"),
    "five dimensions": (by_hand([], [entry("t", (1,) * 5)], bytes(32)), "5 dimensions"),
    "2^32 - 1 dimensions": (
        by_hand([], [text("t") + struct.pack("<I", 2**32 - 1) + bytes(64)]),
        "4294967295 dimensions",
    ),
    "size 0": (by_hand([], [entry("t", (8, 0))], bytes(32)), "has 0 elements"),
    "huge size": (by_hand([], [entry("t", (1 << 40, 1 << 20))], bytes(32)), "was the download finished?"),
    "overflowing product": (by_hand([], [entry("t", (1 << 62, 4))], bytes(32)), "1 to 2^63 - 1 are accepted"),
    "wrapping product": (by_hand([], [entry("t", (1 << 32, 1 << 32))], bytes(32)), "1 to 2^63 - 1 are accepted"),
    "size 2^64 - 1": (by_hand([], [entry("t", (2**64 - 1,))], bytes(32)), "1 to 2^63 - 1 are accepted"),
    "unknown type": (by_hand([], [entry("t", (8,), 4)], bytes(32)), "type number 4, which this version does not know"),
    "half a block": (by_hand([], [entry("t", (48, 2), 2)], bytes(64)), "48 columns are not whole blocks of 32 (Q4_0)"),
    "offset 2^64 - 1": (by_hand([], [entry("t", (8,), 0, 2**64 - 1)], bytes(32)), "belong to no tensor"),
    "gap": (by_hand([], [entry("t", (8,), 0, 32)], bytes(64)), "32 bytes before tensor 't' belong to no tensor"),
    "same bytes twice": (by_hand([], [entry("t", (8,)), entry("u", (8,))], bytes(64)), "'u' begins at byte"),
    "overlap": (by_hand([], [entry("t", (16,)), entry("u", (8,), 0, 32)], bytes(96)), "overlaps 't'"),
    "no data": (by_hand([], [entry("t", (8,))]), "the file has"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies(name: str, tmp_path: Path) -> None:
    data, expected = LIES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        message = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert expected in message
    assert peak < 1 << 20, "something was allocated for a length that was not checked"


def test_every_truncation(tmp_path: Path) -> None:
    whole = write_small(tmp_path / "a.gguf").read_bytes()
    data_end = len(whole) - len(whole) % 32  # the last tensor's padding may be missing
    path = tmp_path / "cut.gguf"
    for size in range(0, data_end - 32, 5):
        path.write_bytes(whole[:size])
        assert refusal(path)


def test_a_large_file_cut_at_every_4_kib(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    data = by_hand([], [entry("t", (1024, 64)), entry("u", (1024, 64), 1, 1024 * 64 * 4)], bytes(1024 * 64 * 6))
    for size in range(0, len(data) - 4096, 4096):
        path.write_bytes(data[:size])
        message = refusal(path)
        assert size == 0 or "was the download finished?" in message


def _mutants(path: Path, count: int, seed: int) -> None:
    """Bits, bytes and whole fields of the header changed: an error, or what a reader sees differs only in values."""
    whole = path.read_bytes()
    expected = everything(path)
    header = whole.index(b"quantised.weight") + 64
    rng = np.random.default_rng(seed)
    mutant = path.with_name("mutant.gguf")
    refused = 0
    for index in range(count):
        damaged = bytearray(whole)
        position = int(rng.integers(header))
        match index % 4:
            case 0:
                damaged[position] ^= 1 << int(rng.integers(8))
            case 1:
                damaged[position] = int(rng.integers(256))
            case 2:
                edge = (2**64 - 1, 2**63, 2**32, 2**31 - 1, 0, len(whole))[int(rng.integers(6))]
                damaged[position : position + 8] = struct.pack("<Q", edge)
            case 3:
                del damaged[position : position + int(rng.integers(1, 9))]
        mutant.write_bytes(damaged)
        begin, message = time.monotonic(), ""
        try:
            seen = everything(mutant)
        except LinnetError as error:
            message = str(error)
        assert time.monotonic() - begin < 5
        if message:
            assert mutant.name in message, f"seed {seed}, mutant {index}"
            assert "\n" not in message, f"seed {seed}, mutant {index}"
            refused += 1
        else:
            assert len(seen) <= len(expected), f"seed {seed}, mutant {index}: something was invented"
    assert refused > count * 0.3


def test_mutants(tmp_path: Path) -> None:
    _mutants(write_small(tmp_path / "a.gguf"), 200, seed=3)


@pytest.mark.slow
def test_a_thousand_mutants(tmp_path: Path) -> None:
    _mutants(write_small(tmp_path / "a.gguf"), 1000, seed=4)
