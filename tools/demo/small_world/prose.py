# SPDX-License-Identifier: Apache-2.0
"""Public-domain prose, so that the model has also met English that no template wrote."""

from __future__ import annotations

import lzma
import random
from pathlib import Path

FILES = ("english_novels.txt.xz", "tinyshakespeare.txt")


class Prose:
    """Passages of the prose files in a directory; empty, with a message, where the files are missing."""

    def __init__(self, directory: Path | None) -> None:
        """Read all prose."""
        self.texts: list[str] = []
        for name in FILES:
            path = directory / name if directory else None
            if path is None or not path.is_file():
                print(f"prose: {name} not found in {directory}; the small world goes without it")
                continue
            data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
            self.texts.append(data.decode("utf-8", errors="ignore").replace("\r\n", "\n"))

    def draw(self, source: random.Random) -> str:
        """Draw a passage of 200 to 600 characters that begins with a new line of the text."""
        text = source.choice(self.texts)
        start = text.find("\n", source.randrange(len(text) - 2_000)) + 1
        return text[start : start + source.randint(200, 600)].strip() + "\n"
