# SPDX-License-Identifier: Apache-2.0
"""safetensors files out of spooled tensors: which tensor goes into which file, in which order, at which offset.

The format allows no gaps, so alignment is a matter of order: tensors whose size is a multiple of 64 bytes come
first, in the order they were added, each at a multiple of 64; the others follow by falling power of two in their
size, so that each still lies at a multiple of its own element's size.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linnet.formats.dtypes import NAME_TO_SAFETENSORS
from linnet.formats.durable import START_AFRESH, copy_range, read_errors, write_durable
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

    ``own_names``: names that no other loader looks for.
    """
    single, index_file = (OWN_SINGLE_FILE, OWN_INDEX_FILE) if own_names else (SINGLE_FILE, INDEX_FILE)
    stem = single.removesuffix(".safetensors")
    shards = split_shards(spool.finished, shard_bytes)
    placed: dict[str, TensorInfo] = {}
    for position, names in enumerate(shards, start=1):
        file = single if len(shards) == 1 else f"{stem}-{position:05d}-of-{len(shards):05d}.safetensors"
        header, tensors = plan_file(names, spool.finished, file)
        _write_file(directory / file, header, [spool.finished[name].info for name in tensors], spool)
        placed |= tensors
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(info.nbytes for info in placed.values())},
            "weight_map": {name: placed[name].file for name in sorted(placed)},
        }
        write_durable(directory / index_file, json.dumps(index, indent=2).encode() + b"\n")
    return placed


def _write_file(path: Path, header: bytes, sources: list[TensorInfo], spool: Spool) -> None:
    pieces: dict[str, int] = {}
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        while header:
            header = header[os.write(target, header) :]
        for info in sources:
            if info.file not in pieces:
                piece = spool.piece_path(info.file)
                with read_errors(piece, START_AFRESH):
                    pieces[info.file] = os.open(piece, os.O_RDONLY | os.O_CLOEXEC)
            copy_range(pieces[info.file], target, info.offset, info.nbytes)
        os.fsync(target)
        # Copied page by page, read back in large pages, which are mapped faster and read faster: see MappedFile.
        os.posix_fadvise(target, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        for descriptor in (target, *pieces.values()):
            os.close(descriptor)
