# SPDX-License-Identifier: Apache-2.0
"""``linnet generate`` as a user starts it: process start to first token, the tokenizer's load and its work included.

    python bench/startup.py MODEL [--rounds 5] [--cold] [--llama-completion BINARY --gguf FILE]

--cold asks the kernel to forget the checkpoint's pages first, so the disk's speed is part of the number. With
llama.cpp's program for one completion and a file of the same shape, both programs are run in turns from their start to
their end with one new token, and the ratio of neighbours is printed.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from linnet.user_cache import user_cache_directory
from process import THREADS
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


def whole_s(command: list[str]) -> float:
    """From the start of a program to its end."""
    began_s = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    spent = time.perf_counter() - began_s
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with status {done.returncode}: {done.stderr.decode()[-500:]}")
    return spent


def beside_llama_cpp(model: Path, text: str, binary: Path, gguf: Path, rounds: int) -> None:
    """Print one line a program and the ratio; each is run once before what counts. llama.cpp does not warm up."""
    arguments = ["-m", gguf, "-p", text, "-n", 1, "-t", THREADS, "--temp", 0, "-no-cnv", "--no-warmup"]
    programs = {"linnet": command(model, text), "llama.cpp": [str(binary), *(str(one) for one in arguments)]}
    found: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, line in programs.items():
            spent = whole_s(line)
            if number:
                found[name].append(spent)
    for name, times in found.items():
        print(f"{name}: process start to its end, one new token: {summarise(times).show()} s")
    ratios = [theirs / our for our, theirs in zip(found["linnet"], found["llama.cpp"], strict=True)]
    print(f"llama.cpp's time over linnet's: {summarise(ratios).show()}")


def main() -> None:
    """Print one line, or three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--llama-completion", type=Path, metavar="BINARY")
    parser.add_argument("--gguf", type=Path, metavar="FILE")
    options = parser.parse_args()
    text = prompt_text(options.model)
    if options.llama_completion and options.gguf:
        beside_llama_cpp(options.model, text, options.llama_completion, options.gguf, options.rounds)
        return
    found = []
    for _ in range(options.rounds):
        if options.cold:
            forget_pages(options.model)
        found.append(first_token_s(options.model, text))
    print(f"process start to first token, {'cold' if options.cold else 'warm'}: {summarise(found).show()} s")


if __name__ == "__main__":
    main()
