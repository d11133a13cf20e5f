# SPDX-License-Identifier: Apache-2.0
"""Where Linnet keeps what it can make again: tiles, tokenizers, notes of what was verified, fetched models, texts
that models wrote."""

from pathlib import Path

TILES, TOKENIZERS, VERIFIED, MODELS, TEXTS = "tiles", "tokenizers", "verified", "models", "texts"
"""Its folders."""


def user_cache_directory() -> Path:
    """Linnet's folder in the user's cache: nothing in it is ever required. RuntimeError for a user without a home."""
    return Path.home() / ".cache" / "linnet"
