# SPDX-License-Identifier: Apache-2.0
"""Numbers as people write and read them: ``32k`` tokens, ``6GiB``; and back."""

import re
from dataclasses import dataclass

import typer

_COUNT = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}
"""A small letter is decimal, a capital one binary: as vLLM reads them."""
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")


def parse_count(text: str | int) -> int:
    """``4096``, ``32k`` (32,000), ``32K`` (32,768), ``1.5m`` -> a whole number."""
    return _parse(text, _COUNT, "a count such as 4096 or 32k")


def parse_bytes(text: str | int) -> int:
    """``800MB``, ``6GiB``, and as counts ``6g``, ``6G`` (6 GiB) -> bytes."""
    return _parse(text, _COUNT | _BYTES, "a size such as 800MB or 6GiB")


def parse_kv_memory(text: str | int) -> int | str:
    """``all`` as it is, else as ``parse_bytes``."""
    return "all" if text == "all" else _parse(text, _COUNT | _BYTES, "a size such as 800MB or 6GiB, or all")


@dataclass(frozen=True)
class Budget:
    """How large a model may be: bytes, or bits for each of its parameters."""

    bytes: int = 0
    bits: float = 0.0

    def bytes_for(self, parameters: int) -> int:
        """Of a model of so many parameters."""
        return self.bytes or int(self.bits * parameters / 8)


def parse_budget(text: "str | Budget") -> Budget:
    """``100MB`` or ``4.5bits`` (of a weight, everything stored counted) -> Budget."""
    if isinstance(text, Budget):
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*bits?", text.strip())
    found = Budget(bits=float(match[1])) if match else Budget(bytes=_parse(text, _COUNT | _BYTES, _A_BUDGET))
    if not (found.bytes or found.bits):
        raise typer.BadParameter(f"{text!r} is nothing; give {_A_BUDGET}")
    return found


_A_BUDGET = "a size such as 100MB, or 4.5bits"


def _parse(text: str | int, units: dict[str, int], accepted: str) -> int:
    match = _NUMBER.fullmatch(str(text).strip())
    unit = match.group(2) if match else ""
    factor = units.get(unit, units.get(unit.lower()))
    if match is None or factor is None:
        raise typer.BadParameter(f"{text!r} is not {accepted}")
    value = float(match.group(1)) * factor
    if value != int(value):
        raise typer.BadParameter(f"{text!r} is not a whole number")
    return int(value)


def human_bytes(count: float) -> str:
    """Decimal units, three significant digits: ``4.21 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return (
                f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} GB"
            )
        count /= 1000
    raise AssertionError("unreachable")


def human_duration(seconds: float) -> str:
    """``8 s``, ``3 min 20 s``, ``1 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
