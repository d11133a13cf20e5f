# SPDX-License-Identifier: Apache-2.0
"""What a start does and in which order: counted and listed, never timed."""

import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import write_tiny_llama

from linnet.api import LLM, loading, warming
from linnet.api import llm as llm_module
from linnet.api.loading import tile_directory
from linnet.api.warming import Warming
from linnet.formats import Checkpoint
from linnet.formats.residency import populate, release, will_need
from linnet.text import Tokenizer

pytestmark = pytest.mark.alone
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


def test_weights_are_mapped_beside_the_tokenizer_and_the_last_of_them_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_tiny_llama(tmp_path)
    order: list[str] = []

    def noting(name: str, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            order.append(name)
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(loading, "load_model", noting("model", loading.load_model))
    monkeypatch.setattr(llm_module, "Warming", noting("most of the weights", Warming))
    monkeypatch.setattr(Tokenizer, "from_directory", staticmethod(noting("tokenizer", Tokenizer.from_directory)))
    monkeypatch.setattr(Warming, "finish", noting("the rest", Warming.finish))
    with LLM(directory, max_model_len=32, kv_bytes=1 << 20):
        assert order == ["model", "most of the weights", "tokenizer", "the rest"]


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


def test_pages_come_and_go_without_a_copy(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path)
    with Checkpoint.open(directory, verify=False) as checkpoint:
        (whole,) = checkpoint.mapped()
        name = str(directory / "model.safetensors")
        pages = -(-whole.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        assert will_need(whole)
        assert release(whole)
        assert resident_bytes(name) == 0
        if not populate(whole):
            pytest.skip("this kernel has no MADV_POPULATE_READ")
        assert resident_bytes(name) == pages
        content = bytes(whole)
        assert release(whole)
        assert resident_bytes(name) == 0
        assert bytes(whole) == content
    with pytest.raises(ValueError, match="file"):
        release(np.zeros(4096, np.uint8))


@pytest.mark.parametrize("aside_pages", [0, 1, 3, 5, 100])
def test_what_is_put_aside_is_mapped_last(aside_pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped: list[tuple[int, int]] = []
    monkeypatch.setattr(warming, "populate", lambda array: mapped.append((array.ctypes.data, array.nbytes)))
    arrays = [np.zeros(3 * mmap.PAGESIZE, np.uint8), np.zeros(2 * mmap.PAGESIZE, np.uint8)]
    one = Warming(arrays, aside_pages * mmap.PAGESIZE)
    for thread in one.threads:
        thread.join(timeout=60)
    assert sum(size for _, size in mapped) == max(5 - aside_pages, 0) * mmap.PAGESIZE
    one.finish()
    one.finish()
    for thread in one.threads:
        thread.join(timeout=60)
    covered = sorted((start, size) for start, size in mapped if size)
    for array in arrays:
        inside = [piece for piece in covered if array.ctypes.data <= piece[0] < array.ctypes.data + array.nbytes]
        assert sum(size for _, size in inside) == array.nbytes


def test_a_model_larger_than_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "available_bytes", lambda: 10)
    one = Warming([np.zeros(100, np.uint8)], 0)
    one.finish()
    assert one.threads == []


def test_closing_while_pages_are_mapped_is_safe(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path)
    for _ in range(20):
        checkpoint = Checkpoint.open(directory, verify=False)
        one = Warming(checkpoint.mapped(), 4096)
        one.finish()
        checkpoint.close()
        for thread in one.threads:
            thread.join(timeout=60)
            assert not thread.is_alive()


def test_a_user_without_a_home_has_no_tiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    assert tile_directory(False) is None
    assert tile_directory(tmp_path) == tmp_path
    assert tile_directory(True) == Path.home() / ".cache" / "linnet" / "tiles"
    monkeypatch.setattr(Path, "home", homeless)
    assert tile_directory(True) is None
