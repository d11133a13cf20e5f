# SPDX-License-Identifier: Apache-2.0
"""Where Linnet keeps what it can make again: tiles, converted tokenizers, notes of what was verified."""

from pathlib import Path

TILES, TOKENIZERS, VERIFIED = "tiles", "tokenizers", "verified"
"""Its folders."""


def user_cache_directory() -> Path:
    """Linnet's folder in the user's cache: nothing in it is ever required. RuntimeError for a user without a home."""
    return Path.home() / ".cache" / "linnet"
