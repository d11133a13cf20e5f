# SPDX-License-Identifier: Apache-2.0
"""docs/support.md: which stored forms run where, asked of the program that would be executed.

    python tools/docs/support_matrix.py [--check]

A small Llama has one linear stored in the form; numerics are chosen, each backend is asked whether it executes every op
of the result, and each tier of this machine prepares it. --check: exit 1 unless the page says just this.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from linnet.backends.interface import Policy
from linnet.backends.select import choose_backend, refused_ops
from linnet.errors import UnsupportedError
from linnet.models.build import build_program
from linnet.models.families import arch_spec
from linnet.program.choose_numerics import choose_numerics
from linnet.program.program import Op, Program
from linnet.schemes import LinearScheme, Scheme
from linnet.schemes.scheme import DenseType

sys.path.insert(0, str(Path(__file__).resolve().parent))
import family_table
import kv_table
import refused_forms
import tier_table
from stored_forms import COLUMNS, FormSource, Row, random_weight, rows
from tier_table import Kernels

PAGE = Path(__file__).resolve().parents[2] / "docs" / "support.md"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": COLUMNS,
    "intermediate_size": COLUMNS,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
WEIGHT = "model.layers.0.mlp.up_proj.weight"
BACKENDS = ("reference", "cpu")
POLICIES: tuple[Policy, ...] = ("fast", "exact")


def linear(program: Program) -> Op:
    """The op that multiplies by the form."""
    weights = {weight.name: weight.ref.checkpoint_name for weight in program.weights}
    [op] = [op for op in program.ops if op.kind == "linear" and weights[op.weights[0]] == WEIGHT]
    return op


def arithmetic(program: Program) -> str:
    """What the linear's input is when it is multiplied."""
    dtype = {value.name: value for value in program.values}[linear(program).inputs[0]].dtype
    if not isinstance(dtype, Scheme):
        return str(dtype)
    shared = f"groups of {dtype.group_size}" if dtype.group_size else dtype.granularity
    return f"{dtype.element}, {shared}{'' if dtype.dynamic else ', static'}"


@cache
def chosen(scheme: LinearScheme | DenseType, policy: Policy) -> Program | str:
    """The program that would be executed, or why there is none."""
    built = build_program(arch_spec(CONFIG), lambda name: scheme if name == WEIGHT else "fp32")
    try:
        return choose_numerics(built, policy)
    except UnsupportedError as error:
        return str(error)


def answer(row: Row, policy: Policy) -> tuple[str, dict[str, str]]:
    """(what the input is, backend -> yes or the refusal)."""
    program = chosen(row.scheme, policy)
    if isinstance(program, str):
        return "–", dict.fromkeys(BACKENDS, program)
    found = {}
    for name in BACKENDS:
        reasons = refused_ops(choose_backend(name), program)
        found[name] = "yes" if not reasons else "no: " + "; ".join(reasons)
    return arithmetic(program), found


def sources(row: Row) -> Mapping[Policy, FormSource]:
    """By policy: the program with random weights, one of them in the form. UnsupportedError if there is none."""
    stored = random_weight(row)
    found = {}
    for policy in POLICIES:
        program = chosen(row.scheme, policy)
        if isinstance(program, str):
            raise UnsupportedError(program)
        found[policy] = FormSource(program, WEIGHT, stored)
    return found


def kernels(row: Row) -> dict[str, Kernels]:
    """Tier of this machine -> what multiplies by the form on it."""
    made = sources(row)
    return {
        tier: Kernels(*(tier_table.kernel(one, linear(one.program).name, tier, policy) for policy, one in made.items()))
        for tier in tier_table.own_tiers()
    }


def asked_here(stored: Sequence[Row]) -> tier_table.Cells:
    """Of the tiers that this machine has, what they say; of others, what the page says."""
    before = tier_table.on_page(PAGE.read_text(encoding="utf-8"))
    return {
        (row.published, row.stored): {**before.get((row.published, row.stored), {}), **kernels(row)} for row in stored
    }


HEAD = """# What runs where

Made by `python tools/docs/support_matrix.py`, which asks the program that would be executed. *fast* and *exact*: what a
linear's input is when it meets the weight ([backends.md](backends.md) says how).

| published as | stored as | bits per weight | fast | exact | reference | cpu |
|---|---|---|---|---|---|---|
"""


def line(row: Row) -> str:
    """One row of the table; two answers where the policies' differ."""
    (fast, by_fast), (exact, by_exact) = (answer(row, policy) for policy in POLICIES)
    both = (" / ".join(dict.fromkeys((by_fast[name], by_exact[name]))) for name in BACKENDS)
    return f"| {row.published} | {row.stored} | {row.bits:.2f} | {fast} | {exact} | {' | '.join(both)} |\n"


def page(by_tier: tier_table.Cells) -> str:
    """The whole page."""
    tables = (
        tier_table.section(by_tier),
        kv_table.section(CONFIG),
        refused_forms.section(),
        family_table.section(),
    )
    return HEAD + "".join(map(line, rows())) + "".join(tables)


def main() -> None:
    """Write the page, or with --check compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    made = page(asked_here(tuple(rows())))
    if parser.parse_args().check:
        sys.exit(PAGE.read_text(encoding="utf-8") != made)
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
