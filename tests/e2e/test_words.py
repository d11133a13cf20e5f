# SPDX-License-Identifier: Apache-2.0
"""A hostile user at every command: each mistake ends with its status and one sentence, in the spelling that was typed.

The rows run in this process, through the same path as ``linnet`` itself.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_llama import write_tiny_llama

from linnet.cli.main import run

QUESTION = '{"id":"a","ability":"x","kind":"choice","answer":%s,"prompt":"p","choices":[" a"," b"]}\n'
FILES: dict[str, bytes] = {
    "empty.txt": b"",
    "latin.txt": b"ab \xe9 \xff\xfe",
    "short.txt": b"the quick brown fox. " * 50,
    "broken.xz": b"not xz",
    "bad.yaml": b"scheme: [W4",
    "unknown.yaml": b"scheme: W4A16\nalgoritm: rtn\n",
    "negative.yaml": b"scheme: W8A16\ncalibration_rows: -3\n",
    "list.yaml": b"- 1\n",
    "type.yaml": b"scheme: 5\n",
    "little.yaml": b"scheme: W8A16\nalgorithm: gptq\ncalibration: short.txt\n",
    "kind.jsonl": b'{"id": 1}\n',
    "none.jsonl": b"\n",
    "not.jsonl": b"nope\n",
    "index.jsonl": (QUESTION % 7).encode(),
    "good.jsonl": (QUESTION % 0).encode(),
    "short.key": b"abc\n",
    "no.key": b"# nothing\n",
    "file": b"x",
}

INTERNAL = re.compile(
    r"Traceback|Errno|`|codec can't|\b(kv_bytes|token_budget|max_sequences|max_tokens|max_model_len|step_budget_s"
    r"|shutdown_s|top_p|top_k|min_p|queue_body_bytes|kv_cache|per_ability)\b|Input should be|\.py\b"
)
"""What a person at a terminal has never typed."""


def rows() -> list[tuple[str, int, str]]:
    """(command line, exit status, what the sentence holds; … stands for anything)."""
    lines = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").splitlines()
    parts = [line.split(" | ") for line in lines if not line.startswith("#")]
    return [(command, int(status), sentence) for command, status, sentence in parts]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and everything that can be wrong beside it."""
    folder = tmp_path_factory.mktemp("words")
    write_tiny_llama(folder / "m")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "model.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    (folder / "aqlm").mkdir()
    (folder / "aqlm" / "config.json").write_text('{"quantization_config": {"quant_method": "aqlm"}}')
    return folder


@pytest.fixture
def typed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str], tuple[int, str]]]:
    """Runs a command line in that folder; leaves it as it was."""
    from huggingface_hub import constants

    monkeypatch.chdir(place)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(place))
    before = sorted(path.name for path in place.iterdir())

    def type_(line: str) -> tuple[int, str]:
        capsys.readouterr()
        status = run(shlex.split(line))
        return status, capsys.readouterr().err

    yield type_
    after = sorted(path.name for path in place.iterdir() if path.name != ".cache")
    assert after == [name for name in before if name != ".cache"], "a refused command leaves nothing behind"


def check(result: tuple[int, str], status: int, sentence: str) -> None:
    """The status, the words in their order, one sentence, and nothing that only a programmer knows."""
    found, said = result
    words = " ".join(said.split())
    assert found == status, words
    assert re.search(".*".join(re.escape(part.strip()) for part in sentence.split("…")), words), words
    assert words.startswith("linnet"), words
    assert not INTERNAL.search(words), words
    lines = said.strip().splitlines()
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("See: linnet ")), said


@pytest.mark.parametrize(("line", "status", "sentence"), rows(), ids=[line for line, _, _ in rows()])
def test_a_mistake_ends_in_one_sentence(
    typed: Callable[[str], tuple[int, str]], line: str, status: int, sentence: str
) -> None:
    if line.startswith("compress"):
        pytest.importorskip("torch", reason="compressing needs torch")
    check(typed(line), status, sentence)


def test_the_program_itself_ends_without_a_traceback(place: Path) -> None:
    """What only a process of its own can meet: a full disk, closed streams, a terminal without letters."""
    command = f"{shlex.quote(sys.executable)} -m linnet.cli.main"
    for line, status, said in (
        (f"{command} env > /dev/full", 1, "linnet: No space left on device"),
        (f"{command} env >&- 2>&- <&-", 0, ""),
        (f"PYTHONIOENCODING=ascii {command} inspect m", 0, ""),
        (f"printf 'ab \\351' | {command} generate m - --no-stats", 2, "not UTF-8"),
    ):
        done = subprocess.run(["sh", "-c", line], cwd=place, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (status, False), (line, done)
        assert said in done.stderr, (line, done)
