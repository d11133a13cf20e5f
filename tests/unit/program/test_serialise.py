# SPDX-License-Identifier: Apache-2.0
"""Canonical JSON: a round trip is the identity, equal programs have equal digests, anything unknown is an error."""

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from small_programs import CONFIGS, W4_G128, W8A8, program

from linnet.program import serialise
from linnet.program.attributes import Softcap
from linnet.program.choose_numerics import choose_numerics
from linnet.program.program import Op
from linnet.program.serialise import digest, from_json, to_json
from linnet.program.signatures import ProgramError


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("linears", ["bf16", W4_G128, W8A8], ids=["bf16", "W4", "W8A8"])
@pytest.mark.parametrize("policy", [None, "exact", "fast"])
def test_round_trip(name: str, linears: Any, policy: Any) -> None:
    built = program(name, linears)
    chosen = built if policy is None else choose_numerics(built, policy)
    text = to_json(chosen)
    assert from_json(text) == chosen
    assert to_json(from_json(text)) == text
    assert digest(from_json(text)) == digest(chosen)


def test_the_text_is_canonical() -> None:
    text = to_json(program())
    assert text.isascii()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_digests_tell_programs_apart() -> None:
    found = {digest(program(name)) for name in CONFIGS}
    found |= {digest(choose_numerics(program(), policy)) for policy in ("exact", "fast")}
    found |= {digest(program("gated", W4_G128))}
    assert len(found) == len(CONFIGS) + 2, "exact of a bf16 model is the built program itself"


def test_the_digest_is_stable() -> None:
    """A changed digest orphans resume points and Reports: change PROGRAM_VERSION with it."""
    assert digest(program("parallel")) == "aa0484c97c7d7bf8571fa972bb24e4bd907166dd6f7c2ea0d5a752856f1cc290"


def test_a_whole_number_in_a_float_field_is_the_same_program() -> None:
    built = program("capped")
    edited = tuple(replace(op, attributes=Softcap(30)) if op.attributes == Softcap(30.0) else op for op in built.ops)
    assert digest(replace(built, ops=edited)) == digest(built)


def test_reading_leaves_no_trace() -> None:
    """The hints of a class are cached for all threads: reading ops of two kinds must not write into them."""
    before = dict(serialise._hints(Op))
    from_json(to_json(program()))
    assert serialise._hints(Op) == before


def test_expansions_travel() -> None:
    built = program()
    index = next(i for i, op in enumerate(built.ops) if op.kind == "gate")
    inner = replace(built.ops[index], name="inner")
    outer = replace(built.ops[index], expansion=(inner,))
    edited = replace(built, ops=(*built.ops[:index], outer, *built.ops[index + 1 :]))
    assert from_json(to_json(edited)).ops[index].expansion == (inner,)
    assert isinstance(inner, Op)


def edit(change: Any) -> str:
    raw = json.loads(to_json(choose_numerics(program("gated", W4_G128), "fast")))
    change(raw)
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda raw: raw.update(version=3), "version 3"),
        (lambda raw: raw.update(version=True), "version True"),
        (lambda raw: raw.pop("version"), "version None"),
        (lambda raw: raw.update(author="x"), "author"),
        (lambda raw: raw["ops"][0].update(kind="convolve"), "convolve"),
        (lambda raw: raw["ops"][0].update(kind=["embed"]), "kind"),
        (lambda raw: raw["ops"][0].update(comment=""), "comment"),
        (lambda raw: raw["ops"][0].pop("weights"), "weights"),
        (lambda raw: raw["ops"][1]["attributes"].update(axis=1), "axis"),
        (lambda raw: raw["ops"][1]["attributes"].pop("epsilon"), "epsilon"),
        (lambda raw: raw["ops"][1]["attributes"].update(epsilon="small"), "epsilon"),
        (lambda raw: raw["ops"][1]["attributes"].update(flavour="batch"), "flavour"),
        (lambda raw: raw["values"][0].update(dtype="fp8"), "dtype"),
        (lambda raw: raw["values"][2]["dtype"].update(type="Codebook"), "Codebook"),
        (lambda raw: raw["values"][2]["dtype"].update(group_size=-1), "group_size"),
        (lambda raw: raw["values"][0].update(shape="tokens"), "shape"),
        (lambda raw: raw["segments"].pop(), "segments end"),
        (lambda raw: raw["ops"].pop(), "never written|segment"),
    ],
)
def test_anything_unknown_is_an_error_that_names_it(change: Any, named: str) -> None:
    with pytest.raises(ProgramError, match=named):
        from_json(edit(change))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "1", "{", '{"version":2,"version":2}', "[" * 100_000])
def test_what_is_not_a_program_is_one_error(text: str) -> None:
    with pytest.raises(ProgramError):
        from_json(text)


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_never_escapes(seed: int) -> None:
    """Replace a random leaf by something else: the same program, another valid one, or a ProgramError."""
    generator = random.Random(seed)
    raw = json.loads(to_json(program("parallel")))
    node: Any = raw
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = generator.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and generator.random() < 0.95:
            node = node[key]
            continue
        node[key] = generator.choice([None, -1, 1e300, "x", [], {}, True, [[]], {"type": "Scheme"}])
        break
    try:
        again = from_json(json.dumps(raw))
    except ProgramError:
        return
    assert from_json(to_json(again)) == again
