# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, so that they read the same everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linnet.cli.numbers import parse_bytes, parse_count

if TYPE_CHECKING:
    from linnet.api import LLM, SamplingDefaults, SamplingParams


def option(*names: str, **settings: Any) -> Any:
    """An option whose help leaves out its environment variable: ``linnet --help`` states the rule once."""
    return typer.Option(*names, show_envvar=False, **settings)


Model = Annotated[
    str, typer.Argument(help="Model directory, GGUF file or Hugging Face id; -m or --model too.", show_default=False)
]
Policy = Annotated[
    str,
    option(help="Arithmetic: [bold]fast[/] (int8 activations before integer weights) or [bold]exact[/] (fp32)."),
]
Threads = Annotated[
    int | None, option(metavar="N", min=1, max=1024, help="Worker threads.", show_default="one per core")
]
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
        "--kv-cache",
        "--kv-cache-dtype",
        help="Numbers of the KV cache: auto (the checkpoint's, else bf16 if fast, fp32 if exact), fp32, bf16, int8, "
        "fp8 or int4.",
    ),
]
TileCache = Annotated[
    bool,
    option(
        "--tile-cache/--no-tile-cache",
        help="Keep large integer weights once more in ~/.cache/linnet/tiles, in the order they are read.",
    ),
]
Quantize = Annotated[
    str | None,
    option(
        metavar="SCHEME",
        help="Round a dense model to nearest while it loads, W8A16 for instance; linnet compress loses less.",
        show_default=False,
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


def _max_tokens(help_text: str, bound: int) -> Any:
    settings = {"help": help_text, "show_default": f"the model's, else {bound}"}
    return option("--max-tokens", "-n", parser=parse_count, metavar="TOKENS", **settings)


MaxTokens = Annotated[int | None, _max_tokens("Stop after this many tokens.", 128)]
ChatMaxTokens = Annotated[int | None, _max_tokens("Longest answer.", 4096)]
Temperature = Annotated[
    float | None,
    option(
        help="0 takes the likeliest token every time; more varies more.",
        show_default="the model's, else 0, or 1 with --top-p, --top-k or --min-p",
    ),
]
TopP = Annotated[
    float | None,
    option(help="Keep the smallest set of tokens with this probability.", show_default="the model's, else 1"),
]
TopK = Annotated[int | None, option(help="Keep this many tokens; 0 keeps all.", show_default="the model's, else 0")]
MinP = Annotated[
    float | None,
    option(help="Keep tokens at least this likely, relative to the likeliest.", show_default="the model's, else 0"),
]
RepetitionPenalty = Annotated[
    float | None, option(help="Above 1 discourages tokens already seen.", show_default="the model's, else 1")
]
GenerationConfig = Annotated[
    str,
    option(
        metavar="auto|none|DIR",
        help="Whose recommended sampling holds where nothing is asked for: auto, the model's generation_config.json; "
        "none; or another folder's.",
    ),
]
Seed = Annotated[int, option(help="Seed of everything random in this command.")]


def sampling(recommended: "SamplingDefaults", **given: Any) -> "SamplingParams":
    """What was asked for (None: not), over what the checkpoint recommends, over the likeliest token.

    Who asks for top_p, top_k or min_p asks for sampling, at temperature 1 if no other is known.
    """
    sampled = any(given.get(name) is not None for name in ("top_p", "top_k", "min_p"))
    return recommended.params(given, {"temperature": 1.0 if sampled else 0.0})


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
