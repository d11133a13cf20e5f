# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, so that they read the same everywhere."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linnet.cli.declaring import Given, Setting
from linnet.cli.numbers import parse_count, parse_kv_memory
from linnet.settings import BackendSettings, EngineSettings

if TYPE_CHECKING:
    from linnet.api import LLM, Opening, SamplingDefaults, SamplingParams


def option(*names: str, **settings: Any) -> Any:
    """An option whose help leaves out its environment variable: ``linnet --help`` states the rule once."""
    return typer.Option(*names, show_envvar=False, **settings)


Model = Annotated[
    str, typer.Argument(help="Model directory, GGUF file or Hugging Face id; -m or --model too.", show_default=False)
]

_POLICY = option(help="Arithmetic: [bold]fast[/] (int8 activations before integer weights) or [bold]exact[/] (fp32).")
_REVISION = option(help="Branch, tag or commit of a hub id.", show_default=False)
_THREADS = option(metavar="N", min=1, max=1024, help="Worker threads.", show_default="one per core")
SEED_OPTION = option(help="Seed of everything random in this command.")

Policy = Annotated[str, _POLICY]
Revision = Annotated[str | None, _REVISION]
Threads = Annotated[int | None, _THREADS]
Seed = Annotated[int, SEED_OPTION]

# How a model is opened.

POLICY = Setting(name="policy", kind=str, default="fast", option=_POLICY)
REVISION = Setting(name="revision", kind=str | None, default=None, option=_REVISION)
THREADS = Setting(name="threads", record=BackendSettings, option=_THREADS)
ISA = Setting(
    name="isa",
    record=BackendSettings,
    option=option(
        help="Force a kernel tier: portable, neon_i8mm, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16.",
        show_default="best this CPU has",
    ),
)
BACKEND = Setting(
    name="backend",
    record=BackendSettings,
    field="name",
    option=option(help="Who executes: auto, cpu or reference."),
)
TILE_CACHE = Setting(
    name="tile_cache",
    record=BackendSettings,
    kind=bool,
    option=option(
        "--tile-cache/--no-tile-cache",
        help="Keep large integer weights once more in ~/.cache/linnet/tiles, in the order they are read.",
    ),
)
KV_BYTES = Setting(
    name="kv_cache_memory",
    record=EngineSettings,
    field="kv_bytes",
    kind=str | None,
    option=option(
        parser=parse_kv_memory,
        metavar="SIZE",
        help="Memory for the KV cache; all: what is free but for the rest of the model and a tenth.",
        show_default="what the model asks for",
    ),
)
KV_CACHE = Setting(
    name="kv_cache",
    kind=str,
    default="auto",
    option=option(
        "--kv-cache",
        "--kv-cache-dtype",
        help="Numbers of the KV cache: auto (the checkpoint's, else bf16 if fast, fp32 if exact), fp32, bf16, int8, "
        "fp8 or int4.",
    ),
)
QUANTIZE = Setting(
    name="quantize",
    kind=str | None,
    default=None,
    option=option(
        metavar="SCHEME",
        help="Round a dense model to nearest while it loads, W8A16 for instance; linnet compress loses less.",
        show_default=False,
    ),
)
MAX_MODEL_LEN = Setting(
    name="max_model_len",
    record=EngineSettings,
    option=option(parser=parse_count, metavar="TOKENS", help="Longest prompt + answer.", show_default="the model's"),
)
GENERATION_CONFIG = Setting(
    name="generation_config",
    kind=str,
    default="auto",
    option=option(
        metavar="auto|none|DIR",
        help="Whose recommended sampling holds where nothing is asked for: auto, the model's generation_config.json; "
        "none; or another folder's.",
    ),
)
OPENING = (
    GENERATION_CONFIG,
    POLICY,
    BACKEND,
    THREADS,
    ISA,
    REVISION,
    MAX_MODEL_LEN,
    KV_CACHE,
    KV_BYTES,
    TILE_CACHE,
    QUANTIZE,
)
"""Of the commands that write text."""

# How the next token is chosen; None: as the checkpoint recommends.

TEMPERATURE = Setting(
    name="temperature",
    kind=float | None,
    default=None,
    option=option(
        help="0 takes the likeliest token every time; more varies more.",
        show_default="the model's, else 0, or 1 with --top-p, --top-k or --min-p",
    ),
)
TOP_P = Setting(
    name="top_p",
    kind=float | None,
    default=None,
    option=option(help="Keep the smallest set of tokens with this probability.", show_default="the model's, else 1"),
)
TOP_K = Setting(
    name="top_k",
    kind=int | None,
    default=None,
    option=option(help="Keep this many tokens; 0 keeps all.", show_default="the model's, else 0"),
)
MIN_P = Setting(
    name="min_p",
    kind=float | None,
    default=None,
    option=option(
        help="Keep tokens at least this likely, relative to the likeliest.", show_default="the model's, else 0"
    ),
)
REPETITION_PENALTY = Setting(
    name="repetition_penalty",
    kind=float | None,
    default=None,
    option=option(help="Above 1 discourages tokens already seen.", show_default="the model's, else 1"),
)
SAMPLING = (TEMPERATURE, TOP_P, TOP_K, MIN_P, REPETITION_PENALTY)


def max_tokens(help_text: str, bound: int) -> Setting:
    """The longest answer, ``bound`` where neither the user nor the checkpoint says it."""
    shown = f"the model's, else {bound}"
    spelt = option("--max-tokens", "-n", parser=parse_count, metavar="TOKENS", help=help_text, show_default=shown)
    return Setting(name="max_tokens", kind=int | None, default=None, option=spelt)


def sampling(recommended: "SamplingDefaults", given: Given, **others: Any) -> "SamplingParams":
    """What was asked for, over what the checkpoint recommends, over the likeliest token.

    Who asks for top_p, top_k or min_p asks for sampling, at temperature 1 if no other is known. ``others``: parameters
    that the command takes besides.
    """
    asked = {setting.name: given[setting.name] for setting in SAMPLING} | {"max_tokens": given["max_tokens"], **others}
    sampled = any(asked[name] is not None for name in ("top_p", "top_k", "min_p"))
    return recommended.params(asked, {"temperature": 1.0 if sampled else 0.0})


def opening(
    given: Given, path: Path, policy: str, kv_cache: str = "auto", *, large_pages: bool = False, **engine: Any
) -> "Opening":
    """What to open and how. ``large_pages``, ``engine``: fields of BackendSettings and EngineSettings that the command
    decides."""
    from linnet.api import Opening
    from linnet.program.choose_numerics import known_kv_cache, known_policy

    return Opening(
        path=path,
        policy=known_policy(policy),
        kv_cache=known_kv_cache(kv_cache),
        quantize=given.get("quantize"),
        backend=given.make(BackendSettings, large_pages=large_pages),
        engine=given.make(EngineSettings, **engine),
    )


def opener(given: Given, adapters: Mapping[str, Path] | None = None, **engine: Any) -> "Callable[..., LLM]":
    """(directory, policy, KV cache type) -> LLM with these settings; the way every command opens a model.

    ``engine``: fields of EngineSettings that the command decides. ``adapters``: see ``LLM``.
    """
    from linnet.api import LLM

    def open_model(path: Path, policy: str, kv_cache: str = "auto") -> "LLM":
        what = opening(given, path, policy, kv_cache, **engine)
        return LLM(generation_config=given.get("generation_config", "auto"), adapters=adapters, **vars(what))

    return open_model
