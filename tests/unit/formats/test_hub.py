# SPDX-License-Identifier: Apache-2.0
"""Names to directories: local first, then the hub's cache; offline never opens a socket."""

import os
import subprocess
import sys
import textwrap
from fnmatch import fnmatch
from pathlib import Path

import pytest
from model_files import write_model

from linnet.errors import CheckpointError
from linnet.formats import resolve_model
from linnet.formats.hub import IGNORED, PATTERNS
from linnet.text.convert import SOURCES

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_everything_that_the_converter_reads_is_fetched() -> None:
    """A tokenizer's only file too, whatever its name (K14)."""
    for name in (*SOURCES, "tokenizer.json", "config.json", "additional_chat_templates/tool_use.jinja"):
        assert any(fnmatch(name, pattern) for pattern in PATTERNS), name
        assert not any(fnmatch(name, pattern) for pattern in IGNORED), name
    for name in ("pytorch_model.bin", "optimizer.pt", "modeling.py", "rl.model"):
        assert not any(fnmatch(name, pattern) for pattern in PATTERNS), name


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="no revisions"):
        resolve_model(tmp_path, revision="main")


@pytest.mark.parametrize(
    "name",
    [
        "/nowhere/at/all",
        "./nowhere",
        "../up",
        "a/b/c",
        "a b",
        "",
        "-o",
        "a--b/c",
        "owner/..",
        "x" * 9999,
        "~nobody-at-all/m",
    ],
)
def test_neither_directory_nor_id(name: str) -> None:
    with pytest.raises(CheckpointError, match="give a model directory, or a Hugging Face id"):
        resolve_model(name)


def fabricated_cache(home: Path) -> None:
    """What huggingface_hub leaves behind after a download of owner/tiny."""
    repository = home / "hub" / "models--owner--tiny"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for position, path in enumerate(sorted(write_model(home / "source").iterdir())):
        blob = repository / "blobs" / f"{position:040x}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))


def offline(home: Path, code: str, **environment: str) -> str:
    """Run with every socket forbidden."""
    guard = """
        import socket, sys
        def forbidden(event, arguments):
            if event.startswith("socket."):
                raise SystemExit(f"{event} {arguments}")
        sys.addaudithook(forbidden)
        from linnet.errors import CheckpointError
        from linnet.formats import Checkpoint, resolve_model
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(guard) + textwrap.dedent(code)],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "HF_HUB_OFFLINE": "1",
             "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        capture_output=True, text=True, check=False, cwd=home,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_offline_reads_the_cache_without_a_socket(variable: str, tmp_path: Path) -> None:
    fabricated_cache(tmp_path)
    value = tmp_path if variable == "HF_HOME" else tmp_path / "hub"
    code = f"""
        path = resolve_model("owner/tiny")
        assert path.name == "{COMMIT}", path
        assert resolve_model("owner/tiny", revision="{COMMIT}") == path
        with Checkpoint.open(path, verify=True) as checkpoint:
            print(len(checkpoint.names()))
    """
    assert int(offline(tmp_path, code, **{variable: str(value)})) > 5


def test_weights_are_fetched_once() -> None:
    from huggingface_hub.utils import filter_repo_objects

    wanted = [
        "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer.model", "chat_template.jinja", "additional_chat_templates/tool_use.jinja",
    ]  # fmt: skip
    others = ["consolidated.safetensors", "pytorch_model.bin", "original/consolidated.00.pth", "onnx/a.safetensors"]
    found = filter_repo_objects([*wanted, *others], allow_patterns=list(PATTERNS), ignore_patterns=list(IGNORED))
    assert list(found) == wanted


def test_offline_says_what_is_missing(tmp_path: Path) -> None:
    code = """
        try:
            resolve_model("owner/absent")
        except CheckpointError as error:
            print(error)
    """
    output = offline(tmp_path, code, HF_HOME=str(tmp_path))
    assert output == (
        "owner/absent: no such directory, and not in the local Hugging Face cache, and HF_HUB_OFFLINE is set\n"
    )


def test_local_directories_need_no_hub_library(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    code = f"""
        Checkpoint.open(resolve_model({str(tmp_path / "m")!r}))
        for heavy in ("torch", "transformers", "huggingface_hub", "safetensors"):
            assert heavy not in sys.modules, heavy
    """
    offline(tmp_path, code)


def test_gguf_files_and_directories_with_one(tmp_path: Path) -> None:
    file = tmp_path / "a" / "m-00001-of-00002.gguf"
    file.parent.mkdir()
    for path in (file, file.with_name("m-00002-of-00002.gguf"), file.with_name("mmproj-f16.gguf")):
        path.write_bytes(b"GGUF")
    assert resolve_model(file) == file
    assert resolve_model(file.parent) == file, "a split set is one model"
    with pytest.raises(CheckpointError, match=r"m-00001-of-00002\.gguf: a local file has no revisions"):
        resolve_model(file, revision="main")
    file.with_name("other.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"2 GGUF models; give one of them: m-00001-of-00002\.gguf, other\.gguf$"):
        resolve_model(file.parent)
    assert resolve_model(write_model(tmp_path / "m")) == tmp_path / "m"
    (tmp_path / "m" / "copy.gguf").write_bytes(b"GGUF")
    assert resolve_model(tmp_path / "m") == tmp_path / "m", "a directory's own weights come first"


def test_a_gguf_file_of_a_hub_repository(tmp_path: Path) -> None:
    fabricated_cache(tmp_path)
    snapshot = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / COMMIT
    (snapshot / "tiny.Q4_0.gguf").write_bytes(b"GGUF")
    code = """
        print(resolve_model("owner/tiny:tiny.Q4_0.gguf").name)
        for name in ("owner/tiny:tiny.Q8_0.gguf", "owner/absent:m.gguf", "owner/tiny:../m.gguf"):
            try:
                resolve_model(name)
            except CheckpointError as error:
                print(error)
    """
    assert offline(tmp_path, code, HF_HOME=str(tmp_path)).splitlines() == [
        "tiny.Q4_0.gguf",
        "owner/tiny: this Hugging Face repository has no file tiny.Q8_0.gguf",
        "owner/absent: no such directory, and not in the local Hugging Face cache, and HF_HUB_OFFLINE is set",
        "owner/tiny:../m.gguf: no such file or directory; give a model directory, or a Hugging Face id such as "
        "owner/name",
    ]
