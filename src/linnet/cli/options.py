# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, so that they read the same everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linnet.cli.numbers import parse_bytes, parse_count

if TYPE_CHECKING:
    from linnet.api import LLM


def option(*names: str, **settings: Any) -> Any:
    """An option whose help leaves out its environment variable: ``linnet --help`` states the rule once."""
    return typer.Option(*names, show_envvar=False, **settings)


Model = Annotated[str, typer.Argument(help="Model directory or Hugging Face id.", show_default=False)]
Policy = Annotated[
    str,
    option(help="Arithmetic: [bold]fast[/] (int8 activations before integer weights) or [bold]exact[/] (fp32)."),
]
Threads = Annotated[int | None, option(help="Worker threads.", show_default="one per core")]
Isa = Annotated[
    str | None,
    option(
        help="Force a kernel tier: portable, neon_i8mm, avx2, avx2_vnni, avx512, avx512_vnni.",
        show_default="best this CPU has",
    ),
]
Backend = Annotated[str, option(help="Who executes: auto, cpu or reference.")]
Revision = Annotated[str | None, option(help="Branch, tag or commit of a hub id.", show_default=False)]
KVBytes = Annotated[
    int | None,
    option(
        "--kv-cache-memory",
        parser=parse_bytes,
        metavar="SIZE",
        help="Memory for the KV cache.",
        show_default="what the model asks for, at most 40 % of free memory",
    ),
]
KVCache = Annotated[
    str,
    option(
        help="Numbers of the KV cache: auto (the checkpoint's, else bf16 if fast, fp32 if exact), fp32, bf16, int8, "
        "fp8 or int4."
    ),
]
TileCache = Annotated[
    bool,
    option(
        "--tile-cache/--no-tile-cache",
        help="Keep large integer weights once more in ~/.cache/linnet/tiles, in the order they are read.",
    ),
]
MaxModelLen = Annotated[
    int | None,
    option(
        "--max-model-len",
        parser=parse_count,
        metavar="TOKENS",
        help="Longest prompt + answer.",
        show_default="the model's",
    ),
]
MaxSequences = Annotated[int, option("--max-num-seqs", help="Sequences computed in one step.")]
TokenBudget = Annotated[
    int,
    option("--max-num-batched-tokens", parser=parse_count, metavar="TOKENS", help="Tokens computed in one step."),
]
Seed = Annotated[int, option(help="Seed of everything random in this command.")]


def opener(
    *, threads: int | None = None, isa: str | None = None, backend: str = "auto", **settings: Any
) -> "Callable[..., LLM]":
    """(directory, policy, KV cache type) -> LLM with these settings; the way every command opens a model."""
    from linnet.api import LLM
    from linnet.program.choose_numerics import known_kv_cache, known_policy

    def open_model(path: Path, policy: str, kv_cache: str = "auto") -> "LLM":
        numerics, kv_type = known_policy(policy), known_kv_cache(kv_cache)
        return LLM(path, policy=numerics, kv_cache=kv_type, backend=backend, threads=threads, isa=isa, **settings)

    return open_model
