# SPDX-License-Identifier: Apache-2.0
"""``linnet convert``: the same model in another form on disk."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linnet.cli import options
from linnet.cli.numbers import human_bytes, human_duration
from linnet.errors import ConfigError

if TYPE_CHECKING:
    from linnet.formats import Checkpoint
    from linnet.formats.convert import Conversion

_SHOWN_TYPES = 4


def convert(
    model: options.Model,
    target: Annotated[Path, typer.Argument(help="File or directory to create.", show_default=False)],
    to: Annotated[
        str,
        options.option(
            help="gguf:TYPE (Q4_K, Q8_0, BF16, …), dense (bf16; dense:F16, dense:F32), compressed-tensors, gptq, awq, "
            "bitsandbytes, fp8 or mxfp4 (gptq and awq take a scheme: gptq:W8A16-g32).",
            show_default=False,
        ),
    ],
    exact: Annotated[
        bool, options.option("--exact", help="Refuse if a single number of the weights would change.")
    ] = False,
    imatrix: Annotated[
        Path | None,
        options.option(help="Importance matrix from llama.cpp, for what must be rounded.", show_default=False),
    ] = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
) -> None:
    """Write a model in another form: GGUF, GPTQ, AWQ, NF4, fp8, MXFP4, plain numbers.

    Codes that the other form can hold are carried over unchanged, whatever else is rounded with the least error; what
    that costs is said before the target exists. One weight at a time; interrupted runs resume.

    [dim]Examples[/]

      linnet convert ./my-model my-model.gguf --to gguf:Q4_K
      linnet convert ./my-model-w4 my-model.gguf --to gguf:Q4_0 --exact
      linnet convert my-model.gguf ./my-model --to dense
      linnet convert ./my-model-w4 ./my-model-gptq --to gptq --exact
    """
    from linnet.cli.terminal import notices, output, stages
    from linnet.formats import Checkpoint, resolve_model
    from linnet.formats.convert import parse_target, to_directory, to_gguf
    from linnet.formats.target import real_target
    from linnet.models import load_model

    wanted = parse_target(to)
    if imatrix is not None and wanted.form != "gguf":
        raise ConfigError(f"--imatrix goes with --to gguf:TYPE, not with {wanted}: other forms are rounded without it")
    started = time.monotonic()
    with stages() as progress:
        progress.begin("convert", "reading the model")
        path = resolve_model(model, revision)
        common: dict[str, Any] = {
            "exact": exact,
            "threads": threads or _cores(),
            "progress": lambda name, done, total: progress.update("convert", done, total, name),
            "announce": lambda conversion: notices().print(_cost(conversion)),
        }
        with Checkpoint.open(path) as checkpoint:
            if checkpoint.lacks_shapes:
                load_model(checkpoint)
            if wanted.form == "gguf":
                assert wanted.type is not None
                if imatrix is not None:
                    common |= _importance(imatrix, checkpoint)
                made = to_gguf(checkpoint, target, wanted.type, _described(checkpoint), **common)
            else:
                linears = _linears(checkpoint) if wanted.written is not None else ()
                made = to_directory(
                    checkpoint, real_target(target), wanted, _files(checkpoint), linears=linears, **common
                )
    output().print(
        f"[bold]{made.path}[/]  {human_bytes(made.source_bytes)} → {human_bytes(made.target_bytes)} "
        f"in {human_duration(time.monotonic() - started)}"
    )
    if made.verified:
        output().print(f"read again: the same numbers, SHA-256 {made.sha256}")


def _cost(made: "Conversion") -> str:
    """One line: sizes, types, and what is lost."""
    types = made.types()
    total = sum(types.values())
    shares = [f"{name} {100 * count / total:.3g} %" for name, count in types.items()]
    more = "" if len(shares) <= _SHOWN_TYPES else f" and {len(shares) - _SHOWN_TYPES} more types"
    if made.exact:
        lost = f"no number changes, SHA-256 of the weights {made.sha256}"
    else:
        name, worst = made.worst
        lost = (
            f"the weights change by {100 * made.relative_error:.3g} % (root mean square, relative), "
            f"{name} most, by {100 * worst:.3g} %"
        )
    sizes = f"{human_bytes(made.source_bytes)} → {human_bytes(made.target_bytes)}"
    return "; ".join([f"{sizes}: {', '.join(shares[:_SHOWN_TYPES])}{more}", lost, *made.dropped])


def _linears(checkpoint: "Checkpoint") -> tuple[str, ...]:
    """The linears inside the layers of a model of plain numbers; a quantised one says itself which they are."""
    from linnet.models import load_model

    if checkpoint.schemes():
        return ()
    return tuple(info.module for info in load_model(checkpoint).linears() if info.kind == "linear")


def _described(checkpoint: "Checkpoint") -> dict[str, Any]:
    """The tokenizer and what the model calls itself: as the source's own file says it, or from its directory."""
    from linnet.gguf import GgufModel, gguf_of
    from linnet.text.gguf_vocabulary import gguf_vocabulary

    file = gguf_of(checkpoint.path)
    if file is not None:
        with GgufModel(file) as source:
            kept = ("general.", "tokenizer.")
            left = ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment")
            return {key: value for key, value in source.metadata.items() if key.startswith(kept) and key not in left}
    return gguf_vocabulary(checkpoint.path, checkpoint.config["vocab_size"])


def _importance(path: Path, checkpoint: "Checkpoint") -> dict[str, Any]:
    from linnet.formats.convert.importance import read_importance
    from linnet.formats.gguf.metadata import architecture_for

    importance, digest = read_importance(path, architecture_for(checkpoint.config, str(checkpoint.path)))
    return {"importance": importance, "identity": digest}


def _files(checkpoint: "Checkpoint") -> dict[str, str]:
    """The tokenizer's files out of a GGUF file; a directory brings its own."""
    from linnet.gguf import gguf_of
    from linnet.text.gguf_directory import tokenizer_files

    file = gguf_of(checkpoint.path)
    return {} if file is None else tokenizer_files(file)


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))
