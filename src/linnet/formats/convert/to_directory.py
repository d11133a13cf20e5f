# SPDX-License-Identifier: Apache-2.0
"""A model -> a Hugging Face directory: plain numbers, or compressed-tensors' layouts.

Order as in to_gguf.py; directories are written and published by ``CheckpointWriter``.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.carried import carried_files
from linnet.formats.checkpoint import Checkpoint
from linnet.formats.convert.encoding import Converted, convert_weight
from linnet.formats.convert.hashes import numbers_hash
from linnet.formats.convert.result import Conversion
from linnet.formats.convert.source import SourceTensor, hashable, list_tensors, open_weight, values_of
from linnet.formats.convert.target import Target
from linnet.formats.convert.types import Attempt
from linnet.formats.target import check_apart
from linnet.formats.writer import CheckpointWriter
from linnet.schemes import LinearScheme, PackedWeight, Scheme, pack, quantize_weight
from linnet.schemes.packing import PACKABLE_BITS

_VERSION = 1
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_STORED = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


def to_directory(
    checkpoint: Checkpoint,
    target: Path,
    wanted: Target,
    files: Mapping[str, str],
    *,
    exact: bool = False,
    threads: int = 1,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    announce: Callable[[Conversion], None] = lambda conversion: None,
) -> Conversion:
    """Write ``checkpoint`` to the directory ``target`` (as ``real_target`` gives it).

    ``files``: name -> text of tokenizer files where the source is no directory, which brings its own. Otherwise as
    ``to_gguf``; UnsupportedError with ``exact`` also for blocks that compressed-tensors has no word for.
    """
    check_apart(target, checkpoint.path)
    tensors = list_tensors(checkpoint)
    seed = json.dumps([_VERSION, checkpoint.state(), str(wanted), exact]).encode()
    identity = hashlib.sha256(seed).hexdigest()
    with (
        CheckpointWriter(target, resume=True, identity=identity) as writer,
        ThreadPoolExecutor(max_workers=threads) as pool,
    ):
        done = {note["tensor"]: note["about"] for note in writer.notes}
        for number, tensor in enumerate(tensors):
            progress(tensor.name, number, len(tensors))
            if tensor.name in done:
                continue
            weight = open_weight(checkpoint, tensor)
            try:
                if wanted.form == "dense" or not isinstance(weight, PackedWeight):
                    about, data = convert_weight(weight, tensor, _plain(tensor, wanted, exact), None, pool, threads)
                    writer.add(tensor.name, data)
                else:
                    about, packed = _repack(weight, tensor, exact)
                    writer.add_packed(tensor.module, packed)
            except UnsupportedError:  # will be refused the next time too
                writer.abandon()
                raise
            done[tensor.name] = dataclasses.asdict(about)
            writer.commit({"tensor": tensor.name, "about": done[tensor.name]})
        made = tuple(Converted(**{**record, "shape": tuple(record["shape"])}) for record in done.values())
        conversion = Conversion(target, made, checkpoint.nbytes, sum(item.nbytes for item in made))
        announce(conversion)
        for name, text in files.items():
            writer.write_text(name, text)
        for path in carried_files(checkpoint.path) if checkpoint.path.is_dir() and not files else ():
            writer.copy_file(path, path.relative_to(checkpoint.path).as_posix())
        writer.publish(_config(checkpoint.config, wanted), {"record": {"converted_to": str(wanted)}})
    if not conversion.exact:
        return conversion
    with Checkpoint.open(target) as published:
        if numbers_hash(published, threads) != conversion.sha256:
            raise CheckpointError(f"{target}: its numbers are not the source's although they should be; do not use it")
    return dataclasses.replace(conversion, verified=True)


def _plain(tensor: SourceTensor, wanted: Target, exact: bool) -> Iterator[Attempt]:
    """Matrices as wanted; norms and biases too if that loses nothing, else fp32. What a compressed-tensors source
    keeps plain stays as it is."""
    if wanted.type is None:
        yield Attempt(_STORED[tensor.stored], True)
    elif len(tensor.shape) == 2:
        yield Attempt(wanted.type, exact)
    else:
        yield Attempt(wanted.type, True)
        yield Attempt("F32", True)


def _repack(weight: PackedWeight, tensor: SourceTensor, exact: bool) -> tuple[Converted, PackedWeight]:
    """The weight in a scheme that compressed-tensors has: with its own codes where it can hold them."""
    values = values_of(weight)
    scheme = _held(weight.scheme.weight)
    if scheme == weight.scheme.weight:
        packed = weight
    elif scheme is not None and not weight.scheme.sorted_columns:
        packed = pack(weight.codes(), weight.scales(), weight.zero_points(), LinearScheme(scheme, weight.scheme.input))
    elif exact:
        raise UnsupportedError(
            f"{tensor.name} ({tensor.stored}) would lose something; nothing was written",
            ["compressed-tensors has no word for its numbers; dense and gguf hold them"],
        )
    else:
        packed = quantize_weight(values, LinearScheme(_nearest(weight.scheme.weight), weight.scheme.input))
    after = packed.dequantize()
    same = bool(np.array_equal(after, values))
    if exact and not same:
        raise UnsupportedError(
            f"{tensor.name} ({tensor.stored}) would lose something; nothing was written",
            ["compressed-tensors: its scales cannot be stored"],
        )
    after -= values
    error = 0.0 if same else float(np.sum(after * after, dtype=np.float64))
    about = Converted(
        tensor.name,
        tensor.shape,
        tensor.stored,
        f"{packed.scheme.weight.element} in {packed.scheme.weight.granularity}s",
        packed.nbytes,
        error,
        float(np.sum(values * values, dtype=np.float64)),
        same,
        hashlib.sha256(hashable(values)).hexdigest(),
    )
    return about, packed


def _held(scheme: Scheme) -> Scheme | None:
    """The scheme in compressed-tensors' words with the same codes and scales; None where there are no such words."""
    numbers = scheme.numbers
    if scheme.minimum or numbers.own or (numbers.integer and numbers.bits not in PACKABLE_BITS):
        return None
    if scheme.scale_bits is not None:
        return dataclasses.replace(scheme, scale_bits=None, super_group_size=None, scale_dtype="fp32")
    return scheme


def _nearest(scheme: Scheme) -> Scheme:
    """What a weight is rounded to where its own codes have no place: int4 with zero points up to 4 bits, else int8."""
    group = scheme.group_size or 32
    if scheme.bits <= 4:
        return Scheme("int4", "group", group, symmetric=False, scale_dtype="fp16")
    return Scheme("int8", "group", group, scale_dtype="fp16")


def _config(config: Mapping[str, Any], wanted: Target) -> dict[str, Any]:
    if wanted.type is None:
        return dict(config)
    return {**{key: config[key] for key in config if key != "dtype"}, "torch_dtype": _DTYPES[wanted.type]}
