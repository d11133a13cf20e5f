# SPDX-License-Identifier: Apache-2.0
"""low_rank_add of every tier against the reference, and that a row's bits depend on its own adapter alone."""

import random
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference backend needs PyTorch")
pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from linnet.backends.cpu import _native
from linnet.backends.cpu.backend import CpuBackend
from linnet.backends.interface import Batch, Limits, LowRank
from linnet.backends.reference.backend import ReferenceBackend
from linnet.errors import ConfigError
from linnet.program import attributes as a
from linnet.program.adapters import ADAPTERS
from linnet.program.check import check
from linnet.program.fuse import fuse
from linnet.program.program import Op, Program, Segment, Value, Weight, WeightRef
from linnet.program.traverse import boundaries

ROWS, BLOCK = 48, 16
OUTPUTS = (59, 23)
INPUTS = (
    Value("token_ids", ("tokens",), "int32"),
    Value("positions", ("tokens",), "int32"),
    Value("kv_slots", ("tokens",), "int32"),
    Value("query_start", ("sequences_plus_one",), "int32"),
    Value("context_lengths", ("sequences",), "int32"),
    Value("block_tables", ("sequences", "blocks"), "int32"),
    Value("output_rows", ("outputs",), "int32"),
    ADAPTERS,
)


class Source:
    """Token i's row of a table, two linears of it, and what adapters add to both."""

    def __init__(self, columns: int) -> None:
        rng = np.random.default_rng(columns)
        self.arrays = {"table": rng.normal(size=(ROWS, columns)).astype(np.float32)}
        weights = [Weight("table", WeightRef("table"), (ROWS, columns), "fp32")]
        values = [Value("x", ("tokens", columns), "fp32")]
        ops = [Op("embed", "x", ("token_ids",), ("x",), a.Embed(), ("table",))]
        for index, width in enumerate(OUTPUTS):
            self.arrays[f"w{index}"] = rng.normal(size=(width, columns)).astype(np.float32)
            weights.append(Weight(f"w{index}", WeightRef(f"w{index}"), (width, columns), "fp32"))
            values.append(Value(f"y{index}", ("tokens", width), "fp32"))
            ops.append(Op("linear", f"y{index}", ("x",), (f"y{index}",), a.Linear(), (f"w{index}",)))
        for index, width in enumerate(OUTPUTS):
            name = f"y{index}.adapted"
            values.append(Value(name, ("tokens", width), "fp32"))
            ops.append(Op("low_rank_add", name, (f"y{index}", "x", "adapters"), (name,), a.LowRankAdd()))
        values.append(Value("logits", ("outputs", OUTPUTS[0]), "fp32"))
        values.append(Value("last", ("tokens", OUTPUTS[1]), "fp32"))
        middle = len(ops)
        ops.append(Op("scale", "last", ("y1.adapted",), ("last",), a.Scale(1.0)))
        ops.append(Op("gather", "logits", ("y0.adapted", "output_rows"), ("logits",), a.Gather()))
        ranges = [("embed", "embed", 0, 1), ("block", "block", 1, middle), ("head", "head", middle, len(ops))]
        given = tuple(value.name for value in INPUTS)
        crossings = boundaries(ops, [(start, stop) for _, _, start, stop in ranges], given, ("logits",))
        segments = tuple(Segment(*where, *crossing) for where, crossing in zip(ranges, crossings, strict=True))  # type: ignore[arg-type]
        self.program = Program(INPUTS, tuple(values), tuple(weights), (), tuple(ops), segments, ("logits",))
        check(self.program)
        check(fuse(self.program))

    def weight(self, ref: WeightRef) -> np.ndarray:
        return self.arrays[ref.checkpoint_name]


def adapters(columns: int) -> dict[int, dict[str, LowRank]]:
    """Of ranks that fill a panel, and that do not; one adds to one of the two only."""
    rng = np.random.default_rng(columns + 1)

    def term(rank: int, width: int, dtype: Any) -> LowRank:
        down, up = rng.normal(size=(rank, columns)), rng.normal(size=(width, rank))
        return LowRank((down / columns**0.5).astype(dtype), up.astype(dtype), 0.75)

    found: dict[int, dict[str, LowRank]] = {}
    for number, (rank, dtype) in enumerate(((16, np.float32), (3, np.float32), (33, ml_dtypes.bfloat16))):
        names = OUTPUTS if number != 1 else OUTPUTS[:1]
        found[number] = {f"y{index}.adapted": term(rank, width, dtype) for index, width in enumerate(names)}
    return found


def step(ids: list[int], own: list[int]) -> Batch:
    count = len(ids)
    integers = lambda values: np.ascontiguousarray(values, np.int32)  # noqa: E731
    return Batch(
        integers(ids),
        integers(range(count)),
        integers(range(count)),
        integers([0, count]),
        integers([count]),
        integers([range(-(-count // BLOCK))]),
        integers(range(count)),
        adapters=integers(own),
    )


def prepared(backend: Any, columns: int) -> Any:
    limits = Limits(ROWS * 2, 1, ROWS * 2, BLOCK, 2 * ROWS // BLOCK)
    executable = backend.prepare(Source(columns), "exact", limits, ("last",))
    for number, terms in adapters(columns).items():
        executable.set_adapter(number, executable.prepare_adapter(terms))
    return executable


def results(executable: Any, ids: list[int], own: list[int]) -> list[tuple[bytes, bytes]]:
    """Bytes of each row of both results."""
    executable.execute(step(ids, own), executable.allocate_states(2 * ROWS // BLOCK))
    first, second = executable.logits(), executable.tap("last")
    return [(first[row].tobytes(), second[row].tobytes()) for row in range(len(ids))]


@pytest.mark.parametrize("columns", [7, 64, 200])
@pytest.mark.parametrize("isa", _native.available_isas())
def test_tiers_agree_with_the_reference(isa: str, columns: int) -> None:
    rng = random.Random(columns)
    ids, own = [rng.randrange(ROWS) for _ in range(2 * ROWS)], [rng.randrange(-1, 3) for _ in range(2 * ROWS)]
    reference, native = prepared(ReferenceBackend(), columns), prepared(CpuBackend(2, isa), columns)
    for executable in (reference, native):
        results(executable, ids, own)
    for found, expected in ((native.logits(), reference.logits()), (native.tap("last"), reference.tap("last"))):
        assert np.abs(found - expected).max() <= 1e-4
    results(native, ids, [-1] * len(ids))
    assert np.abs(native.logits() - reference.logits()).max() > 0.1  # they do add something


@pytest.mark.parametrize("isa", _native.available_isas())
def test_a_row_depends_on_itself_and_its_adapter_alone(isa: str) -> None:
    """Alone, in any batch, in any order, with 1 and 3 threads; a row of no adapter is what it is without any."""
    seed = 20261130
    rng = random.Random(seed)
    one, three = prepared(CpuBackend(1, isa), 64), prepared(CpuBackend(3, isa), 64)
    alone = {(token, own): results(one, [token], [own])[0] for token in range(ROWS) for own in range(-1, 3)}
    plain = CpuBackend(1, isa).prepare(Source(64), "exact", Limits(ROWS, 1, ROWS, BLOCK, ROWS // BLOCK), ("last",))
    for row, found in enumerate(results(plain, list(range(ROWS)), [-1] * ROWS)):
        assert found == alone[row, -1]
    for trial in range(25):
        count = rng.randrange(1, 2 * ROWS)
        ids = [rng.randrange(ROWS) for _ in range(count)]
        own = [rng.choice((-1, 0, 1, 2)) for _ in range(count)] if trial % 3 else [rng.randrange(-1, 3)] * count
        for executable in (one, three):
            found = results(executable, ids, own)
            assert found == [alone[pair] for pair in zip(ids, own, strict=True)], f"seed {seed}, trial {trial}"


@pytest.mark.parametrize("backend", [ReferenceBackend(), CpuBackend(1)], ids=lambda backend: backend.name)
def test_adapters_come_and_go(backend: Any) -> None:
    executable = prepared(backend, 64)
    before = results(executable, [1, 2, 3], [0, 1, -1])
    executable.set_adapter(0, None)
    with pytest.raises(ConfigError, match="adapters names 0"):
        results(executable, [1, 2, 3], [0, 1, -1])
    left = np.concatenate(
        [np.frombuffer(part, np.float32) for row in results(executable, [2, 3], [1, -1]) for part in row]
    )
    assert np.allclose(left, np.concatenate([np.frombuffer(part, np.float32) for row in before[1:] for part in row]))
    executable.set_adapter(0, executable.prepare_adapter(adapters(64)[2]))
    assert results(executable, [1], [0])[0] != before[0]
    executable.set_adapter(0, executable.prepare_adapter(adapters(64)[0]))
    assert results(executable, [1, 2, 3], [0, 1, -1]) == before
    for name, term in (("y9.adapted", adapters(64)[0]["y0.adapted"]), ("y1.adapted", adapters(64)[0]["y0.adapted"])):
        with pytest.raises(ConfigError, match=name):
            executable.prepare_adapter({name: term})
