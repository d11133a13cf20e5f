# SPDX-License-Identifier: Apache-2.0
"""What a path is that is not a model directory Linnet reads, and what to give instead: the one place that says so.

Looks at names and at the first bytes of files; opens nothing that could run code and reads no weights.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from linnet.errors import CheckpointError, LinnetError, UnsupportedError
from linnet.formats.json_file import read_json_object

GIVE_ORIGINAL = "give the directory of the original model (config.json and .safetensors files)"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHER_FILES = {
    ".onnx": "an ONNX model",
    ".tflite": "a TensorFlow Lite model",
    ".h5": "a Keras or TensorFlow model",
    ".msgpack": "a Flax model",
    ".mlmodel": "a Core ML model",
    ".npz": "a NumPy archive",
    ".ggml": "a GGML model (before GGUF)",
    ".engine": "a TensorRT engine",
    ".zip": "an archive",
    ".gz": "an archive",
    ".tar": "an archive",
    ".xz": "an archive",
    ".zst": "an archive",
}
UNREAD_METHODS = {
    "aqlm": "AQLM",
    "eetq": "EETQ",
    "torchao": "torchao",
    "vptq": "VPTQ",
    "quip": "QuIP#",
    "spqr": "SpQR",
    "higgs": "HIGGS",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "modelopt": "ModelOpt",
    "quark": "Quark",
}
"""``quant_method`` -> what people call it."""
_READ = ("compressed-tensors", "GGUF", "GPTQ", "AWQ", "FP8", "bitsandbytes", "HQQ", "Quanto", "MXFP4", "BitNet")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def not_a_directory(path: Path) -> LinnetError:
    """The error for a file given where a model directory is needed."""
    if not path.is_file():
        return CheckpointError(f"{path}: neither a directory nor a plain file; {GIVE_ORIGINAL}")
    suffix = path.suffix.lower()
    if suffix in PICKLE_SUFFIXES:
        return CheckpointError(
            f"{path}: a PyTorch pickle file, which can run any code when it is read; Linnet never unpickles: give a "
            "directory with .safetensors files (transformers: save_pretrained)"
        )
    if suffix in _OTHER_FILES:
        return UnsupportedError(
            f"{path}: {_OTHER_FILES[suffix]}, not a Hugging Face model directory; "
            + ("unpack it and give the directory" if _OTHER_FILES[suffix] == "an archive" else GIVE_ORIGINAL)
        )
    if (path.parent / "config.json").exists():
        return CheckpointError(f"{path}: one file of a model, not a directory; give {path.parent}")
    return CheckpointError(
        f"{path}: a file, not a directory; give a Hugging Face model directory (config.json and .safetensors files) or "
        "a GGUF file"
    )


def no_config(directory: Path) -> LinnetError:
    """The error for a directory without a config.json."""
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        return CheckpointError(f"{directory}: cannot be read: {error.strerror}")
    names = {entry.name for entry in entries}
    if not entries:
        return CheckpointError(f"{directory}: an empty directory; {GIVE_ORIGINAL}")
    if "adapter_config.json" in names:
        return _adapter(directory)
    if "model_index.json" in names:
        kind = _text(directory / "model_index.json", "_class_name")
        return UnsupportedError(
            f"{directory}: a diffusers pipeline{f' ({kind})' if kind else ''}, which makes images or sound; Linnet "
            "runs language models"
        )
    inside = _models_inside(entries)
    if inside:
        return CheckpointError(
            f"{directory}: no config.json here, but there is one further in; give {_either(map(str, inside))}"
        )
    found = next((entry for entry in entries if entry.suffix.lower() == ".onnx"), None)
    if found is not None:
        return not_a_directory(found)
    if "params.json" in names:
        return UnsupportedError(
            f"{directory}: a model in its maker's own layout (params.json); give the same model as a Hugging Face "
            "directory (config.json and .safetensors files)"
        )
    if any(entry.suffix == ".safetensors" for entry in entries):
        return CheckpointError(f"{directory}: .safetensors files but no config.json, which says what model they are")
    return CheckpointError(f"{directory}: no config.json, so not a Hugging Face model directory; {GIVE_ORIGINAL}")


def no_weights(directory: Path) -> LinnetError:
    """The error for a directory with a config.json but without .safetensors files that could be read."""
    names = sorted(entry.name for entry in directory.iterdir())
    if "adapter_config.json" in names:
        return _adapter(directory)
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return CheckpointError(
            f"{directory}: only pickle files ({', '.join(pickles[:3])}); Linnet never unpickles, save the model as "
            "safetensors first (transformers: save_pretrained)"
        )
    for suffix in _OTHER_FILES:
        found = next((name for name in names if name.endswith(suffix)), None)
        if found is not None:
            return not_a_directory(directory / found)
    return CheckpointError(
        f"{directory}: no model.safetensors and no model.safetensors.index.json beside its config.json; "
        "was the download finished?"
    )


def unreadable_quantization(method: object, config: Mapping[str, Any], where: str) -> UnsupportedError:
    """The error for a ``quant_method`` that nothing here reads."""
    known = UNREAD_METHODS.get(str(method).lower())
    what = f"{known} weights (quant_method {method!r})" if known else f"quant_method {str(method)[:80]!r}"
    base = _base_named_in(Path(where.partition(": ")[0]).parent, config)
    return UnsupportedError(
        f"{where}: {what}, which this version does not read; it reads {', '.join(_READ)} and Linnet's own "
        f"output: give the original model{f' ({base})' if base else ''}, which linnet compress makes small"
    )


def no_such_path(text: str) -> str:
    """What is wrong with a name that is no path and no hub id, and what was perhaps meant."""
    if not text.strip():
        return "the model has no name; give a model directory, or a Hugging Face id such as owner/name"
    near = _near(text)
    looks = "" if near else "; give a model directory, or a Hugging Face id such as owner/name"
    return f"{text[:200]}: no such file or directory" + (f"; did you mean {_either(near)}?" if near else looks)


def is_plainly_a_path(text: str) -> bool:
    """Whether a missing name can only have been meant as a path: the hub has none like it."""
    suffix = Path(text).suffix.lower()
    if suffix in (".gguf", ".safetensors", ".json", ".jinja", *PICKLE_SUFFIXES, *_OTHER_FILES):
        return True
    return text.startswith((".", "/", "~")) or text.endswith("/") or text.count("/") > 1


def near_paths(text: str) -> str:
    """``; did you mean X?`` for a missing directory with similar neighbours, else nothing."""
    near = _near(text)
    return f"; did you mean the directory {_either(near)}?" if near else ""


def _near(text: str) -> list[str]:
    """Neighbours of a missing path with nearly its name; the first missing step of the path decides."""
    try:
        path = Path(text).expanduser()
        while path.parent != path and not path.parent.exists():
            path = path.parent
        names = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    except (OSError, RuntimeError, ValueError):  # a name too long, a home that cannot be found, a NUL
        return []
    alike = difflib.get_close_matches(path.name, names, n=2, cutoff=0.75)
    return [str(path.parent / name) for name in alike]


def _either(texts: Iterable[str]) -> str:
    return " or ".join(texts)


def _models_inside(entries: list[Path]) -> list[Path]:
    """Folders below that hold a model: a container of several, or the hub's cache of one."""
    found = [entry for entry in entries if (entry / "config.json").exists()]
    for snapshots in entries:
        if snapshots.name == "snapshots" and snapshots.is_dir():
            found += [entry for entry in sorted(snapshots.iterdir()) if (entry / "config.json").exists()]
    return found[:3]


def _adapter(directory: Path) -> LinnetError:
    base = _text(directory / "adapter_config.json", "base_model_name_or_path")
    return UnsupportedError(
        f"{directory}: a PEFT adapter (such as LoRA){f' of {base}' if base else ''}, not a whole model; open its "
        "base with it (generate --adapter DIR, serve --adapter NAME=DIR), or merge the two (peft: merge_and_unload)"
    )


def _base_named_in(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The original that a model card names (``base_model`` in its front matter), else config.json."""
    try:
        with (directory / "README.md").open(encoding="utf-8", errors="replace") as card:
            head = card.read(8192)
    except OSError:
        head = ""
    match = re.search(r"^base_model:\s*(?:\n\s*-\s*)?[\"']?(\S+?)[\"']?\s*$", head, re.MULTILINE)
    for name in (match.group(1) if match else None, config.get("_name_or_path"), config.get("base_model")):
        if isinstance(name, str) and _HUB_NAME.fullmatch(name):
            return name
    return None


def _text(path: Path, key: str) -> str | None:
    """A short text of a JSON file that nobody vouches for."""
    try:
        value = read_json_object(path, 1 << 20).get(key)
    except CheckpointError:
        return None
    return "".join(filter(str.isprintable, value))[:120] if isinstance(value, str) else None
