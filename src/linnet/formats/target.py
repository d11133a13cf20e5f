# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint may be written: never over its source, and over nothing that Linnet did not write itself.

Looks and never touches. ``foreign`` decides by content: what a manifest lists under the hash it lists.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from linnet.errors import CheckpointError, LinnetError
from linnet.formats.hashing import sha256, sha256_all
from linnet.formats.json_file import read_bytes, read_json_object
from linnet.formats.manifest import FOLDERS, MANIFEST_FILE, MAX_SMALL_FILE_BYTES, read_manifest
from linnet.formats.mapped_file import MappedFile
from linnet.formats.shards import INDEX_FILE, OWN_INDEX_FILE

_CERTIFICATE = re.compile(r"loss_certificate(\.before-\d+)?\.json|\.loss_certificate\.json\.\w+")
"""Certificates, moved aside and unfinished ones too, are Linnet's: they speak of the very result that is replaced."""
_SHOWN = 5
_WEIGHTS = re.compile(r"(model|linnet)(-\d{5}-of-\d{5})?\.safetensors")


def real_target(target: str | Path) -> Path:
    """The directory that is meant, symbolic links and ``..`` on the way followed as the system does.

    CheckpointError for a target that is itself a symbolic link, no directory, or a mount point (nothing can be renamed
    onto one).
    """
    path = Path(target)
    if path.name and path.name != ".." and path.is_symlink():
        raise CheckpointError(f"{path}: exists and is not a directory (a symbolic link to {os.readlink(path)})")
    whole = path.name in ("", "..") or str(path) == "."
    real = Path(os.path.realpath(path)) if whole else Path(os.path.realpath(path.parent)) / path.name
    if real.exists() and not real.is_dir():
        raise CheckpointError(f"{real}: exists and is not a directory")
    if os.path.ismount(real):
        raise CheckpointError(f"{real}: a mount point, which nothing can be renamed onto; give a directory inside it")
    return real


def check_apart(target: Path, source: Path) -> None:
    """CheckpointError if writing ``target`` could harm the model at ``source``: inside it, equal to it or above it.

    Compared by what the directories are, not by how they are spelled: links, bind mounts and other cases of letters are
    seen through. A file that ``source`` only links to counts as well.
    """
    real = Path(os.path.realpath(source))
    if _same(target, real):
        raise CheckpointError(f"{target}: the original itself; its weights would be lost, choose another output")
    if any(_same(parent, real) for parent in target.parents):
        raise CheckpointError(f"{target}: lies inside the original {real}; choose an output outside it")
    if any(_same(parent, target) for parent in real.parents):
        raise CheckpointError(f"{target}: the original {real} lies inside it and would be lost; choose another output")
    for path in real.iterdir() if real.is_dir() else ():
        if path.is_symlink() and any(_same(parent, target) for parent in Path(os.path.realpath(path)).parents):
            raise CheckpointError(
                f"{target}: {path} of the original is a link into it and would be lost; choose another output"
            )


def _same(one: Path, other: Path) -> bool:
    if one == other:
        return True
    try:
        return os.path.samestat(os.stat(one), os.stat(other))
    except OSError:
        return False


def check_replaceable(target: Path, overwrite: bool) -> frozenset[str]:
    """The names at ``target``: none, or with ``overwrite`` those of an unchanged result of ours.

    CheckpointError, naming what is in the way, otherwise.
    """
    names = frozenset(name for name, _ in _entries(target)) if target.is_dir() else frozenset()
    if not names:
        return names
    if not overwrite:
        raise CheckpointError(
            f"{target}: exists and is not empty; choose another output, or replace it with --overwrite (overwrite=True)"
        )
    if not (target / MANIFEST_FILE).is_file():
        raise CheckpointError(
            f"{target}: exists and Linnet did not write it (no {MANIFEST_FILE}): it will not be overwritten; "
            "choose another output"
        )
    found = foreign(target)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise CheckpointError(
            f"{target}: kept as it is, since it holds what {MANIFEST_FILE} does not list, or not so: "
            f"{', '.join(found[:_SHOWN])}{more}; move that elsewhere or choose another output"
        )
    return names


def foreign(directory: Path) -> list[str]:
    """Names in a published directory that are not, byte for byte, what its manifest says; sorted.

    CheckpointError or UnsupportedError if the manifest cannot be read.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        return sorted(name for name, _ in _entries(directory))
    return sorted(name for name, path in _entries(directory) if not _is_listed(name, path, manifest))


def _entries(directory: Path) -> Iterator[tuple[str, Path]]:
    """What lies in a directory, by name; of a folder that a checkpoint may have, what lies in that."""
    for path in directory.iterdir():
        inside = [] if path.name not in FOLDERS or path.is_symlink() or not path.is_dir() else list(path.iterdir())
        yield from ((f"{path.name}/{inner.name}", inner) for inner in inside)
        if not inside:
            yield path.name, path


def _is_listed(name: str, path: Path, manifest: Mapping[str, Any]) -> bool:
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    if name == MANIFEST_FILE or _CERTIFICATE.fullmatch(name):
        return True
    try:
        if name in manifest["files"]:
            return bool(sha256(read_bytes(path, MAX_SMALL_FILE_BYTES)) == manifest["files"][name])
        if name in (INDEX_FILE, OWN_INDEX_FILE):
            weights = read_json_object(path).get("weight_map")
            return isinstance(weights, dict) and weights.keys() <= manifest["tensors"].keys()
        return _WEIGHTS.fullmatch(name) is not None and _are_listed_weights(path, manifest["tensors"])
    except LinnetError:  # unreadable: nothing that a manifest lists
        return False


def _are_listed_weights(path: Path, tensors: Mapping[str, Any]) -> bool:
    file = MappedFile(path)
    try:
        if not all(
            name in tensors and tensors[name].get("dtype") == info.dtype and tensors[name]["shape"] == list(info.shape)
            for name, info in file.tensors.items()
        ):
            return False
        hashes = sha256_all((name, file.raw(info)) for name, info in file.tensors.items())
        return all(tensors[name]["sha256"] == value for name, value in hashes.items())
    finally:
        file.close()


def check_partial(partial: Path, ours: Iterable[str]) -> None:
    """CheckpointError unless ``partial`` is absent or a directory that only holds what a writer makes."""
    if not partial.is_symlink() and not partial.exists():
        return
    if partial.is_symlink() or not partial.is_dir():
        raise CheckpointError(f"{partial}: in the way of an unfinished output, and Linnet did not make it; move it")
    known = set(ours)
    strange = sorted(path.name for path in partial.iterdir() if path.name not in known or path.is_symlink())
    if strange:
        raise CheckpointError(
            f"{partial}: holds what Linnet did not write ({', '.join(strange[:_SHOWN])}); move that elsewhere"
        )


def remove_replaced(directory: Path, names: Iterable[str], target: Path) -> Path | None:
    """Delete what was checked of a replaced result; anything else is kept beside ``target`` -> where, None if nothing.

    Something else is what appeared between the check and the exchange.
    """
    for name in names:
        (directory / name).unlink(missing_ok=True)
    for folder in {(directory / name).parent for name in names} - {directory}:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if not any(directory.iterdir()):
        directory.rmdir()
        return None
    number = 1
    while os.path.lexists(kept := target.with_name(f"{target.name}.kept-{number}")):
        number += 1
    os.rename(directory, kept)
    return kept
