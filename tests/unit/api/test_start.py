# SPDX-License-Identifier: Apache-2.0
"""What a start does and in which order: counted and listed, never timed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import write_tiny_llama

from linnet.api import LLM, loading, warming
from linnet.api import llm as llm_module
from linnet.formats import Checkpoint
from linnet.formats.read_ahead import file_bytes, read_ahead
from linnet.text import Tokenizer

NOT_NEEDED = (
    "torch",
    "transformers",
    "scipy",
    "fastapi",
    "huggingface_hub",
    "urllib.request",
    "regex",
    "jinja2",
    "yaml",
)


def test_generating_imports_nothing_it_does_not_use(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")  # no chat template
    code = (
        "import sys, linnet.cli.main as main\n"
        f"sys.argv = ['linnet', 'generate', {str(tmp_path)!r}, 'the', '--max-tokens', '2', '--no-stats']\n"
        "try:\n    main.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print([name for name in {(*NOT_NEEDED, 'rich.progress')!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr


def test_the_disk_works_before_the_tokenizer_and_pages_are_mapped_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_tiny_llama(tmp_path)
    order: list[str] = []

    def noting(name: str, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            order.append(name)
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(llm_module, "start_reading", noting("read ahead", warming.start_reading))
    monkeypatch.setattr(Tokenizer, "from_directory", staticmethod(noting("tokenizer", Tokenizer.from_directory)))
    monkeypatch.setattr(loading, "start_populating", noting("populate", warming.start_populating))
    monkeypatch.setattr(loading, "load_model", noting("model", loading.load_model))
    with LLM(directory, max_model_len=32, kv_bytes=1 << 20):
        assert order == ["read ahead", "tokenizer", "populate", "model"]


def resident_bytes(name: str) -> int:
    """Resident bytes of this process's mappings of a file."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    found = counting = 0
    for line in lines:
        head = line.split()
        if not head[0].endswith(":"):
            counting = line.endswith(name)
        elif head[0] == "Rss:" and counting:
            found += int(head[1]) * 1024
    return found


def test_populating_maps_every_page_and_reading_ahead_none(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path)
    size = file_bytes(directory)
    assert size == sum(path.stat().st_size for path in directory.glob("*.safetensors")) > 0
    with Checkpoint.open(directory, verify=False) as checkpoint:
        read_ahead(directory)
        name = str(directory / "model.safetensors")
        before = resident_bytes(name)
        if not checkpoint.populate():
            pytest.skip("this kernel has no MADV_POPULATE_READ")
        pages = -(-size // os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PAGE_SIZE")
        assert before <= resident_bytes(name) == pages


def test_a_model_larger_than_memory_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_tiny_llama(tmp_path)
    monkeypatch.setattr(warming, "available_bytes", lambda: 10)
    assert warming.start_reading(directory) is None
    with Checkpoint.open(directory) as checkpoint:
        assert warming.start_populating(checkpoint) is None
    assert warming.start_reading(tmp_path / "nothing") is None
    assert file_bytes(tmp_path / "nothing") == 0
    read_ahead(tmp_path / "nothing")


def test_closing_while_pages_are_mapped_is_safe(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path)
    for _ in range(20):
        checkpoint = Checkpoint.open(directory, verify=False)
        thread = warming.start_populating(checkpoint)
        checkpoint.close()
        if thread is not None:
            thread.join(timeout=60)
            assert not thread.is_alive()
