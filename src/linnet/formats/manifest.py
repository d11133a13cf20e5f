# SPDX-License-Identifier: Apache-2.0
"""linnet_manifest.json: what a published checkpoint consists of, with the SHA-256 of every tensor and small file."""

import re
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.dtypes import NAME_TO_NUMPY
from linnet.formats.hashing import combined_digest, sha256, sha256_all
from linnet.formats.header import TensorInfo
from linnet.formats.json_file import read_bytes, read_json_object

MANIFEST_FILE = "linnet_manifest.json"
MANIFEST_VERSION = 1
MAX_SMALL_FILE_BYTES = 256 << 20
FOLDERS = ("additional_chat_templates", "1_Pooling")
"""The folders that a checkpoint may have; every other file lies beside config.json."""


def build_manifest(
    tensors: Mapping[str, TensorInfo], hashes: Mapping[str, str], files: Mapping[str, str], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """``extra`` is the caller's record (recipe, versions, errors per layer), kept under ``record``."""
    return {
        "format_version": MANIFEST_VERSION,
        "digest": combined_digest(tensors, hashes),
        "tensors": {
            name: {"dtype": tensors[name].dtype, "shape": list(tensors[name].shape), "sha256": hashes[name]}
            for name in sorted(tensors)
        },
        "files": dict(sorted(files.items())),
        "record": dict(extra),
    }


def tensor_bytes(manifest: Mapping[str, Any]) -> int:
    """Of all tensors that it lists."""
    return sum(
        int(NAME_TO_NUMPY[item["dtype"]].itemsize) * prod(item["shape"]) for item in manifest["tensors"].values()
    )


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The checked manifest, None if there is none."""
    path = directory / MANIFEST_FILE
    if not path.exists():
        return None
    manifest = read_json_object(path, limit=256 << 20)
    if manifest.get("format_version") != MANIFEST_VERSION:
        raise UnsupportedError(
            f"{path}: format_version {manifest.get('format_version')!r:.40} is not known; known: {MANIFEST_VERSION}"
        )
    tensors, files = manifest.get("tensors"), manifest.get("files")
    if not isinstance(tensors, dict) or not isinstance(files, dict) or not isinstance(manifest.get("digest"), str):
        raise CheckpointError(f"{path}: needs digest, tensors and files")
    for name, entry in tensors.items():
        if not isinstance(entry, dict) or not _is_hash(entry.get("sha256")) or not isinstance(entry.get("shape"), list):
            raise CheckpointError(f"{path}: tensor {name[:200]!r} needs dtype, shape and sha256")
    for name, value in files.items():
        if not _is_hash(value) or not is_file_name(name):
            raise CheckpointError(f"{path}: file {name[:200]!r} needs a plain name and a SHA-256")
    if not isinstance(manifest.get("record", {}), dict):
        raise CheckpointError(f"{path}: its record must be an object")
    return manifest


def is_file_name(name: str) -> bool:
    """Whether a file of a checkpoint may be called so: a plain name, or one in a folder of ``FOLDERS``."""
    folder, slash, plain = name.rpartition("/")
    return bool(plain) and not plain.startswith(".") and "\0" not in plain and (not slash or folder in FOLDERS)


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def lost_manifest(directory: Path) -> bool:
    """Whether Linnet wrote this directory, by its model card or certificate, and its manifest is gone."""
    if (directory / MANIFEST_FILE).exists():
        return False
    if (directory / "loss_certificate.json").exists():
        return True
    try:
        with (directory / "README.md").open("rb") as card:
            return b"\nlibrary_name: linnet\n" in card.read(4096)
    except OSError:
        return False


def check_structure(directory: Path, manifest: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Names, types and shapes on disk are those that were published. Cheap; reads no data."""
    path = directory / MANIFEST_FILE
    listed: Mapping[str, Any] = manifest["tensors"]
    for name in listed:
        if name not in tensors:
            raise CheckpointError(f"{directory}: tensor {name!r} is missing, {path.name} lists it")
    for name, info in tensors.items():
        entry = listed.get(name)
        if entry is None:
            raise CheckpointError(f"{directory / info.file}: tensor {name!r} is not listed in {path.name}")
        if entry.get("dtype") != info.dtype or entry["shape"] != list(info.shape):
            raise CheckpointError(
                f"{directory / info.file}: tensor {name!r} is {info.dtype} {list(info.shape)}, "
                f"{path.name} says {entry.get('dtype')} {entry['shape']}"
            )


def verify(
    directory: Path,
    manifest: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    raw: Callable[[str], memoryview],
) -> None:
    """Hash everything; CheckpointError naming the first tensor or file whose bytes changed since publication."""
    for name, expected in manifest["files"].items():
        if sha256(read_bytes(directory / name, MAX_SMALL_FILE_BYTES)) != expected:
            raise CheckpointError(
                f"{directory / name}: changed since it was published (SHA-256 differs from {MANIFEST_FILE}); "
                "if you edited it on purpose, open without verification or drop its line there"
            )
    hashes = sha256_all((name, raw(name)) for name in tensors)
    damaged = [name for name, actual in hashes.items() if actual != manifest["tensors"][name]["sha256"]]
    if damaged:
        others = f" (and {len(damaged) - 1} more of {len(hashes)} tensors)" if len(damaged) > 1 else ""
        raise CheckpointError(
            f"{directory / tensors[damaged[0]].file}: tensor {damaged[0]!r}{others} is damaged: "
            f"its SHA-256 is not the one in {MANIFEST_FILE}"
        )
    if combined_digest(tensors, hashes) != manifest["digest"]:
        raise CheckpointError(f"{directory / MANIFEST_FILE}: its digest does not belong to its tensors")
