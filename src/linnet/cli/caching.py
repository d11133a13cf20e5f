# SPDX-License-Identifier: Apache-2.0
"""``linnet cache``: what Linnet keeps in the user's cache, and how to be rid of it."""

import json
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from linnet.cli import options
from linnet.cli.numbers import human_bytes, human_duration
from linnet.errors import ConfigError

TILES = "tiles"
OTHERS = {"tokenizers": "converted tokenizers", "verified": "notes of verified checkpoints"}
"""Folder -> what it holds; all of it is made again when it is missing."""

cache = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})


@cache.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    as_json: Annotated[bool, options.option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what Linnet keeps in ~/.cache/linnet, with size and last use; cache clear deletes it.

    Nothing in it is ever needed: what is missing is made again.
    Tiles of a checkpoint that is gone are deleted when new ones are written.

    [dim]Examples[/]

      linnet cache
      linnet cache clear
    """
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from linnet.backends.cpu.tile_files import tile_files
    from linnet.cli.terminal import output

    directory = _directory()
    tiles = tile_files(directory / TILES)
    others = {what: _bytes(directory / name) for name, what in OTHERS.items()}
    total = sum(file.nbytes for file in tiles) + sum(others.values())
    if as_json:
        listed = [
            {
                "file": str(file.path),
                "bytes": file.nbytes,
                "last_use_unix_s": round(file.used_s),
                "kernel_tier": file.isa,
                "checkpoint": None if file.checkpoint is None else str(file.checkpoint),
                "checkpoint_gone": file.orphaned,
            }
            for file in tiles
        ]
        print(json.dumps({"directory": str(directory), "bytes": total, "tiles": listed, "others": others}, indent=2))
        return
    table = Table(
        box=None, padding=(0, 2, 0, 0), header_style="dim", title=f"[bold]{directory}[/]", title_justify="left"
    )
    for name in ("size", "last use", "what"):
        table.add_column(name, justify="right" if name == "size" else "left")
    now = time.time()
    for file in tiles:
        gone = " (gone)" if file.orphaned else ""
        what = f"tiles, {file.isa}: {file.checkpoint or 'unknown checkpoint'}{gone}"
        table.add_row(human_bytes(file.nbytes), f"{human_duration(max(now - file.used_s, 0))} ago", what)
    for what, size in others.items():
        table.add_row(human_bytes(size), "", what)
    table.add_row(human_bytes(total), "", "[bold]total[/]")
    output().print(table)


@cache.command("clear")
def clear() -> None:
    """Delete everything in it but tiles that a running process reads."""
    from linnet.backends.cpu.tile_files import tile_files
    from linnet.cli.terminal import output

    directory = _directory()
    freed = 0
    for file in tile_files(directory / TILES):
        if file.remove():
            freed += file.nbytes
        else:
            output().print(f"kept: {file.path} is in use", markup=False)
    for name in OTHERS:
        freed += _bytes(directory / name)
        shutil.rmtree(directory / name, ignore_errors=True)
    output().print(f"{human_bytes(freed)} freed in {directory}", markup=False)


def _directory() -> Path:
    from linnet.user_cache import user_cache_directory

    try:
        return user_cache_directory()
    except RuntimeError as error:
        raise ConfigError(f"there is no cache: {error}") from None


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
