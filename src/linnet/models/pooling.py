# SPDX-License-Identifier: Apache-2.0
"""What of a text's hidden states makes its embedding, as a checkpoint says it: modules.json and the folder of its
pooling, as sentence-transformers writes them, or the metadata of a GGUF file."""

import json
from pathlib import Path
from typing import Any

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats import Checkpoint
from linnet.formats.json_file import MAX_JSON_BYTES, read_bytes, read_json_object
from linnet.settings import Pooling

MODULES = "modules.json"
MODES: dict[str, Pooling] = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
"""Flags ``pooling_mode_...`` of a pooling's config; another that is set is refused."""
NAMED_MODES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
"""Values of its field ``pooling_mode``, which newer files have instead."""
GGUF_FIELD = "_pooling_type"
"""Of a config that was made of a GGUF file's metadata."""
GGUF_MODES: dict[int, Pooling] = {1: "mean", 2: "cls", 3: "last"}


def read_pooling(checkpoint: Checkpoint, default: Pooling) -> Pooling:
    """What the checkpoint says, ``default`` where it says nothing.

    Raises CheckpointError for a damaged file, UnsupportedError for a pooling or a module that nothing here computes.
    """
    kind = checkpoint.config.get(GGUF_FIELD)
    if kind is not None:
        return _known(GGUF_MODES.get(kind), f"{checkpoint.path}: pooling_type is {kind!r}", map(str, GGUF_MODES))
    path = checkpoint.path / MODULES
    if not path.is_file():
        return default
    found = default
    for module in _modules(path):
        kind = str(module.get("type")).rpartition(".")[2]
        if kind == "Pooling":
            found = _of_config(checkpoint.path / _folder(module, path) / "config.json")
        elif kind not in ("Transformer", "Normalize"):
            raise UnsupportedError(
                f"{path}: a module of the type {kind[:60]!r}; supported are Transformer, Pooling and Normalize"
            )
    return found


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(read_bytes(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: not valid JSON") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{path}: a list of modules is needed")
    return modules


def _folder(module: dict[str, Any], path: Path) -> str:
    """A plain name beside config.json: never another place."""
    name = module.get("path")
    if not isinstance(name, str) or not name or name.startswith(".") or set(name) & {"/", "\\", "\0"}:
        raise CheckpointError(f"{path}: path is {name!r}; accepted is the name of a folder")
    return name


def _of_config(path: Path) -> Pooling:
    config = read_json_object(path)
    named = config.get("pooling_mode")
    if named is not None:
        shown = NAMED_MODES.get(named) if isinstance(named, str) else None
        return _known(shown, f"{path}: pooling_mode is {named!r}", NAMED_MODES)
    chosen = sorted(
        name.removeprefix("pooling_mode_")
        for name, value in config.items()
        if value is True and name.startswith("pooling_mode_")
    )
    shown = MODES.get(chosen[0]) if len(chosen) == 1 else None
    return _known(shown, f"{path}: pooling_mode_... is true for {', '.join(chosen) or 'none'}", MODES)


def _known(found: Pooling | None, said: str, accepted: Any) -> Pooling:
    if found is None:
        raise UnsupportedError(f"{said[:300]}; supported is one of {', '.join(accepted)}")
    return found
