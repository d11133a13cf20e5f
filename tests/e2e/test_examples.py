# SPDX-License-Identifier: Apache-2.0
"""Everything in examples/ runs as its first lines say, on the bundled model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Running
from test_command_line import linnet

from linnet import demo
from linnet.api import LLM

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL = str(demo.model_directory())


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_generating() -> None:
    lines = run("generate.py", MODEL).splitlines()
    assert lines[0].startswith("Once upon a time")
    assert len(lines) >= 3


def test_compressing_and_comparing(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="compressing needs torch")
    text = tmp_path / "notes.txt"
    text.write_text(demo.heldout_file().read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    lines = run("compress_and_compare.py", MODEL, str(text), str(tmp_path / "out")).splitlines()
    shares = [int(line.split(":")[1].split("%")[0]) for line in lines]
    losses = [float(line.split("KL ")[1].split()[0]) for line in lines]
    assert [line.split(":")[0] for line in lines] == ["W8A16-g32", "W4A16-g32"]
    assert shares[1] < shares[0] < 100
    assert 0 < losses[0] < losses[1]


def test_a_client() -> None:
    pytest.importorskip("openai", reason="the example uses OpenAI's client")
    with Running(LLM(MODEL, kv_bytes=32 * 2**20, max_model_len=256)) as server:
        assert run("client.py", f"{server.url}/v1").strip()


def test_questions_and_a_recipe(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="compressing needs torch")
    small = str(tmp_path / "small")
    assert linnet("compress", MODEL, "-o", small, "--recipe", str(EXAMPLES / "recipe.yaml")).returncode == 0
    config = json.loads((tmp_path / "small" / "config.json").read_text(encoding="utf-8"))
    assert len(config["quantization_config"]["config_groups"]) == 2
    questions = str(EXAMPLES / "questions.jsonl")
    done = linnet("eval", small, "--against", MODEL, "--questions", questions, "--max-tokens", "512")
    assert done.returncode == 0, done.stderr
    for ability in ("facts", "words", "format"):
        assert f"| {ability} |" in done.stdout


def test_a_recipe_of_steps(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="compressing needs torch")
    small = tmp_path / "small"
    assert linnet("compress", MODEL, "-o", str(small), "--recipe", str(EXAMPLES / "steps.yaml")).returncode == 0
    layers = json.loads((small / "linnet_manifest.json").read_text(encoding="utf-8"))["record"]["layers"]
    assert layers["model.layers.1.mlp.down_proj"]["smoothquant"]["alpha"] == 0.5


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        assert path.name == "README.md" or f"[{path.name}]" in listed


def test_every_block_of_the_python_page_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="compressing needs torch")
    page = (EXAMPLES.parent / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    (tmp_path / "my-model").symlink_to(MODEL)
    (tmp_path / "questions.jsonl").symlink_to(EXAMPLES / "questions.jsonl")
    (tmp_path / "notes.txt").write_text(demo.heldout_file().read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    after = "import urllib.request\nassert urllib.request.urlopen(url + '/health', timeout=60).status == 200\n"
    (tmp_path / "page.py").write_text("\n".join([*blocks, after]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "no-such-model" in done.stdout
