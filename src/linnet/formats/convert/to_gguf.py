# SPDX-License-Identifier: Apache-2.0
"""A model -> one GGUF file that llama.cpp loads.

Order: everything that can be refused without reading a weight; each weight into its type, spooled beside the target;
what was lost is announced; the file is published by one rename and, where nothing was lost, read again and hashed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.checkpoint import Checkpoint
from linnet.formats.convert.encoding import PLAIN, Converted, convert_weight
from linnet.formats.convert.hashes import numbers_hash
from linnet.formats.convert.prescribed import dropped
from linnet.formats.convert.result import Conversion
from linnet.formats.convert.source import EMBEDDING, HEAD, SourceTensor, list_tensors, open_weight
from linnet.formats.convert.types import FILE_TYPES, attempts
from linnet.formats.gguf import paired_rows, to_ggml
from linnet.formats.gguf.architectures import Architecture
from linnet.formats.gguf.metadata import architecture_for, metadata_of, rope_factors
from linnet.formats.gguf.names import Named
from linnet.formats.gguf.output import GgufOutput
from linnet.gguf import NAMED_TYPES, PlannedTensor

Array = npt.NDArray[Any]
Importance = Callable[[str], Array | None]
"""Module -> what a squared error in each of its columns counts, or None."""
_VERSION = 1
_ROPE_FACTORS = "rope_freqs.weight"


def to_gguf(
    checkpoint: Checkpoint,
    target: Path,
    wanted: str,
    described: Mapping[str, Any],
    *,
    exact: bool = False,
    importance: Importance = lambda module: None,
    identity: str = "",
    threads: int = 1,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    announce: Callable[[Conversion], None] = lambda conversion: None,
) -> Conversion:
    """Write ``checkpoint`` to ``target`` with its weights as ``wanted`` (parse_target).

    ``described``: metadata of the file besides the architecture's own keys: tokenizer, chat template, names.
    ``exact`` refuses instead of losing anything. ``identity``: what else the bytes depend on (importance).
    ``announce`` is called when all is known and before the target exists; what it raises ends the conversion.
    UnsupportedError: an architecture, tensor or setting that a GGUF file cannot hold; with ``exact``, numbers that
    cannot be held. CheckpointError: the target exists, the disk is full, the source is damaged.
    """
    where = str(checkpoint.path)
    architecture = architecture_for(checkpoint.config, where)
    tensors = list_tensors(checkpoint)
    names = _names(architecture, tensors, where)
    metadata = {
        **metadata_of(checkpoint.config, _title(checkpoint.path), where),
        "general.file_type": FILE_TYPES[wanted],
        **described,
    }
    seed = json.dumps([_VERSION, checkpoint.state(), wanted, exact, identity]).encode()
    with (
        GgufOutput(target, hashlib.sha256(seed).hexdigest()) as output,
        ThreadPoolExecutor(max_workers=threads) as pool,
    ):
        made = []
        for number, tensor in enumerate(tensors):
            progress(tensor.name, number, len(tensors))
            named = names[tensor.name]
            if named.name not in output.finished:
                tries = attempts(tensor, wanted, _is_dense(tensors), _is_head(tensor, tensors), exact)
                weight = open_weight(checkpoint, tensor)
                try:
                    about, data = convert_weight(weight, tensor, tries, importance(tensor.module), pool, threads)
                    data, about = _changed(data, about, named, checkpoint.config)
                    _check_exact(about, exact)
                except UnsupportedError:  # will be refused the next time too
                    output.abandon()
                    raise
                output.add(named.name, data, dataclasses.asdict(about))
            record = output.finished[named.name]
            made.append(Converted(**{**record, "shape": tuple(record["shape"])}))
        planned = [PlannedTensor(names[item.name].name, NAMED_TYPES[item.type], item.shape) for item in made]
        factors = rope_factors(checkpoint.config)
        if factors is not None:
            if _ROPE_FACTORS not in output.finished:
                output.add(_ROPE_FACTORS, factors, {})
            planned.append(PlannedTensor(_ROPE_FACTORS, NAMED_TYPES["F32"], factors.shape))
        sizes = checkpoint.nbytes, sum(item.nbytes for item in made)
        conversion = Conversion(target, tuple(made), *sizes, dropped=dropped(checkpoint, tensors, {}))
        announce(conversion)
        output.publish(metadata, planned)
    if not conversion.exact:
        return conversion
    with Checkpoint.open(target) as published:
        if numbers_hash(published, threads) != conversion.sha256:
            raise CheckpointError(f"{target}: its numbers are not the source's although they should be; do not use it")
    return dataclasses.replace(conversion, verified=True)


def _names(architecture: Architecture, tensors: tuple[SourceTensor, ...], where: str) -> dict[str, Named]:
    names = {tensor.name: to_ggml(architecture, tensor.name) for tensor in tensors}
    strange = [name for name, named in names.items() if named is None]
    if strange:
        raise UnsupportedError(
            f"{where}: {len(strange)} tensors have no place in a GGUF file of the architecture {architecture.name}",
            strange[:5],
        )
    return {name: named for name, named in names.items() if named is not None}


def _is_dense(tensors: tuple[SourceTensor, ...]) -> bool:
    return all(tensor.scheme is None for tensor in tensors)


def _is_head(tensor: SourceTensor, tensors: tuple[SourceTensor, ...]) -> bool:
    has_head = any(other.module == HEAD for other in tensors)
    return tensor.module == (HEAD if has_head else EMBEDDING)


def _changed(data: Array, about: Converted, named: Named, config: Mapping[str, Any]) -> tuple[Array, Converted]:
    """Rows in pairs for the rope, or gains with their 1, as llama.cpp's converter stores them; and what that costs."""
    if named.change == "paired rows":
        heads = config["num_attention_heads"]
        if ".k_proj." in about.name:
            heads = config.get("num_key_value_heads") or heads
        return np.ascontiguousarray(data[paired_rows(len(data), heads)]), about
    if named.change == "plus one":
        stored = np.asarray(data + np.float32(1), PLAIN["F32"])
        off = (stored - np.float32(1)) - data
        return stored, dataclasses.replace(about, squared_error=float(np.sum(off * off)), exact=not off.any())
    return data, about


def _check_exact(about: Converted, wanted: bool) -> None:
    if wanted and not about.exact:
        raise UnsupportedError(
            f"{about.name} would be rounded: GGUF stores such gains with 1 added; nothing was written"
        )


def _title(path: Path) -> str:
    return path.stem if path.suffix == ".gguf" else path.resolve().name
