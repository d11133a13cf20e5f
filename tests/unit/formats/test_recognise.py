# SPDX-License-Identifier: Apache-2.0
"""What a path is that is not a model Linnet reads: a sentence about that form, and what to give instead."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from model_files import write_model

from linnet.errors import CheckpointError, LinnetError, UnsupportedError
from linnet.formats import Checkpoint, resolve_model


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf(pairs: dict[str, object], count: int | None = None) -> bytes:
    """The beginning of a GGUF file: texts, unsigned numbers, lists of texts."""
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs) if count is None else count)
    for key, value in pairs.items():
        data += string(key)
        if isinstance(value, str):
            data += struct.pack("<I", 8) + string(value)
        elif isinstance(value, list):
            data += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(string, value))
        else:
            data += struct.pack("<II", 4, value)
    return data


def folder(path: Path, **files: object) -> Path:
    """A directory with these files; names write ``_dot_`` for a dot; dictionaries become JSON."""
    path.mkdir()
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (path / name.replace("_dot_", ".")).write_bytes(data)
    return path


def quantised(path: Path, method: str, card: str = "") -> Path:
    write_model(path)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (path / "config.json").write_text(json.dumps(config))
    (path / "README.md").write_text(card)
    return path


def hub_cache(path: Path) -> Path:
    write_model(path / "snapshots" / "0123abc")
    (path / "refs").mkdir()
    return path


def model_with(path: Path, name: str) -> Path:
    (write_model(path) / name).write_bytes(b"x")
    return path / name


FORMS: dict[str, tuple[Callable[[Path], Path], type[LinnetError], str]] = {
    "gguf file": (
        lambda p: folder(p, m_dot_gguf=gguf({"general.architecture": "llama", "general.name": "Tiny"})) / "m.gguf",
        CheckpointError,
        r"m\.gguf: llama\.attention\.head_count is missing",
    ),
    "gguf under another name": (
        lambda p: folder(p, blob=gguf({"general.base_model.0.repo_url": "https://huggingface.co/owner/base"})) / "blob",
        CheckpointError,
        r"blob: general\.architecture is missing, which says what model this is",
    ),
    "gguf in a directory": (
        lambda p: folder(p, m_dot_gguf=gguf({})),
        CheckpointError,
        r"m\.gguf: general\.architecture is missing",
    ),
    "gguf beside a config": (
        lambda p: folder(
            p, config_dot_json={"model_type": "llama"}, m_dot_gguf=gguf({"general.architecture": "rwkv7"})
        ),
        UnsupportedError,
        r"m\.gguf: a GGUF file of the architecture 'rwkv7', which this version does not run; it runs llama, qwen2",
    ),
    "several ggufs": (
        lambda p: folder(p, a_dot_gguf=gguf({}), b_dot_gguf=gguf({}), mmproj_dot_gguf=gguf({})),
        CheckpointError,
        r"2 GGUF models; give one of them: a\.gguf, b\.gguf$",
    ),
    "a gguf by its name only": (
        lambda p: folder(p, m_dot_gguf=b"<html>") / "m.gguf",
        CheckpointError,
        "m.gguf: not a GGUF file: it begins with b'<htm'",
    ),
    "aqlm": (
        lambda p: quantised(p, "aqlm", "---\nbase_model: Qwen/Qwen2.5-7B\n---\n"),
        UnsupportedError,
        r"AQLM weights \(quant_method 'aqlm'\), .* give the original model \(Qwen/Qwen2.5-7B\), which linnet compress",
    ),
    "vptq, base in a list": (
        lambda p: quantised(p, "vptq", "---\nbase_model:\n- owner/base\n---\n"),
        UnsupportedError,
        r"VPTQ weights .*original model \(owner/base\)",
    ),
    "exl3": (lambda p: quantised(p, "exl3"), UnsupportedError, "EXL3 weights"),
    "a method of tomorrow": (lambda p: quantised(p, "q9"), UnsupportedError, "quant_method 'q9', which this version"),
    "pickle file": (
        lambda p: folder(p, pytorch_model_dot_bin=b"x") / "pytorch_model.bin",
        CheckpointError,
        "a PyTorch pickle file, .*never unpickles.*save_pretrained",
    ),
    "pickle directory": (
        lambda p: folder(p, config_dot_json={"model_type": "llama"}, pytorch_model_dot_bin=b"x"),
        CheckpointError,
        r"only pickle files \(pytorch_model.bin\); Linnet never unpickles",
    ),
    "onnx": (lambda p: folder(p, model_dot_onnx=b"x"), UnsupportedError, "model.onnx: an ONNX model"),
    "archive": (lambda p: folder(p, m_dot_zip=b"x") / "m.zip", UnsupportedError, "an archive.*unpack it"),
    "adapter": (
        lambda p: folder(p, adapter_config_dot_json={"base_model_name_or_path": "owner/base"}),
        UnsupportedError,
        r"a PEFT adapter \(such as LoRA\) of owner/base, not a whole model; open its base with it",
    ),
    "adapter beside a config": (
        lambda p: folder(p, config_dot_json={"model_type": "llama"}, adapter_config_dot_json={}),
        UnsupportedError,
        "a PEFT adapter",
    ),
    "diffusers": (
        lambda p: folder(p, model_index_dot_json={"_class_name": "FluxPipeline"}),
        UnsupportedError,
        r"a diffusers pipeline \(FluxPipeline\)",
    ),
    "maker's layout": (lambda p: folder(p, params_dot_json={}), UnsupportedError, "its maker's own layout"),
    "empty": (lambda p: folder(p), CheckpointError, "an empty directory"),
    "no config": (lambda p: folder(p, notes_dot_txt=b"x"), CheckpointError, "no config.json, so not a Hugging Face"),
    "weights without config": (
        lambda p: folder(p, model_dot_safetensors=b"x"),
        CheckpointError,
        ".safetensors files but no config.json",
    ),
    "config without weights": (
        lambda p: folder(p, config_dot_json={"model_type": "llama"}),
        CheckpointError,
        "no model.safetensors and no .* was the download finished",
    ),
    "a level too high": (lambda p: write_model(p / "inner").parent, CheckpointError, "further in; give .*/inner$"),
    "the hub's cache": (hub_cache, CheckpointError, "further in; give .*/snapshots/0123abc$"),
    "a file of a model": (
        lambda p: model_with(p, "config.json"),
        CheckpointError,
        "one file of a model, not a directory; give .*/model$",
    ),
    "its weights": (
        lambda p: model_with(p, "model.safetensors"),
        CheckpointError,
        "one file of a model, not a directory; give .*/model$",
    ),
    "any file": (
        lambda p: folder(p, notes_dot_txt=b"x") / "notes.txt",
        CheckpointError,
        "notes.txt: a file, not a directory; give a",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_sentence_about_that_form(tmp_path: Path, form: str) -> None:
    make, kind, sentence = FORMS[form]
    path = make(tmp_path / "model")
    with pytest.raises(kind, match=sentence) as caught:
        Checkpoint.open(resolve_model(path))
    assert str(path.parent if path.is_file() else path) in str(caught.value)
    with pytest.raises(kind, match=sentence):
        Checkpoint.open(path)  # whoever opens without resolving hears the same


@pytest.mark.parametrize(
    ("given", "meant"), [("my-mode", "my-model"), ("my-model/", None), ("models2/a", "models"), ("quite-other", None)]
)
def test_a_mistyped_path_is_told_what_lies_near(tmp_path: Path, given: str, meant: str | None) -> None:
    (tmp_path / "my-model").mkdir()
    (tmp_path / "models").mkdir()
    if (tmp_path / given).exists():
        assert resolve_model(tmp_path / given) == tmp_path / given
        return
    with pytest.raises(CheckpointError) as caught:
        resolve_model(tmp_path / given)
    suggestion = f"did you mean {tmp_path / meant}" if meant else "give a model directory, or a Hugging Face id"
    assert suggestion in str(caught.value)


def test_a_missing_file_is_never_looked_up_on_the_hub() -> None:
    for name in ("owner/model.gguf", "model.safetensors", "here/", "./owner/model"):
        with pytest.raises(CheckpointError, match="no such file or directory"):
            resolve_model(name)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="neither a directory nor a plain file"):
        resolve_model(tmp_path / "pipe")
