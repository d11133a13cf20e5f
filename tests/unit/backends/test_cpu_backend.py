# SPDX-License-Identifier: Apache-2.0
"""The cpu backend against the reference (torch): every family and storage, prefill and cached decode, on every tier;
taps, choices, profile, and refusals in words."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from op_cases import RESULT, CaseSource, OpCase

from linnet.backends.cpu import _native
from linnet.backends.cpu.backend import ISAS, CpuBackend
from linnet.backends.interface import Batch, Limits, SamplingBatch
from linnet.backends.reference.backend import ReferenceBackend
from linnet.errors import ConfigError, UnsupportedError
from linnet.program.attributes import Attention
from linnet.program.choose_numerics import KV_CACHES
from linnet.program.program import PagedState, WeightRef
from linnet.program.traverse import plain_ops
from linnet.schemes.terms import DOWN, OUTLIERS, UP, Terms

LIMITS = Limits(max_tokens=400, max_sequences=4, max_outputs=400, block_size=16, max_blocks_per_sequence=25)
LONG, SHORT = (270, 41, 7), (33, 7)  # LONG crosses the first partition of keys
WIDE = {"hidden_size": 256, "intermediate_size": 512}  # whole super groups of GGUF's blocks
EXACT_TOLERANCE = 1e-5  # relative to the largest logit; fp32 sums in another order


def cpu(isa: str | None = None, threads: int = 2) -> CpuBackend:
    try:
        return CpuBackend(threads=threads, isa=isa)
    except UnsupportedError as error:
        pytest.skip(str(error))


def batch_of(tokens: list[np.ndarray], done: list[int], counts: list[int]) -> Batch:
    """The next ``counts`` rows of each sequence; sequence s owns the blocks s * 25 .. s * 25 + 24."""
    positions = [np.arange(start, start + count) for start, count in zip(done, counts, strict=True)]
    blocks = LIMITS.max_blocks_per_sequence
    slots = [at + s * blocks * LIMITS.block_size for s, at in enumerate(positions)]
    starts = np.cumsum([0, *counts])
    return Batch(
        np.concatenate([row[at] for row, at in zip(tokens, positions, strict=True)]).astype(np.int32),
        np.concatenate(positions).astype(np.int32),
        np.concatenate(slots).astype(np.int32),
        starts.astype(np.int32),
        np.array([start + count for start, count in zip(done, counts, strict=True)], np.int32),
        np.arange(len(tokens) * blocks, dtype=np.int32).reshape(len(tokens), blocks),
        np.arange(starts[-1], dtype=np.int32),
    )


def logits_of(backend, source, policy: str, lengths: tuple[int, ...] = SHORT) -> np.ndarray:
    """Logits of all rows: a prefill of all sequences at once, then three steps of cached decode."""
    random = np.random.default_rng(5)
    tokens = [random.integers(0, 101, length + 3) for length in lengths]
    model = backend.prepare(source, policy, LIMITS)
    states = model.allocate_states(len(lengths) * LIMITS.max_blocks_per_sequence)
    done, out = [0] * len(lengths), []
    for counts in ([*lengths], *([[1] * len(lengths)] * 3)):
        model.execute(batch_of(tokens, done, counts), states)
        out.append(model.logits())
        done = [start + count for start, count in zip(done, counts, strict=True)]
    return np.concatenate(out)


@pytest.mark.parametrize("family", ["llama", "window", "qwen3", "gemma2", "neox", "bloom", "latent"])
def test_exact_policy_agrees_with_torch(random_model, family):
    source = random_model(family, "fp32", 11)
    expected = logits_of(ReferenceBackend(), source, "exact", LONG)
    for isa in _native.available_isas():
        found = logits_of(cpu(isa), source, "exact", LONG)
        assert np.abs(found - expected).max() <= EXACT_TOLERANCE * np.abs(expected).max(), isa


@pytest.mark.parametrize(
    "storage",
    [
        "bf16",
        "fp16",
        "W4A16-g32-asym",
        "W8A16",
        "W3A16",
        "W2A16",
        "NF4-g32",
        "FP8",
        "TERNARY",
        "gguf:Q5_0",
        "gguf:Q3_K",
    ],
)
def test_exact_policy_reads_every_storage(random_model, storage):
    source = random_model("llama", storage, 12, WIDE if storage.startswith("gguf:") else {})
    expected = logits_of(ReferenceBackend(), source, "exact")
    for isa in _native.available_isas():
        found = logits_of(cpu(isa), source, "exact")
        assert np.abs(found - expected).max() <= EXACT_TOLERANCE * np.abs(expected).max(), isa


@pytest.mark.parametrize(
    "storage",
    ["bf16", "W4A16-g32", "W4A16-g32-asym", "W8A16", "W8A8", "W3A16", "W2A16", "gguf:Q4_1", "gguf:Q4_K", "gguf:Q6_K"],
)
def test_fast_policy_follows_the_program(random_model, storage):
    """Same roundings as the reference: equal but for the order of sums until a last bit decides how an activation is
    rounded. After such a flip two right answers are as far apart as rounding puts them from the exact one."""
    source = random_model("llama", storage, 13, WIDE if storage.startswith("gguf:") else {})
    expected = logits_of(ReferenceBackend(), source, "fast")
    noise = np.square(expected - logits_of(ReferenceBackend(), source, "exact")).mean()
    early = ("layers.0.attention.query", "layers.0.attention.value")
    torch_model = ReferenceBackend().prepare(source, "fast", LIMITS, keep=early)
    batch = batch_of([np.arange(40)], [0], [40])
    torch_model.execute(batch, torch_model.allocate_states(25))
    for isa in _native.available_isas():
        found = logits_of(cpu(isa), source, "fast")
        assert np.square(found - expected).mean() <= 2 * noise + 1e-9, isa
        model = cpu(isa).prepare(source, "fast", LIMITS, keep=early)
        model.execute(batch, model.allocate_states(25))
        for name in early:
            wanted = torch_model.tap(name)
            rows_off = (np.abs(model.tap(name) - wanted).max(axis=1) > 1e-6 * np.abs(wanted).max()).mean()
            assert rows_off <= 0.2, f"{isa}: {name} differs in {rows_off:.0%} of its rows"


def test_fused_checkpoint_tensors_are_read_as_rows(random_model):
    overrides = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": 0}
    source = random_model("llama", "W8A16", 3, overrides)
    expected = logits_of(ReferenceBackend(), source, "exact")
    found = logits_of(cpu(), source, "exact")
    assert np.abs(found - expected).max() <= EXACT_TOLERANCE * np.abs(expected).max()


class Merged:
    """A source of sums of terms as one of plain fp32 weights that mean the same."""

    def __init__(self, source, plain, terms: Terms) -> None:
        self.program, self._source, self._terms = plain.program, source, terms

    def weight(self, ref: WeightRef) -> np.ndarray:
        module = ref.checkpoint_name.removesuffix(".weight")
        names = {weight.ref.checkpoint_name: weight.ref for weight in self._source.program.weights}
        refs = [replace(ref, checkpoint_name=f"{module}.{leaf}.weight") for leaf in (UP, DOWN, OUTLIERS)]
        made = fp32(self._source.weight(ref)) if ref.checkpoint_name in names else np.float32(0)
        if refs[0].checkpoint_name in names:
            made = made + fp32(self._source.weight(refs[0])) @ fp32(self._source.weight(replace(refs[1], rows=None)))
        if refs[2].checkpoint_name in names:
            made[:, list(self._terms.outliers)] += fp32(self._source.weight(refs[2]))
        return made


def fp32(stored) -> np.ndarray:
    return stored.astype(np.float32) if isinstance(stored, np.ndarray) else stored.dequantize()


PHI3 = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": 0}


@pytest.mark.parametrize(
    ("family", "storage", "overrides", "terms"),
    [
        ("llama", "W4A16-g32", None, Terms(rank=4)),
        ("llama", "bf16", None, Terms(rank=1)),
        ("llama", "bf16", None, Terms(whole=False, rank=7)),
        ("bloom", "W8A16", None, Terms(rank=3)),  # heads' rows scattered over a fused tensor, biases
        ("bloom", "bf16", None, Terms(whole=False, rank=12)),
        ("llama", "W4A16-g32", PHI3, Terms(rank=5)),
        ("llama", "W8A16", None, Terms(outliers=(0, 9, 63))),
        ("bloom", "W8A16", None, Terms(rank=2, outliers=(5,))),
    ],
)
def test_a_linear_is_the_sum_of_its_terms(random_model, family, storage, overrides, terms):
    source = random_model(family, storage, 21, overrides, terms)
    merged = Merged(source, random_model(family, "fp32", 21, overrides), terms)
    expected = logits_of(ReferenceBackend(), merged, "exact")
    found = logits_of(ReferenceBackend(), source, "exact")
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    for isa in _native.available_isas():
        native = logits_of(cpu(isa), source, "exact")
        assert np.abs(native - found).max() <= EXACT_TOLERANCE * np.abs(found).max(), isa
    noise = np.square(logits_of(ReferenceBackend(), source, "fast") - found).mean()
    for isa in _native.available_isas():
        native = logits_of(cpu(isa), source, "fast")
        assert np.square(native - logits_of(ReferenceBackend(), source, "fast")).mean() <= 2 * noise + 1e-9, isa


@pytest.mark.parametrize("family", ["llama", "qwen3", "bloom"])
def test_every_tier_rotates_as_the_reference_does(random_model, family):
    source = random_model(family, "fp32", 23, rotated=True)
    assert sum(op.kind == "hadamard" for op in source.program.ops) >= 10
    expected = logits_of(ReferenceBackend(), source, "exact")
    for isa in _native.available_isas():
        found = logits_of(cpu(isa), source, "exact")
        assert np.abs(found - expected).max() <= EXACT_TOLERANCE * np.abs(expected).max(), isa
    other = logits_of(ReferenceBackend(), random_model(family, "fp32", 23), "exact")
    assert np.abs(other - expected).max() > 0.01 * np.abs(expected).max()


def prepared(random_model, **options):
    source = random_model("llama", "W4A16-g32", 1)
    model = cpu().prepare(source, "fast", LIMITS, **options)
    return model, model.allocate_states(25)


def test_taps_choices_profile_and_sampling(random_model):
    model, states = prepared(random_model, keep=("layers.0.attention.norm", "layers.0.attention.norm.int8_g32"))
    batch = batch_of([np.arange(20)], [0], [9])
    model.set_profiling(True)
    model.execute(batch, states)
    plain = model.tap("layers.0.attention.norm")
    rounded = model.tap("layers.0.attention.norm.int8_g32")
    assert plain.shape == rounded.shape == (9, 64)
    assert 0 < np.abs(plain - rounded).max() < 0.02 * np.abs(plain).max()
    profile = model.profile()
    assert [name for name, _ in profile] == [op.name for op in model.program.ops]
    assert all(seconds > 0 for _, seconds in profile)
    assert set(model.choices) == {op.name for op in plain_ops(model.program)}
    assert model.choices["layers.0.mlp.down"].startswith("int4_x_int8")
    logits = model.logits()
    assert model.sample(SamplingBatch.greedy([8, 2])).token_ids.tolist() == logits[[8, 2]].argmax(axis=1).tolist()
    scores = model.score(np.array([3], np.int32), np.array([7], np.int32), other=model)
    row = logits[3].astype(np.float64)
    assert abs(scores.logprobs[0] - (row[7] - np.log(np.exp(row).sum()))) < 1e-5
    assert abs(scores.kl[0]) < 1e-6
    with pytest.raises(ConfigError, match=r"kept: layers\.0"):
        model.tap("logits")


def test_empty_outputs_and_empty_batches(random_model):
    model, states = prepared(random_model)
    batch = replace(batch_of([np.arange(20)], [0], [9]), output_rows=np.zeros(0, np.int32))
    model.execute(batch, states)
    assert model.logits().shape == (0, 101)
    nothing = np.zeros(0, np.int32)
    empty = Batch(nothing, nothing, nothing, np.zeros(1, np.int32), nothing, np.zeros((0, 25), np.int32), nothing)
    model.execute(empty, states)
    assert model.logits().shape == (0, 101)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("token_ids", [1, 2, 101], "token_ids"),
        ("token_ids", [1, 2, -1], "token_ids"),
        ("positions", [0, 1, 3], "positions"),
        ("kv_slots", [0, 1, 400], "kv_slots"),
        ("query_start", [0, 2], "query_start"),
        ("query_start", [0, 3, 3], "query_start"),
        ("context_lengths", [2], "context_lengths"),
        ("context_lengths", [401], "context_lengths"),
        ("block_tables", [[25] * 25], "block_tables"),
        ("output_rows", [3], "output_rows"),
        ("positions", [0, 1], "positions"),
    ],
)
def test_bad_batches_are_refused(random_model, field, value, message):
    model, states = prepared(random_model)
    good = batch_of([np.arange(3)], [0], [3])
    with pytest.raises(ConfigError, match=message):
        model.execute(replace(good, **{field: np.array(value, np.int32)}), states)
    with pytest.raises(ConfigError, match=f"{field} must be"):
        model.execute(replace(good, **{field: np.array(value, np.int64)}), states)
    model.execute(good, states)


def test_preparing_refuses_in_words(random_model):
    with pytest.raises(ConfigError, match="isa is 'sse'"):
        CpuBackend(isa="sse")
    with pytest.raises(ConfigError, match="threads"):
        CpuBackend(threads=0)
    source = random_model("llama", "fp32", 0)
    with pytest.raises(ConfigError, match="cannot keep nothing_here"):
        cpu().prepare(source, "exact", LIMITS, keep=("nothing_here",))
    with pytest.raises(UnsupportedError, match="block_size 24"):
        cpu().prepare(source, "exact", replace(LIMITS, block_size=24))
    assert set(_native.available_isas()) <= set(ISAS)


def test_every_refused_op_is_named(random_model):
    program = random_model("llama", "fp32", 0).program
    states = tuple(
        PagedState(s.name, s.group, s.kv_heads, s.head_size, s.value_head_size, "fp16") for s in program.states
    )
    refused = [op.name for op in program.ops if cpu().supports(op, replace(program, states=states)) is not None]
    assert refused == [op.name for op in program.ops if op.kind in ("kv_write", "attention")]


@pytest.mark.parametrize("kv_cache", KV_CACHES)
def test_a_block_of_whole_tiles_takes_what_the_program_predicts(kv_cache):
    case = OpCase("attention", 40, 512, attributes=Attention(8, 2, 64, 0.125), kv_cache=kv_cache)
    model = cpu().prepare(CaseSource(case), "fast", case.limits(), kv_cache=kv_cache)
    assert model.kv_bytes_per_block == (16 * sum(state.bytes_per_token for state in model.program.states),)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_cache", KV_CACHES[1:])
def test_a_broken_token_breaks_those_who_see_it_and_nobody_else(kv_cache, isa):
    """An infinity or NaN in a key or value is not quantised away, and earlier rows do not know of it."""
    case = OpCase("attention", 40, 512, attributes=Attention(8, 2, 64, 0.125, window=8), kv_cache=kv_cache)
    source = CaseSource(case)
    model = cpu(isa).prepare(source, "fast", case.limits(), (RESULT,), kv_cache)
    for table, broken in (("table.key", np.nan), ("table.value", np.nan), ("table.value", np.inf)):
        model.execute(case.batch(), model.allocate_states(3))
        whole = model.tap(RESULT)
        stored = source.weight(WeightRef(table))
        before, stored[21, 5] = stored[21, 5], broken
        model.execute(case.batch(), model.allocate_states(3))
        found = model.tap(RESULT)
        stored[21, 5] = before
        assert not np.isfinite(found[21:29]).all(axis=1).any(), (table, broken)
        assert (found[:21] == whole[:21]).all()
        assert (found[29:] == whole[29:]).all()


@pytest.mark.parametrize("kv_cache", KV_CACHES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind", ["qwen3", "neox", "latent"])
def test_blocks_come_back_from_a_store_as_they_were(random_model, kind: str, backend: str, kv_cache):
    """Stored, overwritten, and loaded into other blocks of another cache: the sequence goes on with the same bits."""
    model = (cpu() if backend == "cpu" else ReferenceBackend()).prepare(
        random_model(kind, "fp32", 11), "fast", LIMITS, (), kv_cache
    )
    width = LIMITS.max_blocks_per_sequence
    tokens = [np.random.default_rng(seed).integers(0, 101, 34) for seed in (5, 6)]
    states, others = model.allocate_states(2 * width), model.allocate_states(2 * width)
    model.execute(batch_of(tokens, [0, 0], [33, 33]), states)
    store = np.full((7, *model.stored_bytes_per_block), 255, np.uint8)
    slots = np.array([6, 2, 4], np.int32)
    model.store_blocks(states, np.arange(3, dtype=np.int32), store, slots)
    assert (store[[0, 1, 3, 5]] == 255).all()
    model.execute(batch_of(tokens, [33, 33], [1, 1]), states)
    expected = model.logits()
    model.execute(batch_of([tokens[1]], [0], [33]), others)
    model.load_blocks(others, store, slots, np.arange(width, width + 3, dtype=np.int32))
    model.execute(batch_of(tokens[::-1], [33, 33], [1, 1]), others)
    assert (model.logits() == expected[::-1]).all()


@pytest.mark.parametrize("kv_cache", KV_CACHES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_copied_blocks_are_read_as_their_sources(random_model, backend: str, kv_cache):
    """A sequence whose blocks are copies continues with the same bits, whatever KV stores; other blocks stay."""
    model = (cpu() if backend == "cpu" else ReferenceBackend()).prepare(
        random_model("qwen3", "fp32", 11), "fast", LIMITS, (), kv_cache
    )
    tokens = [np.random.default_rng(seed).integers(0, 101, 34) for seed in (5, 5, 6)]
    states = model.allocate_states(3 * LIMITS.max_blocks_per_sequence)
    model.execute(batch_of(tokens[:1], [0], [33]), states)
    model.execute(batch_of(tokens, [33, 0, 0], [1, 1, 33]), states)
    expected = model.logits()[0]
    blocks = np.arange(3, dtype=np.int32)
    model.copy_blocks(states, blocks, blocks + LIMITS.max_blocks_per_sequence)
    model.execute(batch_of(tokens, [33, 33, 33], [1, 1, 1]), states)
    first, copied, other = model.logits()
    tolerance = 0.0 if backend == "cpu" else 1e-5  # torch adds in another order where a batch has more rows
    assert np.abs(copied - expected).max() <= tolerance
    assert np.abs(first - expected).max() <= tolerance
    assert np.abs(other - expected).max() > 1e-2
