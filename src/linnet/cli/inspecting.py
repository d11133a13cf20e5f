# SPDX-License-Identifier: Apache-2.0
"""``linnet inspect`` and ``linnet env``: what is in a model, what is in this machine."""

import json
from typing import Annotated

from linnet.cli import options
from linnet.cli.numbers import human_bytes, parse_count


def inspect(
    model: options.Model,
    context: Annotated[
        int | None,
        options.option(
            parser=parse_count, metavar="TOKENS", help="Context to predict memory for.", show_default="the model's"
        ),
    ] = None,
    sequences: Annotated[int, options.option(help="Concurrent sequences to predict memory for.")] = 1,
    policy: options.Policy = "fast",
    verify: Annotated[
        bool, options.option("--verify", help="Check every tensor against the manifest's SHA-256.")
    ] = False,
    as_json: Annotated[bool, options.option("--json", help="Print one JSON object.")] = False,
    revision: options.Revision = None,
) -> None:
    """Show family, parameters, schemes, bytes and predicted memory, without loading the weights.

    A scheme is how numbers are stored (int4 group 32: four bits each, 32 share a scale). The prediction is for one
    sequence at the longest context, unless you say otherwise.

    [dim]Examples[/]

      linnet inspect ./my-model
      linnet inspect ./my-model-w4 --context 32k --sequences 16 --verify
    """
    from rich.table import Table

    from linnet.cli.terminal import output
    from linnet.formats import Checkpoint, resolve_model
    from linnet.models import load_model
    from linnet.plan import describe
    from linnet.program.choose_numerics import known_policy

    checkpoint = Checkpoint.open(resolve_model(model, revision), verify=True if verify else None)
    facts = describe(load_model(checkpoint), policy=known_policy(policy), context=context, sequences=sequences)
    if verify and checkpoint.manifest is not None:
        tensors, files = len(checkpoint.names()), len(checkpoint.manifest["files"])
        facts["verified"] = f"{tensors} tensors and {files} files, all as published"
    console = output()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(
        show_header=False,
        box=None,
        padding=(0, 2, 0, 0),
        title=f"[bold]{checkpoint.path.name}[/]",
        title_justify="left",
    )
    for key, value in facts.items():
        table.add_row(f"[dim]{key.replace('_', ' ')}[/]", _readable(key, value))
    console.print(table)


def environment(as_json: Annotated[bool, options.option("--json", help="Print one JSON object.")] = False) -> None:
    """Show versions, processor, kernel tier and memory: what a bug report needs.

    The kernel tier is the set of processor instructions that the arithmetic is made for (avx2, avx512, …).

    [dim]Examples[/]

      linnet env
      linnet env --json
    """
    from rich.table import Table

    from linnet.cli.machine import machine
    from linnet.cli.terminal import output

    facts = machine()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, value in facts.items():
        table.add_row(f"[dim]{key.replace('_', ' ')}[/]", _readable(key, value))
    output().print(table)


def _readable(key: str, value: object) -> str:
    if key.endswith("bytes") and isinstance(value, int):
        return f"{human_bytes(value)} ({value:,} bytes)"
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value)
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_readable(name, entry)}" for name, entry in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
