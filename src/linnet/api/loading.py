# SPDX-License-Identifier: Apache-2.0
"""From a directory to an engine: open, choose numerics, choose a backend, size the KV cache, prepare.

Every step that can refuse does so before the next takes memory.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from linnet.api.memory import CachePlan, available_bytes, machine_bytes, plan_cache
from linnet.backends.interface import Executable, KVCache, Policy
from linnet.backends.select import choose_backend
from linnet.backends.settings import BackendSettings
from linnet.engine import limits_of
from linnet.errors import ConfigError, unknown_choice
from linnet.models import ModelSource, load_model
from linnet.models.at_load import quantised_at_load
from linnet.plan import kv_bytes_per_token, output_rows
from linnet.program.choose_numerics import KV_CACHES, POLICIES, choose_numerics
from linnet.scheduler import SchedulerConfig
from linnet.user_cache import TILES, user_cache_directory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A model bound to a backend, and the scheduler settings it was prepared for."""

    source: ModelSource
    executable: Executable
    backend_name: str
    config: SchedulerConfig


def load(
    path: str | Path,
    *,
    policy: Policy,
    kv_cache: KVCache,
    backend: Sequence[BackendSettings],
    max_model_len: int | None,
    kv_bytes: int | None,
    num_blocks: int | None,
    block_size: int,
    token_budget: int,
    step_budget_s: float | None,
    max_sequences: int,
    max_chunk_tokens: int | None,
    prefix_cache: bool,
    preempt_every: int | None,
    scheduling: str,
    max_waiting_requests: int,
    keep: Sequence[str],
    quantize: str | None,
) -> Loaded:
    """See ``LLM`` for the arguments; ``backend``: the backends to try, in order.

    Raises LinnetError subclasses with one sentence each.
    """
    if policy not in POLICIES:
        raise unknown_choice("policy", policy, POLICIES)
    if kv_cache not in KV_CACHES:
        raise unknown_choice("kv_cache", kv_cache, KV_CACHES)
    for name, value in (("block_size", block_size), ("token_budget", token_budget), ("max_sequences", max_sequences)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} is {value!r}; accepted is a whole number of at least 1", settings=[name])
    source = load_model(path)
    if quantize is not None:
        source = quantised_at_load(source, quantize)
    if max_model_len is not None:
        source = source.for_context(max_model_len)
    program = choose_numerics(source.program, policy, kv_cache)
    chosen = choose_backend(backend, program)
    cache = _plan(
        plan_cache(
            bytes_per_token=sum(kv_bytes_per_token(state, block_size, chosen) for state in program.states),
            block_size=block_size,
            max_sequences=max_sequences,
            model_positions=source.spec.max_positions,
            max_model_len=max_model_len,
            kv_bytes=kv_bytes,
            free_bytes=available_bytes(),
            machine_bytes=machine_bytes(),
            parameters=source.parameters,
        ),
        num_blocks,
        source,
    )
    config = SchedulerConfig(
        num_blocks=cache.num_blocks,
        max_model_len=cache.max_model_len,
        block_size=block_size,
        token_budget=token_budget,
        step_budget_s=step_budget_s,
        max_sequences=max_sequences,
        max_waiting_requests=max_waiting_requests,
        max_chunk_tokens=max_chunk_tokens,
        max_output_rows=output_rows(source.spec.vocabulary_size, token_budget, max_sequences),
        prefix_cache=prefix_cache,
        policy=scheduling,  # type: ignore[arg-type]  # checked by SchedulerConfig
        preempt_every=preempt_every,
    )
    executable = chosen.prepare(source, policy, limits_of(config), tuple(keep), kv_cache, program)
    return Loaded(source, executable, chosen.name, config)


def tile_directory(wanted: bool | Path) -> Path | None:
    """Where tiles may lie: nowhere, in the folder given, or in the user's cache where there is one."""
    if not wanted or isinstance(wanted, Path):
        return wanted or None
    try:
        return user_cache_directory() / TILES
    except RuntimeError:  # a user without a home
        return None


def _plan(cache: CachePlan, num_blocks: int | None, source: ModelSource) -> CachePlan:
    if cache.shortened:
        logger.warning(
            "%s: the context is limited to %d of %d tokens by the memory given to the KV cache",
            source.checkpoint.path,
            cache.max_model_len,
            source.spec.max_positions,
        )
    return cache if num_blocks is None else CachePlan(cache.max_model_len, num_blocks, cache.shortened)
