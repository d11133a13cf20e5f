# SPDX-License-Identifier: Apache-2.0
"""The settings of ``linnet compress``, in the order of its help."""

from pathlib import Path
from typing import Any

from linnet.cli import options
from linnet.cli.declaring import Setting
from linnet.cli.numbers import Budget, parse_budget, parse_bytes, parse_count
from linnet.cli.recipes import list_recipes


def _of(name: str, kind: Any, default: Any, *spelling: str, convert: Any = None, **words: Any) -> Setting:
    """One option; ``words`` are typer's."""
    option = options.option(*spelling, **words)
    return Setting(name=name, kind=kind, default=default, convert=convert, option=option)


COMPRESSING = (
    _of(
        "scheme",
        str,
        "W4A16",
        help="What the numbers look like: W4A16, W4A16-g32, W8A16, W8A8, W2A16, NF4, …; -head8, -asym.",
    ),
    _of(
        "algorithm",
        str,
        "gptq",
        help="How codes are chosen: rtn, hqq, kmeans (no data), gptq, autoround, awq, obc, llm_int8, squeezellm; "
        "smoothquant, quarot, lqer, eora.",
    ),
    _of(
        "setting",
        list[str] | None,
        None,
        "--set",
        metavar="NAME=VALUE",
        help="An option of the algorithm; may be given again.",
        show_default=False,
    ),
    _of(
        "recipe",
        str | None,
        None,
        metavar="NAME|FILE",
        callback=list_recipes,
        is_eager=True,
        help="A recipe instead of these: its name (list shows them), or your own YAML file.",
        show_default=False,
    ),
    _of(
        "budget",
        Budget | None,
        None,
        parser=parse_budget,
        metavar="SIZE|BITS",
        help="Mixed precision: bits for each layer so that the result has at most 100MB, or 4.5bits a weight.",
        show_default=False,
    ),
    _of(
        "group_size",
        str | None,
        None,
        help="Columns that share a scale: a number, or auto.",
        show_default="the scheme's",
    ),
    _of(
        "calibration",
        Path | None,
        None,
        convert=lambda path: None if path is None else str(path),
        help="Text, .jsonl, .parquet or dataset to calibrate on.",
        show_default="the model writes its own",
    ),
    _of("calibration_rows", int, 64, help="Rows to calibrate on."),
    _of(
        "calibration_length",
        int | None,
        None,
        parser=parse_count,
        metavar="TOKENS",
        help="Tokens in each row.",
        show_default="512, or the context",
    ),
    _of(
        "max_memory",
        int | None,
        None,
        parser=parse_bytes,
        metavar="SIZE",
        help="Never use more: refuse to start, or stop.",
        show_default="none",
    ),
    _of(
        "from_compressed",
        bool,
        False,
        "--from-compressed",
        help="Take a compressed model (GPTQ, GGUF …) as the original.",
    ),
    Setting(name="seed", kind=int, default=0, option=options.SEED_OPTION),
    _of(
        "overwrite",
        bool,
        False,
        "--overwrite",
        help="Replace an earlier result of Linnet's, and nothing else.",
    ),
    _of(
        "restart",
        bool,
        False,
        "--restart",
        help="Forget an interrupted run instead of resuming it.",
    ),
    options.REVISION,
)
