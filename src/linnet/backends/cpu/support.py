# SPDX-License-Identifier: Apache-2.0
"""What the CPU backend can execute, and the sentence it says when it cannot."""

from collections.abc import Mapping

from linnet.program import attributes as a
from linnet.program.prescribed import refuse_rounding
from linnet.program.program import Op, Program, Value
from linnet.program.traverse import declarations
from linnet.schemes.scheme import Scheme

ATTENTION_INPUTS = ("positions", "query_start", "context_lengths", "block_tables")
SEQUENCE_INPUTS = ("query_start", "positions", "state_slots")
MAX_SCAN_STATES = 256
ROW_SYMBOLS = ("tokens", "outputs", "logit_rows")
MAX_HEAD_SIZE = 4096
KV_ELEMENTS = ("int8", "fp8_e4m3", "int4")


def refuse(op: Op, program: Program) -> str | None:
    """None, or why this op cannot be executed here."""
    return _refuse(op, program, declarations(program))


def refusals(program: Program) -> list[str]:
    """Every refused op with its reason."""
    declared = declarations(program)
    return [f"{op.name}: {why}" for op in program.ops if (why := _refuse(op, program, declared)) is not None]


def _refuse(op: Op, program: Program, declared: Mapping[str, Value]) -> str | None:
    if op.kind not in a.ATTRIBUTES:
        return f"op kind {op.kind!r} has no kernel"
    for inner in op.expansion:
        if (why := _refuse(inner, program, declared)) is not None:
            return f"{inner.name}: {why}"
    for name in op.outputs:
        value = declared[name]
        sizes = value.shape[1:]
        if len(sizes) not in (1, 2) or value.shape[0] not in ROW_SYMBOLS or not all(isinstance(n, int) for n in sizes):
            return f"values are [tokens | outputs, width] or [.., chosen, width]; {name} is {list(value.shape)}"
        if value.dtype == "int32" and op.kind not in ("route", *a.FUSED_KINDS):
            return f"no op writes int32 values, {name} is one"
    return _refuse_inputs(op) or _refuse_states(op, program) or _refuse_scan(op) or _refuse_rounding(op, declared)


def _refuse_inputs(op: Op) -> str | None:
    wanted: dict[str, tuple[int, tuple[str, ...]]] = {
        "rope": (1, ("positions",)),
        "kv_write": (2, ("kv_slots",)),
        "attention": (1, ATTENTION_INPUTS),
        "gather": (1, ("output_rows",)),
        "low_rank_add": (2, ("adapters", "output_rows")),
        "conv": (1, SEQUENCE_INPUTS),
        "scan": (4, SEQUENCE_INPUTS),
    }
    if op.kind == "embed" and op.inputs not in (("token_ids",), ("positions",)):
        return f"embed reads the program inputs token_ids or positions, not {', '.join(op.inputs)}"
    if op.kind in wanted:
        start, names = wanted[op.kind]
        if op.inputs[start:] != names[: len(op.inputs) - start]:
            return f"{op.kind} reads the program inputs {', '.join(names)}, not {', '.join(op.inputs[start:])}"
    return None


def _refuse_states(op: Op, program: Program) -> str | None:
    if not op.states:
        return None
    for state in program.states:
        if state.name not in op.states:
            continue
        scheme = state.dtype
        if isinstance(scheme, Scheme):
            if scheme.element not in KV_ELEMENTS or scheme.granularity != "head" or not scheme.symmetric:
                return f"KV is quantised to symmetric {', '.join(KV_ELEMENTS)} per head, not {scheme.element}"
        elif scheme not in ("fp32", "bf16"):
            return f"KV is kept in fp32 or bf16 or quantised, not in {scheme}"
        if max(state.head_size, state.value_head_size) > MAX_HEAD_SIZE:
            return f"heads of more than {MAX_HEAD_SIZE} elements are not supported, {state.head_size} are asked for"
    return None


def _refuse_scan(op: Op) -> str | None:
    if isinstance(op.attributes, a.Scan) and op.attributes.states > MAX_SCAN_STATES:
        return f"a scan has at most {MAX_SCAN_STATES} states per channel, {op.attributes.states} are asked for"
    return None


def _refuse_rounding(op: Op, declared: Mapping[str, Value]) -> str | None:
    if isinstance(op.attributes, a.Quantise) and (reason := refuse_rounding(op.attributes.scheme)) is not None:
        return reason
    if op.kind in ("linear", "logits", "router", "experts") and declared[op.inputs[0]].dtype == "fp16":
        return "no linear kernel reads fp16 activations"
    return None
