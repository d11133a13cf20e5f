# SPDX-License-Identifier: Apache-2.0
"""A model -> a Hugging Face directory: plain numbers, or a form in which quantised models are published.

Order as in to_gguf.py; directories are written and published by ``CheckpointWriter``.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.carried import carried_files
from linnet.formats.checkpoint import Checkpoint
from linnet.formats.convert.choosing import choose
from linnet.formats.convert.encoding import Converted, convert_weight
from linnet.formats.convert.hashes import numbers_hash
from linnet.formats.convert.prescribed import dropped, keeps_cache
from linnet.formats.convert.repacking import repack
from linnet.formats.convert.result import Conversion
from linnet.formats.convert.source import SourceTensor, list_tensors, open_weight
from linnet.formats.convert.target import Target
from linnet.formats.convert.types import Attempt
from linnet.formats.prescription import CACHE_SCALES
from linnet.formats.target import check_apart
from linnet.formats.writer import CheckpointWriter

_VERSION = 2
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_STORED = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


def to_directory(
    checkpoint: Checkpoint,
    target: Path,
    wanted: Target,
    files: Mapping[str, str],
    *,
    linears: Collection[str] = (),
    exact: bool = False,
    threads: int = 1,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    announce: Callable[[Conversion], None] = lambda conversion: None,
) -> Conversion:
    """Write ``checkpoint`` to the directory ``target`` (as ``real_target`` gives it).

    ``files``: name -> text of tokenizer files where the source is no directory, which brings its own. ``linears``: the
    modules that are rounded where the source is all plain numbers and the form wanted a quantised one. Otherwise as
    ``to_gguf``; UnsupportedError also for modules that the form cannot hold whatever is lost.
    """
    check_apart(target, checkpoint.path)
    tensors = list_tensors(checkpoint)
    form, choices = choose(tensors, wanted.written, linears, checkpoint.config)
    seed = json.dumps([_VERSION, checkpoint.state(), str(wanted), exact]).encode()
    identity = hashlib.sha256(seed).hexdigest()
    with (
        CheckpointWriter(target, resume=True, identity=identity, form=form) as writer,
        ThreadPoolExecutor(max_workers=threads) as pool,
    ):
        done = {
            note["tensor"]: note["about"] for note in writer.notes if "tensor" in note
        }  # scales of a cache have none
        for number, tensor in enumerate(tensors):
            progress(tensor.name, number, len(tensors))
            if tensor.name in done:
                continue
            weight = open_weight(checkpoint, tensor)
            try:
                if tensor.name not in choices:
                    about, data = convert_weight(weight, tensor, _plain(tensor, wanted, exact), None, pool, threads)
                    writer.add(tensor.name, data)
                else:
                    about, packed = repack(weight, tensor, choices[tensor.name], form, exact, pool, threads)
                    about = dataclasses.replace(about, nbytes=writer.add_packed(tensor.module, packed))
            except UnsupportedError:  # will be refused the next time too
                writer.abandon()
                raise
            done[tensor.name] = dataclasses.asdict(about)
            writer.commit({"tensor": tensor.name, "about": done[tensor.name]})
        if keeps_cache(checkpoint, choices, wanted.written and form):
            for name in sorted(set(filter(CACHE_SCALES.search, checkpoint.names())) - writer.finished):
                writer.add(name, checkpoint.tensor(name))
        made = tuple(Converted(**{**record, "shape": tuple(record["shape"])}) for record in done.values())
        sizes = checkpoint.nbytes, sum(item.nbytes for item in made)
        lost = dropped(checkpoint, tensors, choices, wanted.written and form)
        conversion = Conversion(target, made, *sizes, dropped=lost)
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
    """Plain numbers as wanted: matrices always, norms and biases if that loses nothing, else fp32.

    Beside quantised modules what is plain stays as it is, and what can only be plain there gets 16 bits, those that
    hold it if there are such, and 32 where only these are exact and exactness is asked for.
    """
    if wanted.type is not None and wanted.written is None:
        if len(tensor.shape) == 2:
            yield Attempt(wanted.type, exact)
        else:
            yield Attempt(wanted.type, True)
            yield Attempt("F32", True)
    elif tensor.scheme is None:
        yield Attempt(_STORED[tensor.stored], True)
    else:
        yield Attempt("BF16", True)
        yield Attempt("F16", True)
        yield Attempt("F32", True) if exact else Attempt("F16", False)


def _config(config: Mapping[str, Any], wanted: Target) -> dict[str, Any]:
    if wanted.type is None or wanted.written is not None:
        return dict(config)
    return {**{key: config[key] for key in config if key != "dtype"}, "torch_dtype": _DTYPES[wanted.type]}
