# SPDX-License-Identifier: Apache-2.0
"""``linnet cache``: what Linnet keeps in the user's cache, and how to be rid of it."""

import contextlib
import json
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Annotated

import typer

from linnet.cli import options
from linnet.cli.numbers import human_bytes, human_duration
from linnet.cli.words import Command, Group
from linnet.errors import ConfigError
from linnet.user_cache import MODELS, TEXTS, TILES, TOKENIZERS, VERIFIED, user_cache_directory

OTHERS = {
    TOKENIZERS: "converted tokenizers",
    VERIFIED: "notes of verified checkpoints",
    MODELS: "models fetched by tools/real",
    TEXTS: "texts that models wrote to calibrate and measure on",
}
"""Folder -> what it holds; all of it is made again when it is missing."""

cache = typer.Typer(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})


@cache.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    as_json: Annotated[bool, options.option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what Linnet keeps in ~/.cache/linnet, with size and last use; cache clear deletes it.

    Nothing in it is ever needed: what is missing is made again.
    Tiles that nobody will use again are deleted when new ones are written.

    [dim]Examples[/]

      linnet cache
      linnet cache clear
    """
    if context.invoked_subcommand is not None:
        return
    from rich.markup import escape
    from rich.table import Table

    from linnet.backends.cpu.tile_files import partial_folders, tile_files
    from linnet.cli.terminal import output

    directory = _directory()
    tiles = tile_files(directory / TILES)
    others = {what: _bytes(directory / name) for name, what in OTHERS.items()}
    others["unfinished tiles"] = sum(_bytes(folder) for folder in partial_folders(directory / TILES))
    total = sum(file.nbytes for file in tiles) + sum(others.values())
    if as_json:
        listed = [
            {
                "file": str(file.path),
                "bytes": file.nbytes,
                "last_use_unix_s": round(file.used_s),
                "kernel_tier": file.isa,
                "checkpoint": None if file.checkpoint is None else str(file.checkpoint),
                "checkpoint_gone": file.checkpoint_gone,
                "older_format": file.outdated,
            }
            for file in tiles
        ]
        print(json.dumps({"directory": str(directory), "bytes": total, "tiles": listed, "others": others}, indent=2))
        return
    title = f"[bold]{escape(str(directory))}[/]"
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title=title, title_justify="left")
    for name in ("size", "last use", "what"):
        table.add_column(name, justify="right" if name == "size" else "left")
    now = time.time()
    for file in tiles:
        state = " (gone)" if file.checkpoint_gone else " (of an older Linnet)" if file.outdated else ""
        what = f"tiles, {file.isa}: {file.checkpoint or 'unknown checkpoint'}{state}"
        table.add_row(human_bytes(file.nbytes), f"{human_duration(max(now - file.used_s, 0))} ago", escape(what))
    for what, size in others.items():
        table.add_row(human_bytes(size), "", what)
    table.add_row(human_bytes(total), "", "[bold]total[/]")
    output().print(table)


@cache.command("clear", cls=Command)
def clear() -> None:
    """Delete everything in it but what a running process reads or writes."""
    from linnet.backends.cpu.tile_files import partial_folders, remove_partial, tile_files
    from linnet.cli.terminal import output

    directory = _directory()
    freed, kept = 0, []
    for file in tile_files(directory / TILES):
        try:
            if file.remove():
                freed += file.nbytes
            else:
                kept.append(f"{file.path} is in use")
        except OSError as error:
            kept.append(f"{file.path} cannot be deleted: {error.strerror or error}")
    unfinished = partial_folders(directory / TILES)
    before = sum(map(_bytes, unfinished))
    kept += remove_partial(directory / TILES)
    freed += max(before - sum(map(_bytes, unfinished)), 0)  # somebody may be writing
    for name in OTHERS:
        freed += _remove_content(directory / name, kept)
    for reason in kept:
        output().print(f"kept: {reason}", markup=False)
    output().print(f"{human_bytes(freed)} freed in {directory}", markup=False)


def _remove_content(folder: Path, kept: list[str]) -> int:
    """Delete what lies in ``folder``; returns the bytes that are really gone and adds to ``kept`` what is not."""
    from linnet.text.convert import TIMEOUT_S, WORKPLACE_PREFIX

    if folder.is_symlink():
        kept.append(f"{folder} is a link; what it points to is not Linnet's to delete")
        return 0
    freed = 0
    for path in list(folder.glob("*")):
        before = _bytes(path)
        try:
            if path.name.startswith(WORKPLACE_PREFIX) and time.time() - path.lstat().st_mtime < 2 * TIMEOUT_S:
                kept.append(f"{path}: a conversion may be running")
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:  # somebody else was faster
            pass
        except OSError as error:
            kept.append(f"{path} cannot be deleted: {error.strerror or error}")
        freed += max(before - _bytes(path), 0)
    return freed


def _directory() -> Path:
    try:
        return user_cache_directory()
    except RuntimeError as error:
        raise ConfigError(f"there is no cache: {error}") from None


def _bytes(path: Path) -> int:
    """The bytes of a file, or of all files in a folder; what vanishes meanwhile or cannot be read counts as nothing."""
    files = [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            status = file.lstat()
            total += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return total
