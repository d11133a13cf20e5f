# SPDX-License-Identifier: Apache-2.0
"""Types of the native module. Arrays are C-contiguous; csrc/*/*bind.cpp says what each is and checks type and size.

A test compares every name and parameter with the built module.
"""

import enum
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

build_id: str

def available_isas() -> list[str]: ...
def default_threads() -> int: ...

class Storage(enum.Enum):
    fp32 = 0
    bf16 = 1
    fp16 = 2
    packed_int = 3
    plain_int8 = 4
    fp8_e4m3 = 5
    codebook = 6

class ScaleType(enum.Enum):
    fp32 = 0
    bf16 = 1
    fp16 = 2

class Offsets(enum.Enum):
    none = 0
    zero_points = 1
    minimums = 2

class InputType(enum.Enum):
    fp32 = 0
    bf16 = 1
    int8 = 2

class ValueType(enum.Enum):
    fp32 = 0
    bf16 = 1
    fp16 = 2
    int8 = 3
    int32 = 4

class KVStorage(enum.Enum):
    fp32 = 0
    bf16 = 1
    int8 = 2
    fp8 = 3
    int4 = 4

class RowCount(enum.Enum):
    tokens = 0
    outputs = 1
    logits = 2

class Activation(enum.Enum):
    silu = 0
    gelu = 1
    gelu_tanh = 2
    gelu_sigmoid = 3
    relu = 4
    relu_squared = 5

class Gating:
    def __init__(self, activation: Activation, limit: float = 0.0, up_offset: float = 0.0) -> None: ...

class ThreadPool:
    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...
    def region_s(self, items: int, regions: int) -> float: ...

class LinearWeight:
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    def use_tiles(self, isa: str, tiles: NDArray[np.uint8]) -> None: ...

def tile_bytes(isa: str, weight: LinearWeight) -> int: ...
def make_tiles(isa: str, pool: ThreadPool, weight: LinearWeight, tiles: NDArray[np.uint8]) -> None: ...
def fill_tiles(
    isa: str,
    pool: ThreadPool,
    weight: LinearWeight,
    tiles: NDArray[np.uint8],
    first_row: int,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    offsets: NDArray[np.uint8] | None,
    scale_codes: NDArray[np.uint8] | None,
    minimum_codes: NDArray[np.uint8] | None,
) -> None: ...
def tiled_weight(
    bits: int,
    rows: int,
    columns: int,
    group_size: int,
    super_group_size: int,
    offsets: Offsets,
    scale_type: ScaleType,
    bias: NDArray[np.float32] | None,
    codebook: NDArray[np.float32] | None,
    row_tables: bool = False,
    two_of_four: bool = False,
) -> LinearWeight: ...
def linear_weight(
    storage: Storage,
    bits: int,
    rows: int,
    columns: int,
    codes: NDArray[np.uint8],
    code_row_bytes: int,
    group_size: int,
    scales: NDArray[np.uint8] | None,
    scale_type: ScaleType,
    scale_row_stride: int,
    scale_group_stride: int,
    zero_points: NDArray[np.uint8] | None,
    bias: NDArray[np.float32] | None,
    codebook: NDArray[np.float32] | None = None,
) -> LinearWeight: ...
def refuse_linear(arg0: str, arg1: LinearWeight, arg2: InputType, arg3: int, /) -> str | None: ...
def linear_name(arg0: str, arg1: LinearWeight, arg2: InputType, /) -> str: ...
def value_bytes(arg0: str, arg1: ValueType, arg2: int, arg3: int, arg4: int, /) -> int: ...
def kv_bytes_per_block(
    storage: KVStorage, kv_heads: int, head_size: int, value_head_size: int, block_size: int
) -> int: ...

class Executor:
    def __init__(
        self,
        isa: str,
        pool: ThreadPool,
        max_tokens: int,
        max_sequences: int,
        max_outputs: int,
        block_size: int,
        max_blocks: int,
        vocabulary: int,
        arena_bytes: int,
    ) -> None: ...
    def add_value(
        self,
        offset: int,
        rows: RowCount,
        width: int,
        type: ValueType,
        group_size: int,
        half_range: float = 127.5,
        static_scale: float = 0.0,
        each: int = 1,
    ) -> int: ...
    def add_state(
        self, storage: KVStorage, kv_heads: int, head_size: int, value_head_size: int, group: int = 0
    ) -> int: ...
    def begin_chain(self, name: str) -> None: ...
    def add_local(
        self,
        rows: RowCount,
        width: int,
        type: ValueType,
        group_size: int,
        half_range: float = 127.5,
        static_scale: float = 0.0,
        each: int = 1,
    ) -> int: ...
    def end_chain(self) -> None: ...
    def add_rope_table(self, inverse_frequencies: Sequence[float], factor: float) -> int: ...
    def embed(self, name: str, output: int, table: LinearWeight, positions: bool = False) -> None: ...
    def norm(
        self,
        name: str,
        input: int,
        output: int,
        layer: bool,
        size: int,
        epsilon: float,
        offset: float,
        gain: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
    ) -> None: ...
    def add(self, arg0: str, arg1: int, arg2: int, arg3: int, /) -> None: ...
    def add_row(self, arg0: str, arg1: int, arg2: int, arg3: NDArray[np.float32], /) -> None: ...
    def scale(self, arg0: str, arg1: int, arg2: int, arg3: float, /) -> None: ...
    def softcap(self, arg0: str, arg1: int, arg2: int, arg3: float, /) -> None: ...
    def hadamard(self, arg0: str, arg1: int, arg2: int, arg3: int, /) -> None: ...
    def gate(self, arg0: str, arg1: int, arg2: int, arg3: int, arg4: Gating, /) -> None: ...
    def gate_pairs(self, arg0: str, arg1: int, arg2: int, arg3: Gating, /) -> None: ...
    def rope(self, arg0: str, arg1: int, arg2: int, arg3: int, arg4: int, arg5: bool, arg6: int, /) -> None: ...
    def gather(self, arg0: str, arg1: int, arg2: int, /) -> None: ...
    def leading(self, arg0: str, arg1: int, arg2: int, /) -> None: ...
    def cast(self, arg0: str, arg1: int, arg2: int, /) -> None: ...
    def quantise(self, arg0: str, arg1: int, arg2: int, /) -> None: ...
    def round(
        self,
        name: str,
        input: int,
        output: int,
        fp8: bool,
        symmetric: bool,
        dynamic: bool,
        group_size: int,
        scale: float = 1.0,
        zero_point: float = 0.0,
    ) -> None: ...
    def join_heads(self, arg0: str, arg1: int, arg2: int, arg3: int, arg4: int, arg5: bool, /) -> None: ...
    def order_columns(self, arg0: str, arg1: int, arg2: int, arg3: NDArray[np.int32], /) -> None: ...
    def sparse_linear(
        self, arg0: str, arg1: int, arg2: int, arg3: NDArray[np.float32], arg4: NDArray[np.int32], /
    ) -> None: ...
    def dequantise(self, arg0: str, arg1: int, arg2: int, /) -> None: ...
    def linear(self, arg0: str, arg1: int, arg2: Sequence[int], arg3: Sequence[LinearWeight], /) -> None: ...
    def gated_linear(self, arg0: str, arg1: int, arg2: int, arg3: Sequence[LinearWeight], arg4: Gating, /) -> None: ...
    def route(
        self,
        name: str,
        scores: int,
        ids: int,
        weights: int,
        sigmoid: bool,
        normalise: bool,
        factor: float,
        groups: int = 1,
        groups_chosen: int = 1,
        group_best: int = 1,
        correction: NDArray[np.float32] | None = None,
    ) -> None: ...
    def experts(self, arg0: str, arg1: int, arg2: int, arg3: int, arg4: Sequence[LinearWeight], /) -> None: ...
    def combine(self, arg0: str, arg1: int, arg2: int, arg3: int, /) -> None: ...
    def low_rank_adds(self, name: str, x: int, inputs: Sequence[int], outputs: Sequence[int]) -> int: ...
    def set_adapter(
        self,
        low_rank: int,
        site: int,
        adapter: int,
        down: NDArray[np.uint8],
        up: NDArray[np.uint8],
        bf16: bool,
        rank: int,
        columns: int,
        outputs: int,
        factor: float,
    ) -> None: ...
    def clear_adapter(self, low_rank: int, site: int, adapter: int) -> None: ...
    def kv_write(self, arg0: str, arg1: int, arg2: int, arg3: int, /) -> None: ...
    def attention(
        self,
        name: str,
        query: int,
        output: int,
        state: int,
        heads: int,
        rounded: bool,
        scale: float,
        window: int,
        softcap: float,
        alibi_slopes: NDArray[np.float32] | None,
        sinks: NDArray[np.float32] | None = None,
        full: bool = False,
    ) -> None: ...
    def add_slot_state(self, numbers: int) -> int: ...
    def conv(
        self,
        name: str,
        input: int,
        output: int,
        state: int,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
    ) -> None: ...
    def scan(
        self,
        name: str,
        input: int,
        steps: int,
        inward: int,
        outward: int,
        output: int,
        state: int,
        states: int,
        head_size: int,
        groups: int,
        decay: NDArray[np.float32],
        skip: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
    ) -> None: ...
    @property
    def slot_bytes(self) -> int: ...
    def execute(
        self,
        token_ids: NDArray[np.int32],
        positions: NDArray[np.int32],
        kv_slots: NDArray[np.int32],
        query_start: NDArray[np.int32],
        context_lengths: NDArray[np.int32],
        block_tables: NDArray[np.int32],
        output_rows: NDArray[np.int32],
        states: NDArray[np.uint8],
        num_blocks: Sequence[int],
        state_slots: NDArray[np.int32] | None = None,
        slots: NDArray[np.uint8] | None = None,
        logit_rows: int | None = None,
        adapters: NDArray[np.int32] | None = None,
    ) -> None: ...
    def rows(self, value: int) -> int: ...
    def read(self, value: int, out: NDArray[np.float32]) -> None: ...
    def view(self, value: int) -> NDArray[np.float32]: ...
    def set_profiling(self, on: bool) -> None: ...
    def profile(self) -> list[tuple[str, float]]: ...

class Sampler:
    def __init__(self, isa: str, pool: ThreadPool) -> None: ...
    def sample(
        self,
        logits: NDArray[np.float32],
        rows: NDArray[np.int32],
        temperature: NDArray[np.float32],
        top_k: NDArray[np.int32],
        top_p: NDArray[np.float32],
        min_p: NDArray[np.float32],
        repetition_penalty: NDArray[np.float32],
        presence_penalty: NDArray[np.float32],
        frequency_penalty: NDArray[np.float32],
        seed: NDArray[np.uint64],
        position: NDArray[np.int64],
        history_offsets: NDArray[np.int64],
        history_ids: NDArray[np.int32],
        generated_offsets: NDArray[np.int64],
        generated_ids: NDArray[np.int32],
        bias_offsets: NDArray[np.int64],
        bias_ids: NDArray[np.int32],
        bias_values: NDArray[np.float32],
        top_logprobs: int | None,
        allowed: NDArray[np.uint32] | None,
        top_allowed: NDArray[np.bool] | None,
        purpose: int = 0,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]: ...
    def score(
        self,
        logits: NDArray[np.float32],
        rows: NDArray[np.int32],
        targets: NDArray[np.int32],
        other: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]: ...

class Limits:
    def __init__(self, isa: str, pool: ThreadPool, bytes: int) -> None: ...
    def read_bandwidth(self, streams: int) -> float: ...
    def int8(self, seconds: float) -> float: ...
    def bf16(self, seconds: float) -> float: ...
    def fp32(self, seconds: float) -> float: ...

class LinearRun:
    def __init__(
        self,
        isa: str,
        pool: ThreadPool,
        weight: LinearWeight,
        input: InputType,
        group_size: int,
        x: NDArray[np.float32],
        tiles: bool = False,
    ) -> None: ...
    def run(self, y: NDArray[np.float32], first_row: int, rows: int, units: int) -> None: ...
