# SPDX-License-Identifier: Apache-2.0
"""safetensors files out of spooled tensors: which tensor goes into which file, in which order, at which offset.

The format allows no gaps, so alignment is a matter of order: tensors whose size is a multiple of 64 bytes come
first, in the order they were added, each at a multiple of 64; the others follow by falling power of two in their
size, so that each still lies at a multiple of its own element's size.
"""

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from linnet.errors import CheckpointError
from linnet.formats.dtypes import NAME_TO_SAFETENSORS
from linnet.formats.durable import START_AFRESH, copy_range, read_errors, sync_directory, write_durable
from linnet.formats.header import TensorInfo
from linnet.formats.shards import INDEX_FILE, OWN_INDEX_FILE, OWN_SINGLE_FILE, SINGLE_FILE
from linnet.formats.spool import Finished, Spool

ALIGNMENT_BYTES = 64


def split_shards(finished: Mapping[str, Finished], shard_bytes: int) -> list[list[str]]:
    """Names per shard, in order of addition; a shard is closed before it would exceed ``shard_bytes``."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, item in finished.items():
        if shards[-1] and filled + item.info.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += item.info.nbytes
    return shards


def _alignment(nbytes: int) -> int:
    return min(ALIGNMENT_BYTES, nbytes & -nbytes) if nbytes else ALIGNMENT_BYTES


def plan_file(names: list[str], finished: Mapping[str, Finished], file: str) -> tuple[bytes, dict[str, TensorInfo]]:
    """Header (its length included, padded so that the data begins at a multiple of 64) and the tensors in order."""
    ordered = sorted(names, key=lambda name: -_alignment(finished[name].info.nbytes))  # stable
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in ordered:
        info = finished[name].info
        entries[name] = {
            "dtype": NAME_TO_SAFETENSORS[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [position, position + info.nbytes],
        }
        position += info.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT_BYTES)
    tensors = {}
    for name in ordered:
        info = finished[name].info
        offset = 8 + len(text) + entries[name]["data_offsets"][0]
        tensors[name] = TensorInfo(info.dtype, info.shape, info.nbytes, file, offset)
    return len(text).to_bytes(8, "little") + text, tensors


def write_shards(directory: Path, spool: Spool, shard_bytes: int, own_names: bool = False) -> dict[str, TensorInfo]:
    """Write model.safetensors, or shards and their index, each flushed to the disk -> where every tensor lies.

    ``own_names``: names that no other loader looks for. One piece of the spool after another is copied, flushed and
    given up, so that all that is on disk twice is one piece; an attempt that was killed is continued.
    """
    single, index_file = (OWN_SINGLE_FILE, OWN_INDEX_FILE) if own_names else (SINGLE_FILE, INDEX_FILE)
    stem = single.removesuffix(".safetensors")
    shards = split_shards(spool.finished, shard_bytes)
    placed: dict[str, TensorInfo] = {}
    files: dict[str, int] = {}
    try:
        for position, names in enumerate(shards, start=1):
            file = single if len(shards) == 1 else f"{stem}-{position:05d}-of-{len(shards):05d}.safetensors"
            header, tensors = plan_file(names, spool.finished, file)
            files[file] = os.open(directory / file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if os.pwrite(files[file], header, 0) != len(header):
                raise OSError(errno.EIO, "the header was cut short")
            placed |= tensors
        sync_directory(directory)
        for piece, names in _by_piece(spool).items():
            _move_piece(piece, {name: placed[name] for name in names}, files, directory.name, spool)
        for descriptor in files.values():
            os.fsync(descriptor)
            # Copied page by page, read back in large pages, which are mapped faster and read faster: see MappedFile.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        for descriptor in files.values():
            os.close(descriptor)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(info.nbytes for info in placed.values())},
            "weight_map": {name: placed[name].file for name in sorted(placed)},
        }
        write_durable(directory / index_file, json.dumps(index, indent=2).encode() + b"\n")
    return placed


def _by_piece(spool: Spool) -> dict[str, list[str]]:
    """File of the spool -> the tensors in it."""
    pieces: dict[str, list[str]] = {}
    for name, item in spool.finished.items():
        pieces.setdefault(item.info.file, []).append(name)
    return pieces


def _move_piece(
    piece: str, tensors: Mapping[str, TensorInfo], files: Mapping[str, int], staged: str, spool: Spool
) -> None:
    """Copy a piece's tensors to where they will be published, flush, give the piece up; nothing if they are there.

    CheckpointError if an earlier attempt has put them elsewhere.
    """
    ends = {name: replace(info, file=f"{staged}/{info.file}") for name, info in tensors.items()}
    if piece.startswith(f"{staged}/"):
        if any(spool.finished[name].info != info for name, info in ends.items()):
            raise CheckpointError(f"{spool.path_of(piece)} was laid out in another way; {START_AFRESH}")
        return
    path = spool.path_of(piece)
    with read_errors(path, START_AFRESH):
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for name, info in tensors.items():
            copy_range(source, files[info.file], spool.finished[name].info.offset, info.nbytes, info.offset)
    finally:
        os.close(source)
    for file in {info.file for info in tensors.values()}:
        os.fsync(files[file])
    spool.placed(piece, ends)
