# SPDX-License-Identifier: Apache-2.0
"""``linnet doctor``: which programs read a model, why not, and what to type instead."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from linnet.cli import options
from linnet.errors import CheckpointError, LinnetError

if TYPE_CHECKING:
    from linnet.formats import Checkpoint
    from linnet.formats.programs import Verdict
    from linnet.schemes import LinearScheme

ANSWERS = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]unchecked[/]"}


def doctor(
    model: options.Model,
    as_json: Annotated[bool, options.option("--json", help="Print one JSON array.")] = False,
    revision: options.Revision = None,
) -> None:
    """Say which of Linnet, transformers, vLLM and llama.cpp read a model, why not, and what to type instead.

    Of Linnet it is tried: files, tensors, tokenizer, and whether everything has a kernel. Of the others it is known.

    [dim]Examples[/]

      linnet doctor ./my-model
      linnet doctor model.gguf --json
    """
    from rich.markup import escape
    from rich.table import Table

    from linnet.cli.terminal import output
    from linnet.formats import resolve_model

    path = resolve_model(model, revision)
    found = examine(path)
    if as_json:
        print(json.dumps([asdict(verdict) for verdict in found], indent=2))
        return
    table = Table(
        show_header=False, box=None, padding=(0, 2, 0, 0), title=f"[bold]{path.name}[/]", title_justify="left"
    )
    for verdict in found:
        remedy = f"\ninstead: {verdict.instead}" if verdict.instead else ""
        table.add_row(verdict.program, ANSWERS[verdict.loads], escape(f"{verdict.why}{remedy}"))
    output().print(table)


def examine(path: Path) -> "list[Verdict]":
    """Linnet's verdict first. Raises what opening raises where nothing says what model lies at ``path``."""
    from linnet.formats import Checkpoint
    from linnet.formats.programs import Verdict, identify, verdicts

    refused: LinnetError | None = None
    untold: LinnetError | None = None
    config: dict[str, Any] | None = None
    schemes: Mapping[str, LinearScheme] = {}
    why = ""
    try:
        with Checkpoint.open(path, verify=False) as checkpoint:
            config = checkpoint.config
            try:
                why = f"the {_backend(checkpoint)} backend runs it as it lies"
            except LinnetError as error:
                refused = error
            schemes = checkpoint.schemes()
        untold = _untold(path)
    except LinnetError as error:
        refused = error
    try:
        model = identify(path, schemes, config, damaged=isinstance(refused, CheckpointError))
    except LinnetError as error:
        raise refused or error from None
    if model is None:
        assert refused is not None
        raise refused
    wrong = refused or untold
    linnet = Verdict("Linnet", wrong is None, why if wrong is None else str(wrong))
    return [linnet, *verdicts(model, str(path))]


def _untold(path: Path) -> LinnetError | None:
    """Why its tokens cannot be read, which whatever takes text needs beside the weights."""
    from linnet.text import Tokenizer

    try:
        Tokenizer.open(path)
    except LinnetError as error:
        return error
    return None


def _backend(checkpoint: "Checkpoint") -> str:
    """The name of the one that runs it. Raises what says why none does."""
    from linnet.backends.select import choose_backend
    from linnet.models import load_model
    from linnet.program.choose_numerics import choose_numerics

    return choose_backend(program=choose_numerics(load_model(checkpoint).program, "fast")).name
