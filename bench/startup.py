# SPDX-License-Identifier: Apache-2.0
"""``linnet generate`` as a user starts it: process start to first token, the tokenizer's load and its work included.

    python bench/startup.py MODEL [--rounds 5] [--cold]

--cold asks the kernel to forget the checkpoint's pages first, so the disk's speed is part of the number.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from linnet.user_cache import user_cache_directory
from samples import summarise

PROMPT_TOKENS = 32
WORDS = "the quick brown fox jumps over a lazy dog while seven wise linnets sing about every small thing they saw "


def prompt_text(model: Path, tokens: int = PROMPT_TOKENS) -> str:
    """Words that the model's own tokenizer cuts into exactly so many pieces."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = ""
    for letter in WORDS * tokens:
        text += letter
        if len(tokenizer.encode(text).ids) == tokens:
            return text
    raise ValueError(f"{model}: no beginning of the words used here makes exactly {tokens} tokens")


def command(model: Path, text: str) -> list[str]:
    """One token, greedy; the prompt is echoed before it."""
    return [sys.executable, "-m", "linnet.cli.main", "generate", str(model), text, "--max-tokens", "1"]


def first_token_s(model: Path, text: str) -> float:
    """Until the first character after the echoed prompt is in the pipe."""
    echoed, seen = len(text.encode()), 0
    started = time.perf_counter()
    process = subprocess.Popen(command(model, text), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    while seen <= echoed:
        part = process.stdout.read(65536)
        if not part:
            break
        seen += len(part)
    spent = time.perf_counter() - started
    _, error = process.communicate()
    if process.returncode or seen <= echoed:
        raise RuntimeError(f"linnet generate ended with status {process.returncode}: {error.decode()[-500:]}")
    return spent


def forget_pages(model: Path) -> None:
    """Drop the clean pages of the checkpoint and of what Linnet keeps beside it in the user's cache; pages that another
    process has mapped stay."""
    kept = user_cache_directory()
    for file in (*model.iterdir(), *kept.rglob("*")):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    text = prompt_text(options.model)
    found = []
    for _ in range(options.rounds):
        if options.cold:
            forget_pages(options.model)
        found.append(first_token_s(options.model, text))
    print(f"process start to first token, {'cold' if options.cold else 'warm'}: {summarise(found).show()} s")


if __name__ == "__main__":
    main()
