# SPDX-License-Identifier: Apache-2.0
"""The reference executable: paged = functional = chunked, taps, gradients, and the refusals of the door."""

import sys
from dataclasses import replace
from importlib import invalidate_caches
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder

import numpy as np
import pytest
import torch

from linnet.backends import select
from linnet.backends.interface import Batch, Limits, SamplingBatch
from linnet.backends.reference.attention import FunctionalMemory
from linnet.backends.reference.backend import ReferenceBackend
from linnet.backends.reference.interpreter import run_ops, run_segment, whole_sequence_inputs
from linnet.backends.reference.weights import WeightTable
from linnet.backends.select import choose_backend
from linnet.backends.settings import CpuSettings, ReferenceSettings, candidates
from linnet.errors import ConfigError, LinnetError, UnsupportedError
from linnet.program import attributes as a
from linnet.program.program import Op, PagedState, Program, Segment, Value, Weight, WeightRef
from linnet.program.traverse import boundaries
from linnet.schemes.packed_weight import PackedWeight, quantize_weight
from linnet.schemes.presets import parse_scheme
from linnet.settings import BackendSettings

VOCABULARY, WIDTH, HEAD = 17, 12, 6
LIMITS = Limits(max_tokens=32, max_sequences=4, max_outputs=32, block_size=4, max_blocks_per_sequence=4)
INPUTS = (
    Value("token_ids", ("tokens",), "int32"),
    Value("positions", ("tokens",), "int32"),
    Value("kv_slots", ("tokens",), "int32"),
    Value("query_start", ("sequences_plus_one",), "int32"),
    Value("context_lengths", ("sequences",), "int32"),
    Value("block_tables", ("sequences", "blocks"), "int32"),
    Value("output_rows", ("outputs",), "int32"),
)


def tiny_program() -> Program:
    """One attention layer and a head: enough to touch states, segments and taps."""
    shapes = {"embed": (VOCABULARY, WIDTH), "norm": (WIDTH,), "query": (WIDTH, WIDTH), "key": (HEAD, WIDTH)}
    shapes |= {"value": (HEAD, WIDTH), "head": (VOCABULARY, WIDTH)}
    weights = tuple(Weight(name, WeightRef(f"{name}.weight"), shape, "fp32") for name, shape in shapes.items())
    read = ("query", "positions", "query_start", "context_lengths", "block_tables")
    ops = (
        Op("embed", "x", ("token_ids",), ("x",), a.Embed(), ("embed",)),
        Op("norm", "normed", ("x",), ("normed",), a.Norm("rms", WIDTH, 1e-5), ("norm",)),
        Op("linear", "query", ("normed",), ("query",), a.Linear(), ("query",)),
        Op("linear", "key", ("normed",), ("key",), a.Linear(), ("key",)),
        Op("linear", "value", ("normed",), ("value",), a.Linear(), ("value",)),
        Op("kv_write", "write", ("key", "value", "kv_slots"), (), a.KVWrite(), states=("kv",)),
        Op("attention", "context", read, ("context",), a.Attention(2, 1, HEAD, 0.4), states=("kv",)),
        Op("add", "y", ("x", "context"), ("y",), a.Add()),
        Op("gather", "rows", ("y", "output_rows"), ("rows",), a.Gather()),
        Op("logits", "logits", ("rows",), ("logits",), a.Logits(), ("head",)),
    )
    widths = {"x": WIDTH, "normed": WIDTH, "query": WIDTH, "key": HEAD, "value": HEAD, "context": WIDTH, "y": WIDTH}
    values = tuple(Value(name, ("tokens", width), "fp32") for name, width in widths.items())
    values += (Value("rows", ("outputs", WIDTH), "fp32"), Value("logits", ("outputs", VOCABULARY), "fp32"))
    given = tuple(value.name for value in INPUTS)
    parts = (("embed", "embed", 0, 1), ("layer", "block", 1, 8), ("head", "head", 8, 10))
    segments = tuple(
        Segment(name, kind, start, stop, *boundaries(ops, [(start, stop)], given, ("logits",))[0])
        for name, kind, start, stop in parts
    )
    return Program(INPUTS, values, weights, (PagedState("kv", 0, 1, HEAD, HEAD),), ops, segments, ("logits",))


class Source:
    """Random weights."""

    def __init__(self) -> None:
        self.program = tiny_program()
        random = np.random.default_rng(5)
        self.arrays = {
            w.ref.checkpoint_name: random.normal(size=w.shape).astype(np.float32) for w in self.program.weights
        }

    def weight(self, ref: WeightRef) -> np.ndarray:
        return self.arrays[ref.checkpoint_name]


def step(tokens, starts, contexts, tables) -> Batch:
    """A batch whose every row is an output row."""
    lengths = np.diff(starts)
    positions = np.concatenate([np.arange(c - n, c) for n, c in zip(lengths, contexts, strict=True)])
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    tables = np.array(tables, np.int32)
    slots = tables[sequence, positions // 4] * 4 + positions % 4
    arrays = (tokens, positions, slots, starts, contexts)
    return Batch(*(np.array(x, np.int32) for x in arrays), tables, np.arange(len(tokens), dtype=np.int32))


TABLES = [[3, 1, 4], [0, 5, 2]]
TOKENS = np.random.default_rng(2).integers(0, VOCABULARY, 15).astype(np.int32)


def whole_logits(executable) -> np.ndarray:
    """Sequences of 9 and 6 tokens in one step."""
    executable.execute(step(TOKENS, [0, 9, 15], [9, 6], TABLES), executable.allocate_states(6))
    return executable.logits()


def test_chunks_give_the_logits_of_the_whole():
    executable = ReferenceBackend().prepare(Source(), "exact", LIMITS)
    whole = whole_logits(executable)
    states = executable.allocate_states(6)
    executable.execute(step(TOKENS[:5], [0, 5], [5], TABLES[:1]), states)
    first = executable.logits()
    mixed = np.concatenate([TOKENS[5:9], TOKENS[9:11]])
    executable.execute(step(mixed, [0, 4, 6], [9, 2], TABLES), states)
    second = executable.logits()
    executable.execute(step(TOKENS[11:], [0, 4], [6], TABLES[1:]), states)
    chunked = np.concatenate([first, second, executable.logits()])
    assert np.allclose(chunked, whole, atol=1e-5)
    assert executable.kv_bytes_per_block == (4 * 2 * HEAD * 4,)


def test_segments_with_functional_memory_give_the_same_and_carry_gradients():
    source = Source()
    whole = whole_logits(ReferenceBackend().prepare(source, "exact", LIMITS))
    program, inputs = source.program, whole_sequence_inputs(torch.from_numpy(TOKENS[None, :9]))
    weight = torch.from_numpy(source.arrays["query.weight"].copy()).requires_grad_()
    seen: dict[str, torch.Tensor] = {}
    values = dict(inputs)
    for segment in program.segments:
        taps = ("normed",) if segment.name == "layer" else ()
        values |= run_segment(program, segment, values, source, {"query": weight}, taps, seen.__setitem__)
    assert np.allclose(values["logits"].detach().numpy(), whole[:9], atol=1e-5)
    values["logits"].square().sum().backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) > 0
    assert seen["normed"].shape == (9, WIDTH)


def test_taps_are_the_rows_of_the_kept_value():
    source = Source()
    executable = ReferenceBackend().prepare(source, "exact", LIMITS, keep=("normed",))
    with pytest.raises(ConfigError, match="no step"):
        executable.tap("normed")
    whole_logits(executable)
    x = source.arrays["embed.weight"][TOKENS]
    expected = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * source.arrays["norm.weight"]
    assert np.allclose(executable.tap("normed"), expected, atol=1e-5)
    with pytest.raises(ConfigError, match="not kept"):
        executable.tap("y")
    with pytest.raises(ConfigError, match="no such value"):
        ReferenceBackend().prepare(source, "exact", LIMITS, keep=("nothing",))


def test_values_are_dropped_after_their_last_use():
    program, source = tiny_program(), Source()
    inputs = whole_sequence_inputs(torch.from_numpy(TOKENS[None, :4]))
    table, memory = WeightTable(program, source), FunctionalMemory.of(program)
    result = run_ops(program, 0, 2, inputs, ("normed",), table, memory)
    assert set(result) == {"normed"}
    with pytest.raises(ConfigError, match="do not produce"):
        run_ops(program, 0, 2, inputs, ("query",), table, memory)


def test_sample_and_score_read_the_last_step():
    executable = ReferenceBackend().prepare(Source(), "exact", LIMITS)
    other = ReferenceBackend().prepare(Source(), "exact", LIMITS)
    whole, same = whole_logits(executable), whole_logits(other)
    assert (whole == same).all()
    rows = np.array([14, 2], np.int32)
    assert executable.sample(SamplingBatch.greedy(rows)).token_ids.tolist() == whole[rows].argmax(1).tolist()
    assert executable.score(rows, np.array([0, 1], np.int32), other).kl.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": np.full(15, VOCABULARY, np.int32)}, "token_ids must lie in"),
        ({"kv_slots": np.full(15, 24, np.int32)}, "kv_slots must lie in"),
        ({"positions": np.zeros(15, np.int32)}, "positions must be consecutive"),
        ({"query_start": np.array([0, 15, 15], np.int32)}, "query_start must rise"),
        ({"block_tables": np.full((2, 3), 6, np.int32)}, "block_tables must lie"),
        ({"output_rows": np.array([15], np.int32)}, "output_rows must lie"),
        ({"token_ids": TOKENS.astype(np.int64)}, "must be C-contiguous int32"),
    ],
)
def test_a_batch_outside_its_buffers_is_refused(change, message):
    executable = ReferenceBackend().prepare(Source(), "exact", LIMITS)
    with pytest.raises(ConfigError, match=message):
        executable.execute(replace(step(TOKENS, [0, 9, 15], [9, 6], TABLES), **change), executable.allocate_states(6))


def test_auto_says_what_it_passed_over(monkeypatch, caplog):
    def missing(settings):
        raise ImportError("the native extension is not built")

    monkeypatch.setitem(select._BACKENDS, "cpu", missing)
    assert choose_backend().name == "reference"
    assert "slow reference backend: cpu: the native extension is not built" in caplog.text


def test_native_kernels_that_do_not_load_are_an_error_and_not_passed_over(monkeypatch, tmp_path):
    from linnet.backends import cpu

    broken = tmp_path / f"_native{EXTENSION_SUFFIXES[0]}"
    broken.write_bytes(b"\x7fELF and no more")
    monkeypatch.setattr(cpu, "__path__", [str(tmp_path)])
    monkeypatch.delattr(cpu, "_native", raising=False)
    for name in ("linnet.backends.cpu._native", "linnet.backends.cpu.backend", "linnet.backends.cpu.tile_cache"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    with pytest.raises(LinnetError, match=rf"{broken.name} do not load: .*another backend"):
        choose_backend()
    broken.unlink()
    invalidate_caches()
    with pytest.raises(ImportError, match="not built for this Python"):
        select.native_kernels()


def test_choosing_a_backend_collects_every_refusal():
    assert choose_backend("reference").name == "reference"
    with pytest.raises(ConfigError, match="accepted: auto, cpu, reference"):
        choose_backend("gpu")
    program = tiny_program()
    hostile = replace(program, states=(replace(program.states[0], dtype="int32"),))
    with pytest.raises(UnsupportedError, match=r"reference: write and 1 more: .*stores KV as") as caught:
        choose_backend("reference", hostile)
    assert len(caught.value.reasons) == 1
    with pytest.raises(UnsupportedError, match="isa is 'avx2', which only the cpu backend has"):
        candidates(BackendSettings(name="reference", isa="avx2"))
    assert candidates(BackendSettings(isa="avx2", threads=2)) == (CpuSettings(2, "avx2"),)
    assert candidates(BackendSettings(threads=3)) == (CpuSettings(3), ReferenceSettings(3))


class PackedSource(Source):
    """The query projection and the head quantised, each in its own granularity."""

    def __init__(self, query: str, head: str) -> None:
        super().__init__()
        schemes = {"query": parse_scheme(query).linear, "head": parse_scheme(head).linear}
        weights = tuple(replace(w, dtype=schemes.get(w.name, w.dtype)) for w in self.program.weights)
        self.program = replace(self.program, weights=weights)
        self.packed = {
            f"{name}.weight": quantize_weight(self.arrays[f"{name}.weight"], s) for name, s in schemes.items()
        }

    def weight(self, ref: WeightRef) -> np.ndarray | PackedWeight:
        return self.packed.get(ref.checkpoint_name, self.arrays[ref.checkpoint_name])


@pytest.mark.parametrize(
    ("query", "head"),
    [
        ("W8A16", "W8A16-asym"),
        ("W8A8", "W3A16-channel"),
        ("W4A16-channel-asym", "NF4-channel"),
        ("FP8", "W8A16"),
        ("TERNARY", "W2A16-channel"),
    ],
)
def test_packed_weights_in_both_policies(query, head):
    source = PackedSource(query, head)
    dense = Source()
    for name, packed in source.packed.items():
        dense.arrays[name] = packed.dequantize()
    expected = whole_logits(ReferenceBackend().prepare(dense, "exact", LIMITS))
    exact = ReferenceBackend().prepare(source, "exact", LIMITS)
    fast = ReferenceBackend().prepare(source, "fast", LIMITS)
    assert exact.numerics.id != fast.numerics.id
    tolerance = 0.05 * float(np.abs(expected).max())  # int8 activations, and bf16 KV
    assert np.allclose(whole_logits(fast), expected, atol=tolerance)
    assert np.allclose(whole_logits(exact), expected, atol=1e-5 if query != "W8A8" else tolerance)
    assert any(op.kind == "quantise" for op in fast.program.ops)
