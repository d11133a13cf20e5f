# SPDX-License-Identifier: Apache-2.0
"""A checkpoint without ``tokenizer.json`` is converted once, by transformers in a subprocess, into the user's cache.

The cache entry is named by the SHA-256 of the tokenizer's files, so a changed directory is converted again; it is
published by one rename.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from linnet.errors import CheckpointError, UnsupportedError
from linnet.user_cache import TOKENIZERS, user_cache_directory

SOURCES = (
    "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model", "tekken.json",
)  # fmt: skip
VOCABULARIES = frozenset(SOURCES) - {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
TIMEOUT_S = 600
WORKPLACE_PREFIX = ".converting-"
"""Of the folder in the cache where a conversion runs, for ``TIMEOUT_S`` at most."""

_SCRIPT = """
import sys
try:
    import transformers
except ImportError:
    sys.exit(77)
source, target = sys.argv[1:3]
options = {"use_fast": True, "local_files_only": True, "trust_remote_code": False}
tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
backend = getattr(tokenizer, "backend_tokenizer", None)
if backend is None:
    sys.exit("this tokenizer class has no fast form")
backend.save(target)
"""


def convert_tokenizer(directory: Path, cache_directory: Path | None = None, python: str = sys.executable) -> Path:
    """A directory holding the converted ``tokenizer.json``.

    ``python`` is the interpreter that has transformers. Raises CheckpointError when the directory holds no tokenizer
    or transformers cannot read it, UnsupportedError when transformers is not installed.
    """
    present = [directory / name for name in SOURCES if (directory / name).is_file()]
    if not any(path.name in VOCABULARIES for path in present):
        raise CheckpointError(
            f"{directory}: no tokenizer found; expected tokenizer.json or one of {', '.join(sorted(VOCABULARIES))}"
        )
    cache = cache_directory if cache_directory is not None else user_cache_directory() / TOKENIZERS
    target = cache / _digest(present)
    if (target / "tokenizer.json").is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(dir=cache, prefix=WORKPLACE_PREFIX))
    try:
        _run(directory, workplace / "tokenizer.json", python)
        try:
            workplace.rename(target)
        except OSError:
            if not (target / "tokenizer.json").is_file():  # else somebody else published the same bytes first
                raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return target


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256(b"linnet-tokenizer-1")
    for path in sorted(paths):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _run(directory: Path, target: Path, python: str) -> None:
    # -P: the folder we were started in is no place to import from; it may be the checkpoint itself.
    command = [python, "-P", "-c", _SCRIPT, str(directory.resolve()), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{directory}: converting its tokenizer took longer than {TIMEOUT_S} s") from None
    if done.returncode == 77:
        raise UnsupportedError(
            f"{directory} has no tokenizer.json and converting its tokenizer once needs transformers: "
            "pip install transformers sentencepiece"
        )
    if done.returncode != 0 or not target.is_file():
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(f"{directory}: transformers cannot convert its tokenizer ({reason})")
