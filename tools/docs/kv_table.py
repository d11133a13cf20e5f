# SPDX-License-Identifier: Apache-2.0
"""The KV cache's part of docs/support.md: what a checkpoint may prescribe for keys and values, what becomes of it, and
which backends execute it. Part of ``support_matrix.py``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from linnet.backends.interface import Policy
from linnet.backends.select import choose_backend, refused_ops
from linnet.errors import LinnetError
from linnet.formats.quantization import read_quantization
from linnet.models.build import build_program
from linnet.models.families import arch_spec
from linnet.program.choose_numerics import choose_numerics, quantised_kv
from linnet.program.program import Program
from linnet.schemes import Scheme

BACKENDS = ("reference", "cpu")
POLICIES: tuple[Policy, ...] = ("fast", "exact")
HEAD = """
## Keys and values

What a checkpoint prescribes for its KV cache (`kv_cache_scheme`), and what keys and values are then stored as. A scale
of its own, computed when they are stored, goes with each token and head, which is finer than any that a file
prescribes: scales that lie in the file (`k_scale`, `v_scale`, `k_proj.output_scale`) are passed over with a warning.
`--kv-cache` chooses another form. Every tier has the kernels: `tests/ops/test_cases.py` runs them on all that a machine
has.

| prescribed | fast | exact | reference | cpu |
|---|---|---|---|---|
"""


def _prescriptions() -> Iterator[tuple[str, dict[str, Any] | None]]:
    yield "nothing", None
    for kind, bits in (("float", 8), ("int", 8), ("int", 4)):
        for strategy in ("tensor", "attn_head", "token"):
            dynamic = strategy == "token"
            record = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": dynamic}
            yield f"{kind} of {bits} bits, per {strategy}", record
    yield "int of 8 bits, asymmetric", {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": False}
    yield "float of 4 bits", {"num_bits": 4, "type": "float", "strategy": "tensor", "symmetric": True}


def _stored(program: Program) -> str:
    found = {state.dtype if isinstance(state.dtype, str) else _named(state.dtype) for state in program.states}
    return " and ".join(sorted(found))


def _named(scheme: Scheme) -> str:
    return f"{scheme.element}, a scale per token and {scheme.granularity}"


def _line(said: str, record: dict[str, Any] | None, config: Mapping[str, Any]) -> str:
    element = None
    if record is not None:
        method = {"quant_method": "compressed-tensors", "format": "dense", "kv_cache_scheme": record}
        try:
            element = read_quantization({**config, "quantization_config": method}, "config.json").kv_element
        except LinnetError as error:
            return f"| {said} | – | – | no: {str(error).removeprefix('config.json: ')} | no |\n"
    spec = arch_spec(config)
    kinds = None if element is None else [quantised_kv(element)] * len(spec.layers)
    built = build_program(spec, lambda name: "fp32", kinds)
    programs = [choose_numerics(built, policy) for policy in POLICIES]
    answers = []
    for name in BACKENDS:
        reasons = {reason: None for program in programs for reason in refused_ops(choose_backend(name), program)}
        answers.append("no: " + "; ".join(reasons) if reasons else "yes")
    return f"| {said} | {' | '.join(map(_stored, programs))} | {' | '.join(answers)} |\n"


def section(config: Mapping[str, Any]) -> str:
    """The table, asked of a model with this config."""
    return HEAD + "".join(_line(said, record, config) for said, record in _prescriptions())
