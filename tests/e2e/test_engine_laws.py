# SPDX-License-Identifier: Apache-2.0
"""The engine's laws: a request's tokens and log-probabilities depend on the request alone, bit for bit.

The reference of every trial is the request alone: a fresh engine, no cache, no chunking, no preemption. Then two
features are switched on together and every request must come out the same. ``digest`` tests the engine (a context that
is wrong by one slot changes everything); ``cpu`` tests the kernels too, under both numerics policies and with int4 and
int8 weights, and KV of every quantised type. LINNET_LAW_TRIALS sets the trials per pair (default 20; a release runs
200), LINNET_LAW_SEED the seed.
"""

import itertools
import os
import random
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pytest
from digest_executable import DigestExecutable
from engine_workload import Result, random_submits, renamed, run
from letters import GRAMMARS, letters
from tiny_latent import write_tiny_latent
from tiny_llama import CONTEXT, write_tiny_llama

from linnet.backends.select import choose_backend
from linnet.backends.settings import CpuSettings
from linnet.engine import CompiledGrammars, Engine, Keep, SamplingParams, StorePlace, Submit, derive_seed, limits_of
from linnet.engine.moving import MEASURED_BLOCKS
from linnet.errors import UnsupportedError
from linnet.program.program import group_windows
from linnet.scheduler import CacheGroup, SchedulerConfig
from linnet.scheduler.config import Policy, Reserve
from linnet.scheduler.groups import most_blocks

TRIALS = int(os.environ.get("LINNET_LAW_TRIALS", "20"))
SEEDS = int(os.environ.get("LINNET_SEED_TRIALS", "50"))
SEED = int(os.environ.get("LINNET_LAW_SEED", "20261120"))
LONGEST = 40
BLOCK = 4
WIDEST = SchedulerConfig(
    num_blocks=256, max_model_len=CONTEXT, block_size=BLOCK, token_budget=128, max_sequences=16, max_output_rows=128
)


@dataclass
class Setting:
    """One trial: what the features change. ``others`` are requests that only disturb."""

    rng: random.Random
    submits: list[Submit]
    vocabulary: int
    config: dict[str, Any]
    others: list[Submit]
    arrivals: Callable[[int], int] = lambda index: 0
    abort_steps: dict[int, int] | None = None
    rounds: int = 1
    samples: int = 1
    guesses: int = 0
    forked: bool = False
    beams: int = 1
    turns: bool = False
    swap_place: StorePlace | None = None
    always_loads: bool = False


def batch(setting: Setting) -> None:
    """Requests arrive at different steps, so batches mix prompts and decoding."""
    first = setting.rng.randrange(1, 4)
    setting.arrivals = lambda index: index * first


def cache(setting: Setting) -> None:
    """The whole workload runs twice on one engine with the prefix cache: the second time hits."""
    setting.config["prefix_cache"] = True
    setting.rounds = 2


def chunked(setting: Setting) -> None:
    setting.config["token_budget"] = setting.rng.randrange(3, 24)
    setting.config["max_chunk_tokens"] = setting.rng.randrange(1, 9)


def hurried(setting: Setting) -> None:
    """A budget of seconds on the real clock: chunks are as long as the machine's mood says."""
    setting.config["step_budget_s"] = setting.rng.choice([1e-5, 1e-3, 3e-3])


def preempted(setting: Setting) -> None:
    setting.config["preempt_every"] = setting.rng.choice([1, 2, 3, 7])


def small_pool(setting: Setting) -> None:
    """Blocks for one longest sequence and a little more: requests push each other out."""
    setting.config["num_blocks"] = -(-LONGEST // BLOCK) + setting.rng.randrange(3)
    setting.config["reserve"] = setting.rng.choice(get_args(Reserve))


def swapped(setting: Setting) -> None:
    """What the small pool has no room for goes to memory or a file, and comes back or is computed again."""
    small_pool(setting)
    setting.config["prefix_cache"] = True
    setting.config["swap_blocks"] = setting.rng.choice([3, 20, 200])
    setting.config["preempt_every"] = setting.rng.choice([None, 1, 2, 3])
    setting.rounds = 2
    setting.swap_place = StorePlace(setting.rng.choice([None, Path(tempfile.gettempdir())]))
    setting.always_loads = setting.rng.random() < 0.7


def many_samples(setting: Setting) -> None:
    setting.samples = 3


def aborts(setting: Setting) -> None:
    others = random_submits(setting.rng, setting.vocabulary, 3, LONGEST, first_id=1000)
    setting.others += others
    setting.abort_steps = {other.request_id: setting.rng.randrange(12) for other in others}


def few_seats(setting: Setting) -> None:
    """Few sequences and output rows at once: others wait, scores come in pieces."""
    setting.config["max_sequences"] = setting.rng.choice([1, 2, 3])
    setting.config["max_output_rows"] = setting.config["max_sequences"] + setting.rng.randrange(3)


def policies(setting: Setting) -> None:
    """Any order but that of arrival."""
    setting.config["policy"] = setting.rng.choice(get_args(Policy)[1:])
    setting.submits = [
        replace(submit, priority=setting.rng.randrange(3), tenant=setting.rng.choice([b"one", b"two"]))
        for submit in setting.submits
    ]


def guessed(setting: Setting) -> None:
    """Guesses at what comes next, right and wrong ones, are checked several at a time."""
    setting.guesses = 4


def forked(setting: Setting) -> None:
    """Samples of one prompt copy what the first has computed of it; each equals the same request on its own."""
    setting.samples = 3
    setting.forked = True


def session(setting: Setting) -> None:
    """Every request is the second turn of a conversation whose keys and values were kept since the first, as far as
    what came between left them."""
    setting.config["prefix_cache"] = True
    setting.config["kept_share"] = setting.rng.choice([0.0, 0.3, 1.0])
    setting.turns = True


def searched(setting: Setting) -> None:
    """Every request is a beam search; its beams share, copy and give up blocks."""
    setting.beams = 3


def structured(setting: Setting) -> None:
    """Most requests have a grammar; where it leaves one way, several tokens come at once."""
    setting.submits = [
        replace(submit, grammar=setting.rng.choice([None, *GRAMMARS]), stop_token_ids=submit.stop_token_ids | ends)
        for submit in setting.submits
        for ends in [frozenset(setting.rng.choice([(), (setting.vocabulary - 1,)]))]
    ]


FEATURES = (
    batch, cache, chunked, hurried, preempted, small_pool, many_samples, forked, guessed, aborts, few_seats, policies,
    session, searched, swapped, structured,
)  # fmt: skip
PAIRS = [*itertools.combinations(FEATURES, 2)]


def with_windows(config: SchedulerConfig, windows: Sequence[int | None]) -> SchedulerConfig:
    """A cache group for each window; where blocks are scarce there is no more room than so many sequences hold."""
    whole = -(-LONGEST // config.block_size)
    groups = []
    for window in windows:
        held = most_blocks(window, LONGEST, config.chunk_tokens, config.block_size)
        blocks = config.num_blocks if config.num_blocks >= WIDEST.num_blocks else held * (config.num_blocks // whole)
        groups.append(CacheGroup(min(blocks, config.num_blocks), window, config.swap_blocks))
    if groups[0].window is None:
        return replace(config, more_groups=tuple(groups[1:]))
    return replace(config, num_blocks=groups[0].num_blocks, window=groups[0].window, more_groups=tuple(groups[1:]))


@dataclass
class Machine:
    """Executables prepared once; engines are cheap."""

    name: str
    executables: list[Any]
    vocabulary: int
    windows: Sequence[int | None] = (None,)

    @cached_property
    def grammars(self) -> CompiledGrammars:
        """Compiled once, so that no engine waits."""
        made = CompiledGrammars(lambda: letters(self.vocabulary))
        for grammar in GRAMMARS:
            made.matcher(grammar).result()
        return made

    def engine(self, config: SchedulerConfig, which: int, setting: Setting | None = None) -> Engine:
        config = with_windows(config, self.windows)
        place = None if setting is None else setting.swap_place
        executable = self.executables[which % len(self.executables)]
        engine = Engine(executable, config, check=True, swap_place=place, grammars=self.grammars)
        if setting is not None and setting.always_loads:  # or a clock would say whether anything is loaded
            engine.scheduler.swapping._computing_is_faster = lambda *args: False  # type: ignore[method-assign, union-attr]
        return engine


def quantised(source: Path, target: Path, scheme: str) -> Path:
    """The tiny model with its linears rounded to nearest, written by the formats room."""
    import shutil

    from linnet.formats import Checkpoint, CheckpointWriter
    from linnet.models import load_model
    from linnet.schemes.packed_weight import quantize_weight
    from linnet.schemes.presets import parse_scheme

    schemes = parse_scheme(scheme).scheme_map()
    with Checkpoint.open(source) as checkpoint:
        writer = CheckpointWriter(target)
        resolved = schemes.resolve([linear.module for linear in load_model(checkpoint).linears()])
        for name in checkpoint.names():
            linear = resolved.get(name.removesuffix(".weight"))
            if linear is None:
                writer.add(name, checkpoint.tensor(name))
            else:
                weight = checkpoint.tensor(name).astype("float32")
                writer.add_packed(name.removesuffix(".weight"), quantize_weight(weight, linear))
        writer.publish(checkpoint.config, {})
    for extra in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / extra, target / extra)
    return target


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Machine]:
    return {}


def machine(name: str, machines: dict[str, Machine], directory: Path) -> Machine:
    if name not in machines:
        machines[name] = build(name, directory)
    return machines[name]


def build(name: str, directory: Path) -> Machine:
    if name in DIGEST_WINDOWS:
        windows = DIGEST_WINDOWS[name]
        return Machine(name, [DigestExecutable(97, BLOCK, windows=windows)], 97, windows)
    try:
        backends = [choose_backend(CpuSettings(threads)) for threads in (2, 1)]
    except UnsupportedError as error:
        pytest.skip(f"the cpu backend is not built here: {error}")
    from linnet.models import load_model

    _, policy, weights, *kv_cache = name.split(" ")
    weights, _, form = weights.partition("+")
    dtype = "float32" if policy == "exact" else "bfloat16"
    layers = LAYER_WINDOWS.get(form, ())
    if form == "latent":
        dense = write_tiny_latent(directory / "dense", dtype=dtype)
    else:
        experts = 5 if form == "experts" else 0
        dense = write_tiny_llama(directory / "dense", dtype=dtype, experts=experts, windows=layers)
    path = dense if weights == "dense" else quantised(dense, directory / weights, weights)
    source = load_model(path)
    limits = limits_of(WIDEST)
    executables = [backend.prepare(source, policy, limits, (), *kv_cache) for backend in backends]  # type: ignore[arg-type]
    return Machine(name, executables, source.spec.vocabulary_size, group_windows(source.program))


CPU_CASES = (
    "cpu exact dense", "cpu fast dense", "cpu fast W4A16-g32", "cpu fast W8A16",
    "cpu fast dense int8", "cpu exact dense fp8", "cpu fast W4A16-g32 int4",
)  # fmt: skip
"""Backend, policy, weights and, where it is not the policy's own, the KV cache's type."""


EXPERT_CASES = (
    "cpu exact dense+experts", "cpu fast dense+experts", "cpu fast W4A16-g32+experts", "cpu fast W8A16+experts",
)  # fmt: skip
"""Of a mixture of experts: a row must not tell whom it shares its experts with."""
LATENT_CASES = (
    "cpu exact dense+latent", "cpu fast W4A16-g32+latent", "cpu fast dense+latent int8", "cpu fast W8A16+latent",
    "cpu exact dense+latent fp8", "cpu fast W4A16-g32+latent int4",
)  # fmt: skip
"""Of keys and values that are made of one narrow vector of each token."""


DIGEST_WINDOWS: dict[str, Sequence[int | None]] = {
    "digest": (None,), "digest windows": (None, 6), "digest window": (9,), "digest three": (None, 17, 2)
}  # fmt: skip
LAYER_WINDOWS: dict[str, Sequence[int | None]] = {
    "windows": (6, None), "window": (11, 11), "most": (5, 5, 5, None)
}  # fmt: skip
"""Layer after layer: sliding in turn with those that see everything, all of them, most of them."""
WINDOW_CASES = (
    "cpu exact dense+windows", "cpu fast W8A16+most", "cpu fast dense+window int8", "cpu fast W4A16-g32+windows int4",
    "cpu exact dense+most fp8",
)  # fmt: skip
"""Of layers whose blocks are given back once they lie behind the window."""


def alone(machine: Machine, *submits: Submit) -> dict[int, Result]:
    """The reference: nothing else in the world."""
    config = replace(WIDEST, prefix_cache=False)
    return run(machine.engine(config, 0), submits)


def copies_of(submit: Submit, setting: Setting) -> list[Submit]:
    """The other samples of a prompt; a search has its beams."""
    if setting.beams > 1:
        return []
    return [
        replace(
            submit,
            request_id=submit.request_id + 10_000 * index,
            seed=derive_seed(submit.seed, index),
            fork_of=submit.request_id if setting.forked else None,
        )
        for index in range(1, setting.samples)
    ]


def search(submit: Submit, setting: Setting) -> list[Submit]:
    """The beams of a search instead of a sample."""
    plain = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": {}}
    params = replace(
        submit.params,
        use_beam_search=True,
        n=setting.beams,
        length_penalty=setting.rng.choice([1.0, 0.0, 2.0]),
        early_stopping=setting.rng.choice([False, True, "never"]),
        logprobs=9 if submit.params.logprobs == 3 else submit.params.logprobs,  # more than a search needs itself
        **plain,
    )
    return [
        replace(
            submit,
            request_id=submit.request_id + 30_000 * index,
            params=params,
            fork_of=submit.request_id if index else None,
        )
        for index in range(setting.beams)
    ]


def search_all(setting: Setting) -> None:
    """Searches instead of samples, and room for one of them at the least."""
    setting.submits = [beam for submit in setting.submits for beam in search(submit, setting)]
    for name in ("max_sequences", "max_output_rows", "token_budget"):
        if name in setting.config:
            setting.config[name] = max(setting.config[name], setting.beams)
    if "num_blocks" in setting.config:
        setting.config["num_blocks"] *= setting.beams


def guess(engine: Engine, setting: Setting, expected: dict[int, Result]) -> None:
    """Guesses for everybody, from what is known of them alone; one in five is wrong."""
    for request_id, one in engine._live.items():
        known = expected.get(request_id % 100_000)
        right = [] if known is None else known.token_ids[one.request.generated_tokens :]
        one.request.draft_token_ids = tuple(
            token_id if setting.rng.random() < 0.8 else setting.rng.randrange(setting.vocabulary)
            for token_id in right[: setting.guesses]
        )


def first_turns(engine: Engine, setting: Setting) -> None:
    """The beginnings of all prompts are computed and kept; then some conversations end, and strangers fill the pool."""
    talks = [replace(submit, params=SamplingParams(), score_start=1, fork_of=None) for submit in setting.submits]
    talks = [replace(one, prompt_token_ids=one.prompt_token_ids[:-1] or (0,), max_tokens=1) for one in talks]
    for index, talk in enumerate(talks):
        run(engine, [replace(talk, request_id=1_000_000 + index)])
        engine.handle(Keep(owner=bytes([index % 256]), token_ids=talk.prompt_token_ids))
        engine.scheduler.check()
    for index in range(0, len(talks), 3):
        engine.handle(Keep(owner=bytes([index % 256])))
    strangers = random_submits(setting.rng, setting.vocabulary, 3, LONGEST, first_id=2_000_000)
    run(engine, [replace(one, cache_salt=b"stranger") for one in strangers])


def trial(machine: Machine, pair: tuple[Callable[[Setting], None], ...], seed: int) -> int:
    """Run one workload with the pair's features; returns how many results were compared."""
    rng = random.Random(seed)
    submits = random_submits(rng, machine.vocabulary, rng.randrange(2, 6), LONGEST)
    setting = Setting(rng, submits, machine.vocabulary, {"prefix_cache": False}, [])
    for feature in pair:
        feature(setting)
    if setting.forked:
        setting.submits += [copy for submit in setting.submits for copy in copies_of(submit, setting)]
        setting.samples = 1
    if setting.beams > 1:
        search_all(setting)
    expected: dict[int, Result] = {}
    for first in range(0, len(setting.submits), setting.beams):
        origin, *beams = setting.submits[first : first + setting.beams]
        expected |= alone(machine, replace(origin, fork_of=None), *beams)
    engine = machine.engine(replace(WIDEST, **setting.config), rng.randrange(2), setting)
    if setting.turns:
        first_turns(engine, setting)
    compared = 0
    for turn in range(setting.rounds):
        sent = [renamed(submit, submit.request_id + 100_000 * turn) for submit in setting.submits]
        copies = [copy for submit in sent for copy in copies_of(submit, setting)]
        others = [renamed(other, other.request_id + 100_000 * turn) for other in setting.others]
        everybody = [*sent, *copies, *others]
        rng.shuffle(everybody)
        if setting.beams > 1:  # the beams of a search come in their order, which is that of its answers
            everybody.sort(key=lambda submit: submit.request_id % 100_000 // 30_000)
        aborted = {key + 100_000 * turn: step for key, step in (setting.abort_steps or {}).items()}

        def between(step: int, aborted: dict[int, int] = aborted) -> list[int]:
            guess(engine, setting, expected)
            return [key for key, when in aborted.items() if when == step]

        results = run(
            engine,
            everybody,
            arrivals=[setting.arrivals(index) for index in range(len(everybody))],
            between=between,
        )
        for submit in sent:
            mine, reference = results[submit.request_id], expected[submit.request_id - 100_000 * turn]
            assert mine == reference, f"request {submit.request_id} differs (seed {seed}, round {turn}): {submit}"
            compared += 1
    engine.close()
    return compared


def test_the_features_really_happen() -> None:
    """Preemptions, cache hits and aborts are seen in the counters, or the laws above would be about nothing."""
    world = Machine("digest", [DigestExecutable(97, BLOCK)], 97)
    totals = {"preemptions": 0, "hits": 0, "aborted": 0, "steps": 0, "stored": 0, "loaded": 0}
    for number in range(10):
        rng = random.Random(number)
        setting = Setting(rng, random_submits(rng, 97, 5, LONGEST), 97, {"prefix_cache": False}, [])
        for feature in (cache, chunked, preempted, swapped):
            feature(setting)
        engine = world.engine(replace(WIDEST, **setting.config), 0, setting)
        run(engine, setting.submits, between=lambda step: [0] if step == 2 else [])
        run(engine, [renamed(submit, submit.request_id + 100) for submit in setting.submits])
        counters = engine.counters()
        totals["preemptions"] += counters.preemptions
        totals["hits"] += counters.prefix_hit_tokens
        totals["aborted"] += counters.finished.get("abort", 0)
        totals["steps"] += counters.steps
        totals["stored"] += counters.swapped_out_blocks
        totals["loaded"] += counters.swapped_in_blocks
    assert all(count > 0 for count in totals.values()), totals


def test_what_is_kept_is_really_found_again() -> None:
    world = Machine("digest", [DigestExecutable(97, BLOCK)], 97)
    hits = {}
    for share in (0.0, 1.0):
        rng = random.Random(5)
        setting = Setting(rng, random_submits(rng, 97, 5, LONGEST), 97, {}, [])
        engine = world.engine(replace(WIDEST, num_blocks=24, kept_share=share), 0)
        first_turns(engine, setting)
        before = engine.counters().prefix_hit_tokens
        plain = [replace(one, params=SamplingParams(), score_start=1) for one in setting.submits]
        run(engine, plain)
        hits[share] = engine.counters().prefix_hit_tokens - before
    assert hits[1.0] > hits[0.0], hits


def seed_of(pair: tuple[Callable[[Setting], None], ...], name: str, number: int) -> int:
    return zlib.crc32(f"{SEED} {name} {[feature.__name__ for feature in pair]} {number}".encode())


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(feature.__name__ for feature in pair))
def test_pairs_of_features_on_the_digest_model(
    pair: tuple[Callable[[Setting], None], ...], machines: dict[str, Machine], tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = machine("digest", machines, tmp_path_factory.mktemp("digest"))
    assert sum(trial(world, pair, seed_of(pair, world.name, number)) for number in range(TRIALS)) > TRIALS


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(feature.__name__ for feature in pair))
def test_pairs_of_features_on_the_cpu_backend(
    pair: tuple[Callable[[Setting], None], ...], machines: dict[str, Machine], tmp_path_factory: pytest.TempPathFactory
) -> None:
    compared = 0
    for number in range(TRIALS):
        name = CPU_CASES[number % len(CPU_CASES)]
        world = machine(name, machines, tmp_path_factory.mktemp("cpu"))
        compared += trial(world, pair, seed_of(pair, name, number))
    assert compared > TRIALS


@pytest.mark.parametrize(
    "pair",
    list(itertools.combinations((batch, chunked, preempted, cache), 2)),
    ids=lambda pair: "+".join(feature.__name__ for feature in pair),
)
def test_pairs_of_features_on_experts(
    pair: tuple[Callable[[Setting], None], ...], machines: dict[str, Machine], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for number, name in enumerate(EXPERT_CASES):
        world = machine(name, machines, tmp_path_factory.mktemp("experts"))
        assert trial(world, pair, seed_of(pair, name, number))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(feature.__name__ for feature in pair))
def test_pairs_of_features_on_layers_with_windows(
    pair: tuple[Callable[[Setting], None], ...], machines: dict[str, Machine], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Blocks behind the window are used by others while their sequence goes on, or no trial would have enough."""
    digests = [name for name in DIGEST_WINDOWS if name != "digest"]
    for number in range(TRIALS):
        cases = digests if number % 4 else WINDOW_CASES
        name = cases[(number + PAIRS.index(pair)) % len(cases)]
        world = machine(name, machines, tmp_path_factory.mktemp("windows"))
        assert trial(world, pair, seed_of(pair, name, number))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(feature.__name__ for feature in pair))
def test_pairs_of_features_on_latent_attention(
    pair: tuple[Callable[[Setting], None], ...], machines: dict[str, Machine], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for number in range(max(TRIALS // 20, 1)):
        name = LATENT_CASES[(number + PAIRS.index(pair)) % len(LATENT_CASES)]
        world = machine(name, machines, tmp_path_factory.mktemp("latent"))
        assert trial(world, pair, seed_of(pair, name, number))


def test_all_features_at_once(machines: dict[str, Machine], tmp_path_factory: pytest.TempPathFactory) -> None:
    every = tuple(feature for feature in FEATURES if feature is not few_seats)
    for number in range(TRIALS):
        name = list(DIGEST_WINDOWS)[number % len(DIGEST_WINDOWS)]
        world = machine(name, machines, tmp_path_factory.mktemp("digest"))
        trial(world, every, seed_of(every, world.name, number))


@pytest.mark.parametrize("name", ["digest", *CPU_CASES])
def test_distinct_seeds_differ_and_equal_seeds_agree(
    name: str, machines: dict[str, Machine], tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = machine(name, machines, tmp_path_factory.mktemp("cpu"))
    rng = random.Random(SEED)
    base = replace(
        random_submits(rng, world.vocabulary, 1, LONGEST)[0],
        params=random_submits(rng, world.vocabulary, 1, LONGEST)[0].params.__class__(max_tokens=64, temperature=1.5),
        max_tokens=24,
        stop_token_ids=frozenset(),
    )
    submits = [replace(base, request_id=index, seed=derive_seed(5, index)) for index in range(SEEDS)]
    first = run(world.engine(WIDEST, 0), submits)
    again = run(world.engine(WIDEST, 1), submits[::-1])
    assert first == again
    assert len({tuple(result.token_ids) for result in first.values()}) > 0.99 * SEEDS


def test_a_wrong_context_would_be_seen(machines: dict[str, Machine], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The law test can fail: an executable that reads one slot too few is caught within a few trials."""

    class Forgetful(DigestExecutable):
        def execute(self, batch: Any, states: Any) -> None:
            if len(batch.context_lengths) > 1:  # only when somebody else is in the batch
                batch.positions[-1] = max(int(batch.positions[-1]) - 1, 0)
            super().execute(batch, states)

    world = Machine("forgetful", [Forgetful(97, BLOCK)], 97)
    caught = 0
    for number in range(10):
        rng = random.Random(number)
        submits = random_submits(rng, world.vocabulary, 4, LONGEST)
        expected = {submit.request_id: alone(world, submit) for submit in submits}
        # Without the batch checker, which would refuse the planted fault before the law sees it.
        results = run(Engine(world.executables[0], replace(WIDEST, prefix_cache=False)), submits)
        caught += results != expected
    assert caught == 10


def test_a_wrong_load_would_be_seen() -> None:
    """So is one that brings back another block than was stored, in whichever trial anything is loaded."""

    class Confused(DigestExecutable):
        loads = 0

        def load_blocks(self, states: Any, store: Any, slots: Any, blocks: Any, group: int = 0) -> None:
            self.loads += len(slots)
            super().load_blocks(states, store, (slots + 1) % len(store), blocks, group)

    caught = 0
    for number in range(20):
        confused = Confused(97, BLOCK)
        world = Machine("confused", [confused], 97)
        try:
            trial(world, (swapped, batch), number)
        except AssertionError:
            caught += 1
        else:
            assert confused.loads <= 2 * MEASURED_BLOCKS, "a wrong block was loaded and nobody was harmed"
    assert caught > 4
