# SPDX-License-Identifier: Apache-2.0
"""From a directory to an engine: open, choose numerics, choose a backend, size the KV cache, prepare.

Every step that can refuse does so before the next takes memory.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import mul
from pathlib import Path

import linnet
from linnet.api.adapters import DEFAULT_RANK
from linnet.api.memory import CachePlan, available_bytes, check_swap, machine_bytes, plan_cache, swap_blocks
from linnet.backends.interface import Backend, Executable, KVCache, Policy
from linnet.backends.select import choose_backend
from linnet.backends.settings import candidates
from linnet.engine import AdapterFacts, Engine, Grammars, Pooling, StorePlace, limits_of
from linnet.errors import ConfigError, unknown_choice
from linnet.formats.peft import MOST_RANK
from linnet.models import ModelSource, load_model
from linnet.models.at_load import quantised_at_load
from linnet.models.pooling import read_pooling
from linnet.plan import KVShape, kv_shape, least_step_tokens, predict, server_growth_bytes, step_needs
from linnet.process_memory import Footprint, resident_bytes
from linnet.program.adapters import adapter_bytes, adapter_sites, add_adapters
from linnet.program.choose_numerics import KV_CACHES, POLICIES, choose_numerics
from linnet.program.hidden import reads_whole_sequences
from linnet.program.program import Program
from linnet.scheduler import SchedulerConfig
from linnet.settings import BackendSettings, EngineSettings
from linnet.text.files import tokenizer_json_bytes
from linnet.user_cache import TILES, user_cache_directory

logger = logging.getLogger(__name__)

MOST_ADAPTERS = 256


@dataclass(frozen=True)
class Loaded:
    """A model bound to a backend, the scheduler settings it was prepared for, what it will take of memory, and the name
    of its hidden states and what embeddings are made of."""

    source: ModelSource
    executable: Executable
    backend_name: str
    config: SchedulerConfig
    footprint: Footprint
    hidden: str | None
    pooling: Pooling
    swap_place: StorePlace
    adapters: AdapterFacts | None = None

    def open_engine(self, check: bool = False, grammars: Grammars | None = None) -> Engine:
        """An engine for it; without ``grammars`` it takes no structured output.

        Raises ConfigError, CapacityError where there is no room for what is swapped.
        """
        return Engine(
            self.executable,
            self.config,
            check=check,
            hidden=self.hidden,
            pooling=self.pooling,
            swap_place=self.swap_place,
            grammars=grammars,
            adapters=self.adapters,
        )


def load(
    path: str | Path,
    *,
    policy: Policy,
    kv_cache: KVCache,
    quantize: str | None,
    keep: Sequence[str],
    backend: BackendSettings,
    engine: EngineSettings,
) -> Loaded:
    """See ``LLM`` for the arguments. Raises LinnetError subclasses with one sentence each."""
    started_bytes = resident_bytes()
    _check(policy, kv_cache, engine)
    wanted = candidates(backend, tile_directory(backend.tile_cache))
    source = load_model(path)
    if quantize is not None:
        source = quantised_at_load(source, quantize)
    if engine.max_model_len is not None:
        source = source.for_context(engine.max_model_len)
    adapters = _adapters(engine, source)
    if adapters is not None:
        source = replace(source, program=add_adapters(source.program))
    program = choose_numerics(source.program, policy, kv_cache)
    if program.slot_states:
        reason = f"layers of {source.checkpoint.path.name} carry a state from token to token, not keys and values"
        engine = _without_prefixes(engine, reason, ", and it lies behind the last token only")
    if whole := reads_whole_sequences(program):
        engine = _of_whole_prompts(engine, source, program)
    chosen = choose_backend(wanted, program)
    needs = step_needs(
        program,
        output_width=source.spec.output_width,
        max_tokens=engine.token_budget,
        max_sequences=engine.max_sequences,
        block_size=engine.block_size,
        positions=source.spec.max_positions,  # all that the model has: it adds some hundred kilobytes of block tables
        keep=keep,
    )
    ledger = predict(
        source,
        needs.limits,
        policy,
        chosen,
        kv_cache,
        program,
        tokenizer_bytes=0,
        keep=needs.kept,
        adapter_bytes=0 if adapters is None else adapters.most * adapter_bytes(adapters.sites, adapters.rank),
    )

    def beside_bytes() -> int:
        """What is still to come: neither the interpreter, which is there, nor the KV cache."""
        around = ledger.engine_footprint(0, started_bytes=0).beside_kv_bytes
        return around + server_growth_bytes(tokenizer_json_bytes(source.checkpoint.path))

    swapped_to_memory = (engine.kv_swap_bytes or 0) if engine.kv_swap_dir is None else 0
    cache = _plan(
        plan_cache(
            shape=(shape := _shape(program, engine, chosen)),
            model_positions=source.spec.max_positions,
            max_model_len=engine.max_model_len,
            kv_bytes=engine.kv_bytes,
            free_bytes=max(available_bytes() - swapped_to_memory, 0),
            beside_bytes=beside_bytes,
            machine_bytes=machine_bytes(),
            parameters=source.parameters,
        ),
        engine.num_blocks,
        shape,
        source,
    )
    config = _scheduling(
        engine, cache, needs.limits.max_outputs, engine.max_sequences if program.slot_states else 0, whole
    )
    executable = chosen.prepare(source, policy, limits_of(config), needs.kept, kv_cache, program)
    stored, num_blocks = executable.stored_bytes_per_block, [group.num_blocks for group in config.groups]
    config = config.with_swap_blocks(swap_blocks(engine.kv_swap_bytes, stored, num_blocks))
    kv_bytes = sum(map(mul, num_blocks, executable.kv_bytes_per_block))
    swapped = sum(group.swap_blocks * size for group, size in zip(config.groups, stored, strict=True))
    footprint = replace(ledger.engine_footprint(kv_bytes, started_bytes), swap_bytes=swapped)
    place = StorePlace(engine.kv_swap_dir, _identity(source, executable, config) if engine.kv_swap_keep else None)
    pooling = read_pooling(source.checkpoint, "mean" if whole else "last")
    return Loaded(source, executable, chosen.name, config, footprint, needs.hidden, pooling, place, adapters)


def _adapters(engine: EngineSettings, source: ModelSource) -> AdapterFacts | None:
    """Bounds of the adapters that may be loaded; None where there are to be none. Raises ConfigError."""
    most, rank = engine.max_adapters, engine.max_adapter_rank
    for name, value, least, greatest in (
        ("max_adapters", most, 0, MOST_ADAPTERS),
        ("max_adapter_rank", rank, 1, MOST_RANK),
    ):
        if value is not None and (type(value) is not int or not least <= value <= greatest):
            raise ConfigError(f"{name} is {value!r}; accepted is {least} to {greatest}", settings=[name])
    if not most:
        return None
    sites = adapter_sites(source.program)
    if not sites:
        raise ConfigError(
            f"{source.checkpoint.path.name} has no linear that adapters could add to", settings=["max_adapters"]
        )
    return AdapterFacts(most=most, rank=rank or DEFAULT_RANK, sites=sites)


def _identity(source: ModelSource, executable: Executable, config: SchedulerConfig) -> str:
    """What keys and values depend on: the weights, how they are computed with, what their blocks are."""
    told = (linnet.__version__, source.checkpoint.state(), executable.numerics.id, config.block_size)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _check(policy: str, kv_cache: str, engine: EngineSettings) -> None:
    """Refuse what no model could be opened with."""
    if policy not in POLICIES:
        raise unknown_choice("policy", policy, POLICIES)
    if kv_cache not in KV_CACHES:
        raise unknown_choice("kv_cache", kv_cache, KV_CACHES)
    for name in ("block_size", "token_budget", "max_sequences"):
        value = getattr(engine, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} is {value!r}; accepted is a whole number of at least 1", settings=[name])
    check_swap(
        engine.kv_swap_bytes,
        in_memory=engine.kv_swap_dir is None,
        keep=engine.kv_swap_keep,
        prefix_cache=engine.prefix_cache,
        machine_bytes=machine_bytes(),
    )


def _scheduling(
    engine: EngineSettings, cache: CachePlan, output_rows: int, state_slots: int, whole_prompts: bool
) -> SchedulerConfig:
    """The settings as the scheduler has them; how much is swapped is known when the backend is prepared."""
    first, *more = cache.groups
    return SchedulerConfig(
        num_blocks=first.num_blocks,
        window=first.window,
        more_groups=tuple(more),
        max_model_len=cache.max_model_len,
        block_size=engine.block_size,
        token_budget=engine.token_budget,
        step_budget_s=engine.step_budget_s,
        max_sequences=engine.max_sequences,
        max_waiting_requests=engine.max_waiting_requests,
        max_chunk_tokens=engine.max_chunk_tokens,
        max_output_rows=output_rows,
        prefix_cache=engine.prefix_cache,
        state_slots=state_slots,
        kept_share=engine.kept_share,
        ageing_s=engine.ageing_s,
        predict_length=engine.predict_length,  # type: ignore[arg-type]  # checked by SchedulerConfig
        reserve=engine.reserve,  # type: ignore[arg-type]  # checked by SchedulerConfig
        policy=engine.scheduling,  # type: ignore[arg-type]  # checked by SchedulerConfig
        preempt_every=engine.preempt_every,
        whole_prompts=whole_prompts,
    )


def _of_whole_prompts(engine: EngineSettings, source: ModelSource, program: Program) -> EngineSettings:
    """Settings for a model whose tokens see those behind them: a step must hold the longest prompt."""
    reason = f"tokens of {source.checkpoint.path.name} see those behind them"
    longest = min(engine.max_model_len or source.spec.max_positions, source.spec.max_positions)
    if engine.max_chunk_tokens is not None and engine.max_chunk_tokens < longest:
        raise ConfigError(
            f"max_chunk_tokens is {engine.max_chunk_tokens}; accepted is {longest} or more (the context): {reason}",
            settings=["max_chunk_tokens", "max_model_len"],
        )
    engine = _without_prefixes(engine, reason, ", so that a prefix is not the same in front of others")
    return replace(engine, token_budget=max(engine.token_budget, least_step_tokens(program, longest)))


def _without_prefixes(engine: EngineSettings, reason: str, so: str) -> EngineSettings:
    """Settings for a model of which no prefix can be kept: for instance, a state is gone once its sequence has gone
    on."""
    if engine.kv_swap_bytes:
        raise ConfigError(
            f"kv_swap_bytes is {engine.kv_swap_bytes}; accepted is 0: {reason}", settings=["kv_swap_bytes"]
        )
    if engine.prefix_cache:
        logger.warning("the prefix cache is off: %s%s", reason, so)
    return replace(engine, prefix_cache=False)


def tile_directory(wanted: bool | Path) -> Path | None:
    """Where tiles may lie: nowhere, in the folder given, or in the user's cache where there is one."""
    if not wanted or isinstance(wanted, Path):
        return wanted or None
    try:
        return user_cache_directory() / TILES
    except RuntimeError:  # a user without a home
        return None


def _shape(program: Program, engine: EngineSettings, backend: Backend) -> KVShape:
    """The program's cache groups, and what a request may hold of them at a time."""
    chunk = min(engine.token_budget, engine.max_chunk_tokens or engine.token_budget)
    return kv_shape(program, engine.block_size, engine.max_sequences, chunk, backend)


def _plan(cache: CachePlan, num_blocks: int | None, shape: KVShape, source: ModelSource) -> CachePlan:
    if cache.shortened:
        logger.warning(
            "%s: the context is limited to %d of %d tokens by the memory given to the KV cache",
            source.checkpoint.path,
            cache.max_model_len,
            source.spec.max_positions,
        )
    if num_blocks is None:
        return cache
    counts = [num_blocks, *shape.pools(num_blocks, cache.max_model_len)[1:]]
    return replace(cache, groups=shape.cache_groups(counts))
