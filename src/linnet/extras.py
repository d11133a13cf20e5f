# SPDX-License-Identifier: Apache-2.0
"""How to install what an extra brings, as a line that works where this Linnet was installed from."""

import json
import shlex
import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit


def install_command(*extras: str) -> str:
    """A pip command that adds ``extras``: to the checkout or file Linnet came from while it is there, else by name."""
    wanted = f"[{','.join(extras)}]"
    origin, editable = _origin()
    target = "linnet" if origin is None else "." if origin == Path.cwd() else str(origin)
    return f"{_pip()} install {'-e ' if editable else ''}{shlex.quote(target + wanted)}"


def _origin() -> tuple[Path | None, bool]:
    """(the directory or wheel Linnet was installed from, whether as a checkout that is used in place)."""
    source = Path(__file__).resolve().parents[2]
    try:
        found = distribution("linnet")
    except PackageNotFoundError:
        return (source, True) if (source / "pyproject.toml").is_file() else (None, False)
    record = _direct_url(found)
    address = urlsplit(str(record.get("url", "")))
    path = Path(unquote(address.path))
    if address.scheme != "file" or not path.exists():
        return None, False
    directory = record.get("dir_info")
    return path, isinstance(directory, dict) and bool(directory.get("editable"))


def _direct_url(found: Distribution) -> dict[str, object]:
    """What PEP 610 has the installer write down; empty for what came from an index."""
    try:
        record = json.loads(found.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _pip() -> str:
    """``pip`` where that is this Python's, else this Python's by its path."""
    pip = shutil.which("pip")
    if pip is not None and Path(pip).parent == Path(sys.executable).parent:
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"
