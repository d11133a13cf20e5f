# SPDX-License-Identifier: Apache-2.0
"""How long a context and how many KV blocks fit: from the program's states, free memory, what the model takes beside
its KV cache, and what the user asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from linnet.api.control_groups import memory_limits, read_lines
from linnet.errors import CapacityError, ConfigError, unknown_choice
from linnet.plan import KVShape
from linnet.scheduler import CacheGroup

ALL = "all"
"""As ``kv_bytes``: what is free but for what the model takes beside its KV cache and the margin."""

MARGIN_SHARE = 0.1
"""Of the memory that is free at load: left to other programs, and to what predictions are wrong by (5 %)."""

PLENTY = 4
"""A KV cache of less than this part of free memory, beside weights of less, is given without further reckoning."""

DEFAULT_BYTES_PER_PARAMETER = 4
DEFAULT_TOKENS_PER_SEQUENCE = 512
"""Where the user says nothing the KV cache is as large as the model asks for: room for one whole context, for every
sequence at 512 tokens, and for twice what the weights would take in 16 bits, whichever is most. It is touched only as
it fills."""

LEAST_CONTEXT = 16


def available_bytes() -> int:
    """Memory that can be taken without swapping: /proc/meminfo, within the limits of the process's control groups."""
    return min([_meminfo("MemAvailable:"), *(group.free_bytes for group in memory_limits())])


def machine_bytes() -> int:
    """Memory of the machine, or of a control group where that is less."""
    return min([_meminfo("MemTotal:"), *(group.limit_bytes for group in memory_limits())])


@dataclass(frozen=True)
class CachePlan:
    """What was decided, and whether the context was shortened to fit."""

    max_model_len: int
    groups: tuple[CacheGroup, ...]
    shortened: bool


def plan_cache(
    *,
    shape: KVShape,
    model_positions: int,
    max_model_len: int | None,
    kv_bytes: int | str | None,
    free_bytes: int,
    beside_bytes: Callable[[], int] = lambda: 0,
    machine_bytes: int = 1 << 62,
    parameters: int = 0,
) -> CachePlan:
    """Choose context and blocks of each cache group.

    Without ``kv_bytes`` the KV cache gets what a model of so many ``parameters`` asks for (see
    DEFAULT_BYTES_PER_PARAMETER), at most the room there is: ``free_bytes`` less what the model will still take beside
    its KV cache (``beside_bytes``, called where it matters) and MARGIN_SHARE of it. ALL is all of that room. Never more
    than max_sequences full contexts need. Without ``max_model_len`` the model's own context is used, shortened to what
    fits.
    Raises ConfigError for values that cannot be, CapacityError when what was asked for does not fit.
    """
    if isinstance(kv_bytes, str) and kv_bytes != ALL:
        raise unknown_choice("kv_bytes", kv_bytes, ["a number of bytes", ALL])
    for name, value in (("max_model_len", max_model_len), ("kv_bytes", None if kv_bytes == ALL else kv_bytes)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"{name} is {value!r}; accepted is a whole number of at least 1", settings=[name])
    if max_model_len is not None and max_model_len > model_positions:
        raise ConfigError(
            f"max_model_len is {max_model_len}; this model reaches {model_positions} tokens",
            settings=["max_model_len"],
        )
    if isinstance(kv_bytes, int) and kv_bytes > machine_bytes:
        raise ConfigError(
            f"kv_bytes is {_human(kv_bytes)}; this machine has {_human(machine_bytes)} of memory", settings=["kv_bytes"]
        )
    if not any(group.bytes_per_token for group in shape.groups):  # a model without keys and values
        shape = replace(shape, groups=tuple(replace(group, bytes_per_token=1) for group in shape.groups))
    wanted = model_positions if max_model_len is None else max_model_len
    source = "kv_bytes"
    if isinstance(kv_bytes, int):
        room_bytes = kv_bytes
    else:
        most_tokens = max(wanted, shape.max_sequences * DEFAULT_TOKENS_PER_SEQUENCE)
        pools = shape.pools(shape.blocks_for(most_tokens), wanted)
        asked = max(shape.bytes_of(pools), parameters * DEFAULT_BYTES_PER_PARAMETER)
        if kv_bytes == ALL:
            asked = free_bytes
        room_bytes = asked
        if asked * PLENTY > free_bytes:
            beside, margin = beside_bytes(), int(free_bytes * MARGIN_SHARE)
            room_bytes = max(min(free_bytes - beside - margin, asked), 0)
            source = f"{_human(free_bytes)} are free, of which the model takes {_human(beside)} beside its KV cache"
            source += f" and {_human(margin)} are left to others"
    blocks = shape.most_blocks(room_bytes, wanted)
    fits = shape.longest(blocks, wanted)
    length = min(wanted, fits) if max_model_len is None else wanted
    if length > fits or length < min(LEAST_CONTEXT, wanted):
        fitting = f"a max_model_len of at most {fits} fits, or give" if fits else "give"
        raise CapacityError(
            f"the KV cache of one sequence of {max(length, min(LEAST_CONTEXT, wanted))} tokens needs "
            f"{_human(shape.sequence_bytes(max(length, LEAST_CONTEXT)))} and {_human(room_bytes)} are given to it "
            f"({source}); {fitting} more with kv_bytes",
            settings=["kv_bytes", "max_model_len"],
        )
    most = shape.max_sequences * shape.blocks_for(length)
    counts = shape.pools(max(min(blocks, most), 1), length)
    return CachePlan(length, shape.cache_groups(counts), shortened=length < wanted)


def check_swap(
    kv_swap_bytes: int | None, *, in_memory: bool, keep: bool, prefix_cache: bool, machine_bytes: int
) -> None:
    """Refuse a second store that cannot be: ConfigError. ``in_memory``: that is where it lies; else in a file, which
    is to stay if ``keep``."""
    if keep and (in_memory or not kv_swap_bytes):
        raise ConfigError(
            "kv_swap_keep is on without kv_swap_dir and kv_swap_bytes; accepted is off, or a folder for the file that "
            "is kept, and its size",
            settings=["kv_swap_keep", "kv_swap_dir", "kv_swap_bytes"],
        )
    if kv_swap_bytes is None:
        if not in_memory:
            raise ConfigError(
                "kv_swap_dir is given and kv_swap_bytes, the size, is not", settings=["kv_swap_bytes", "kv_swap_dir"]
            )
        return
    if not isinstance(kv_swap_bytes, int) or isinstance(kv_swap_bytes, bool) or kv_swap_bytes < 0:
        raise ConfigError(
            f"kv_swap_bytes is {kv_swap_bytes!r}; accepted is a whole number of at least 0", settings=["kv_swap_bytes"]
        )
    if kv_swap_bytes and not prefix_cache:
        raise ConfigError(
            f"kv_swap_bytes is {_human(kv_swap_bytes)} without the prefix cache; accepted is 0, because what was "
            "swapped out is found again by its prefix",
            settings=["kv_swap_bytes"],
        )
    if in_memory and kv_swap_bytes > machine_bytes:
        raise ConfigError(
            f"kv_swap_bytes is {_human(kv_swap_bytes)}; this machine has {_human(machine_bytes)} of memory; more fits "
            "into a file (kv_swap_dir)",
            settings=["kv_swap_bytes", "kv_swap_dir"],
        )


def swap_blocks(kv_swap_bytes: int | None, block_bytes: Sequence[int], num_blocks: Sequence[int]) -> list[int]:
    """How many blocks of each cache group a second store of that size holds, in the proportions of the pools. Raises
    ConfigError if it is to hold any and cannot."""
    asked = kv_swap_bytes or 0
    all_bytes = sum(count * size for count, size in zip(num_blocks, block_bytes, strict=True))
    least = max(-(-all_bytes // count) for count in num_blocks)
    if 0 < asked < least:
        raise ConfigError(
            f"kv_swap_bytes is {_human(asked)}; accepted is 0, or at least a block of the KV cache, {_human(least)}",
            settings=["kv_swap_bytes"],
        )
    return [asked * count // max(all_bytes, 1) for count in num_blocks]


def _human(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _meminfo(name: str) -> int:
    """Bytes of a line of /proc/meminfo; where there is none, more than anybody has."""
    for line in read_lines(Path("/proc/meminfo")):
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 1 << 62
