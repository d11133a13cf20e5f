# SPDX-License-Identifier: Apache-2.0
"""What bench/ops.py counts, and that an op, a layer and sampling can be timed."""

import pytest

pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from op_cases import OpCase, Steps, build

import op_runs
import ops
from limits import MachineLimits
from linnet.backends.interface import Policy
from linnet.program.attributes import Attention, Norm
from linnet.program.choose_numerics import choose_numerics
from linnet.program.fuse import fuse
from op_counts import Work, visible_keys, work

HEADS = Attention(4, 2, 64, 0.125)


def counted(case: OpCase, kind: str, policy: Policy = "fast") -> Work:
    program = choose_numerics(build(case), policy, case.kv_cache)
    op = next(op for op in program.ops if op.kind == kind and op.name != "rows")
    return work(op, program, case.steps, {"weight": 1000, "bias": 24, "gain": 80, "table.x": 640}.__getitem__)


def test_a_projection_reads_its_weight_and_rounded_rows() -> None:
    found = counted(OpCase("linear", 3, 256, 48, "W4A16"), "linear")
    assert found == Work(1024, 3 * (256 + 2 * 4) + 3 * 48 * 4, 3 * 256 * 48, "int8")
    assert counted(OpCase("linear", 3, 256, 48, "bf16"), "linear").element == "bf16"
    assert counted(OpCase("linear", 3, 256, 48, "W4A16"), "linear", "exact").element == "fp32"


def test_rounding_reads_floats_and_writes_codes_with_a_scale_per_row() -> None:
    assert counted(OpCase("quantise", 3, 256, 48, "W8A8"), "quantise") == Work(0, 3 * 256 * 4 + 3 * (256 + 4))


def test_an_embedding_reads_rows_not_its_table() -> None:
    assert counted(OpCase("embed", 2, 16, 10, "bf16"), "embed") == Work(2 * 64, 2 * 16 * 4)


def test_a_norm_multiplies_nothing_worth_counting() -> None:
    assert counted(OpCase("norm", 2, 20, attributes=Norm("rms", 20, 1e-5)), "norm") == Work(80, 2 * 2 * 20 * 4)


def test_attention_reads_every_key_once_and_multiplies_what_it_sees() -> None:
    case = OpCase("attention", 6, 256, attributes=HEADS, kv_cache="int8", context=100, sequences=2)
    found = counted(case, "attention")
    per_token = 2 * 2 * 64 + 2 * 2 * 4
    assert found.cold_bytes == 2 * 103 * per_token
    assert found.macs == 2 * (101 + 102 + 103) * 4 * (64 + 64)
    assert found.element == "bf16"
    assert counted(case, "kv_write").cold_bytes == 6 * per_token


@pytest.mark.parametrize(("window", "keys", "pairs"), [(None, 13, 11 + 12 + 13), (12, 13, 11 + 12 + 12), (4, 6, 12)])
def test_a_window_hides_keys(window: int | None, keys: int, pairs: int) -> None:
    attention = Attention(1, 1, 8, 1.0, window=window)
    assert visible_keys(attention, Steps(3, 10)) == (keys, pairs)


def test_what_stays_inside_a_fused_op_is_not_counted() -> None:
    case = OpCase("quantise", 2, 256, 48, "W4A16")
    program = fuse(choose_numerics(build(case), "fast"))
    chain = next(op for op in program.ops if op.name == "x.int8_g128")
    alone = counted(case, "quantise")
    assert work(chain, program, case.steps, lambda name: 0) == alone


@pytest.fixture(scope="module")
def limits() -> MachineLimits:
    return MachineLimits(1, area_bytes=8 << 20)


@pytest.mark.parametrize(
    "case",
    [
        OpCase("linear", 2, 256, 48, "W4A16"),
        OpCase("attention", 2, 256, attributes=HEADS, kv_cache="int8", context=300, sequences=2),
        OpCase("kv_write", 2, 256, attributes=HEADS),
        OpCase("embed", 2, 64, 10, "bf16"),
    ],
    ids=lambda case: case.name,
)
def test_the_op_of_a_case_is_timed(case: OpCase, limits: MachineLimits) -> None:
    (record,) = ops.measure(op_runs.op_case(case, limits), None, limits, 2)
    assert record["kernel"]
    assert min(record["read_share"]) > 0
    assert bool(record["macs_per_s"]) == (case.kind in ("linear", "attention"))
    assert ops.cells(record)[-1] == "-" or record["peak_share"]


def test_weights_and_kv_take_turns_until_they_leave_the_caches(
    limits: MachineLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op_runs, "LEAST_COLD_BYTES", 1000)
    monkeypatch.setattr(op_runs, "CACHE_BYTES", 20000)
    linear = op_runs.op_case(OpCase("linear", 1, 256, 48, "W4A16"), limits)
    turns = -(-20000 // linear.ops[0].work.cold_bytes)
    assert (len(linear._executables), len(linear._turns)) == (turns, turns)
    attention = op_runs.op_case(OpCase("attention", 1, 256, attributes=HEADS, context=20), limits)
    assert (len(attention._executables), len(attention._turns)) == (1, -(-20000 // (21 * 2 * 2 * 64 * 2)))
    embed = op_runs.op_case(OpCase("embed", 8, 64, 100, "bf16"), limits)
    assert (len(embed._executables), len(embed._turns)) == (2, -(-20000 // (8 * 128)))
    assert embed._turns[1][2].token_ids[0] == 8


def test_a_layer_is_timed_op_by_op_as_it_is_fused(limits: MachineLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = op_runs.SHAPES["llama-3.2-1b"] | small | {"head_dim": 16}
    monkeypatch.setitem(op_runs.SHAPES, "llama-3.2-1b", shape)
    monkeypatch.setattr(op_runs, "LAYER_STEPS", (Steps(4, 20, 2),))
    (timed,) = op_runs.layers(limits, "layer-bf16")
    assert timed.name == "layer-bf16-m4-c20-s2"
    parts = [op.name for op in timed.ops]
    assert "attention.query+key+value" in parts
    assert any("kv_write" in part for part in parts)
    assert all(seconds > 0 for seconds in timed.seconds())
    assert sum(op.work.macs for op in timed.ops) > 4 * 64 * (128 + 3 * 96 + 64)


def test_sampling_is_timed(limits: MachineLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_runs, "VOCABULARY", 512)
    names = [timed.name for timed in op_runs.sampling(limits, "m1") if timed.seconds()[0] > 0]
    assert names == ["sample-greedy-512-m1", "sample-greedy-512-m16", "sample-top_p-512-m1", "sample-top_p-512-m16"]
