# SPDX-License-Identifier: Apache-2.0
"""``linnet compress``: a checkpoint goes in, a smaller one comes out."""

import time
from pathlib import Path
from typing import Annotated

from linnet.cli import options
from linnet.cli.numbers import human_bytes, human_duration, parse_bytes, parse_count
from linnet.cli.terminal import output, peak_memory_bytes, stages
from linnet.errors import ConfigError, UnsupportedError


def compress(
    model: options.Model,
    out: Annotated[Path, options.option("--output", "-o", help="Directory to create.", show_default=False)],
    scheme: Annotated[
        str,
        options.option(help="What the numbers look like: W4A16, W4A16-g32, W8A16, W8A8, W2A16, NF4, …; -head8, -asym."),
    ] = "W4A16",
    algorithm: Annotated[
        str, options.option(help="How codes are chosen: rtn (no data) or gptq (calibrated).")
    ] = "gptq",
    recipe: Annotated[
        Path | None, options.option(help="A YAML recipe instead of --scheme and --algorithm.", show_default=False)
    ] = None,
    group_size: Annotated[
        str | None, options.option(help="Columns that share a scale: a number, or auto.", show_default="the scheme's")
    ] = None,
    calibration: Annotated[
        Path | None, options.option(help="UTF-8 text to calibrate on (.xz too).", show_default="bundled text")
    ] = None,
    calibration_rows: Annotated[int, options.option(help="Rows of calibration text.")] = 128,
    calibration_length: Annotated[
        int, options.option(parser=parse_count, metavar="TOKENS", help="Tokens in each row.")
    ] = 512,
    memory_ceiling: Annotated[
        int | None,
        options.option(
            parser=parse_bytes, metavar="SIZE", help="Refuse to start if more is needed.", show_default="none"
        ),
    ] = None,
    seed: options.Seed = 0,
    overwrite: Annotated[bool, options.option("--overwrite", help="Replace an existing output directory.")] = False,
    restart: Annotated[
        bool, options.option("--restart", help="Forget an interrupted run instead of resuming it.")
    ] = False,
    revision: options.Revision = None,
) -> None:
    """Quantise a model, one block in memory at a time; interrupted runs resume where they stopped.

    The result is a compressed-tensors directory that transformers, vLLM and Linnet load.

    [dim]Examples[/]

      linnet compress ./my-model -o ./my-model-w4
      linnet compress ./my-model -o ./my-model-w8 --scheme W8A16 --algorithm rtn
      linnet compress org/model -o ./model-w4 --scheme W4A16-g32 --calibration notes.txt
    """
    try:
        from linnet import compress as room
    except ImportError as error:
        raise UnsupportedError("compressing needs PyTorch: pip install 'linnet[compress]'") from error
    from linnet.formats import resolve_model

    source = resolve_model(model, revision)
    chosen = (
        room.read_recipe(recipe)
        if recipe is not None
        else room.Recipe(
            scheme=scheme,
            algorithm=algorithm,
            group_size=_group_size(group_size),
            calibration_rows=calibration_rows,
            calibration_length=calibration_length,
            seed=seed,
        )
    )
    started = time.monotonic()
    with stages() as progress:
        result = room.compress(
            source,
            out,
            chosen,
            calibration_text=calibration_text(calibration),
            memory_ceiling_bytes=memory_ceiling,
            overwrite=overwrite,
            restart=restart,
            progress=progress.update,
        )
    output().print(
        f"[bold]{out}[/]  {human_bytes(result.source_bytes)} → {human_bytes(result.output_bytes)} "
        f"({result.bits_per_weight:.2f} bits per weight) in {human_duration(time.monotonic() - started)}, "
        f"peak memory {human_bytes(peak_memory_bytes())}"
    )


def calibration_text(path: Path | None) -> str:
    """The given file, or the bundled calibration text."""
    from linnet import demo
    from linnet.cli.evaluating import read_text

    return read_text(demo.calibration_file() if path is None else path)


def _group_size(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(f"--group-size {text!r}: give a positive number, or auto")
    return int(text)
