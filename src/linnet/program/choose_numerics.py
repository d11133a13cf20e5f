# SPDX-License-Identifier: Apache-2.0
"""choose_numerics: the policy that decides where numbers are rounded, as explicit ops in the Program.

``exact``: dequantised weights, fp32 activations, fp32 KV: what is compared with other implementations.
``fast``: int8 activations (dynamic, per token and group) in front of integer weights and of rows with tables of their
own, bf16 activations in front of 16-bit weights, fp8 and other codebooks (whose scaled values are then rounded to bf16,
as QLoRA computes), bf16 KV, and attention with queries and weights rounded to bf16. A checkpoint that prescribes its
activations (W8A8, W4A8, FP8) is executed as prescribed by both. The KV cache's numbers can be chosen apart from the
policy: with ``exact``, attention's arithmetic stays fp32 on whatever is stored. A KV type that a checkpoint prescribes
(its states are quantised from the start) holds with both policies, unless another is chosen.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from linnet.errors import ConfigError, UnsupportedError, unknown_choice
from linnet.program.attributes import FUSED_KINDS, Attention, Cast, Quantise
from linnet.program.convert_inputs import Conversion, convert_inputs
from linnet.program.prescribed import prescribed_scheme, static_parameters
from linnet.program.program import Op, Program, Value, Weight
from linnet.program.sort_inputs import PROJECTIONS, sort_inputs
from linnet.program.traverse import multiplied
from linnet.schemes.elements import ElementName
from linnet.schemes.scheme import DenseType, LinearScheme, Scheme

Policy = Literal["exact", "fast"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
KVCache = Literal["auto", "fp32", "bf16", "int8", "fp8", "int4"]
"""What the KV cache stores; auto: what the checkpoint prescribes, else fp32 with ``exact``, bf16 with ``fast``."""
KV_CACHES: tuple[KVCache, ...] = get_args(KVCache)

WIDE_GROUP_SIZE, NARROW_GROUP_SIZE, WIDE_COLUMNS = 128, 32, 1024
"""Columns that share an activation scale when the weight has no groups of its own: small models feel every rounding
and have narrow inputs, where finer groups cost nothing."""


def known_policy(name: str) -> Policy:
    """A policy by its name; ConfigError lists those there are."""
    for policy in POLICIES:
        if policy == name:
            return policy
    raise unknown_choice("policy", name, POLICIES)


def known_kv_cache(name: str) -> KVCache:
    """A type of the KV cache by its name; ConfigError lists those there are."""
    for kv_cache in KV_CACHES:
        if kv_cache == name:
            return kv_cache
    raise unknown_choice("kv_cache", name, KV_CACHES)


def activation_scheme(weight: Weight, policy: Policy) -> DenseType | Scheme:
    """What a projection's input becomes in front of this weight; fp32 means that nothing is inserted."""
    if not isinstance(weight.dtype, LinearScheme):
        return "bf16" if policy == "fast" and weight.dtype in ("bf16", "fp16") else "fp32"
    prescribed = prescribed_scheme(weight)
    if prescribed is not None:
        return prescribed
    stored = weight.dtype.weight
    if policy == "exact" or stored.element == "fp32":
        return "fp32"
    if stored.numbers.values is not None:
        return "bf16"
    if stored.numbers.kind == "float":  # fp8 is bf16 exactly; one scale per output can wait for the sum's end
        return "bf16" if stored.granularity in ("channel", "tensor") else "fp32"
    group_size = stored.columns_per_scale
    if group_size is None or stored.super_group_size is not None:
        group_size = _own_group_size(stored, weight.shape[1])
    return Scheme("int8", "group", group_size=group_size, dynamic=True, scale_dtype="fp32")


def _scheme_of_all(weights: Sequence[Weight], policy: Policy) -> DenseType | Scheme:
    """Of one linear, or of all experts, whose rows are rounded before they are sorted: fp32 where they do not agree."""
    found = {activation_scheme(weight, policy) for weight in weights}
    static = any(isinstance(target, Scheme) and not target.dynamic for target in found)
    if len(weights) > 1 and static:
        raise UnsupportedError(
            f"weight {weights[0].ref.checkpoint_name} prescribes a static scale of its input; experts take dynamic ones"
        )
    return found.pop() if len(found) == 1 else "fp32"


def _own_group_size(stored: Scheme, columns: int) -> int:
    """Of activations in front of a weight that leaves it open. Over scales of two levels it does: products of codes and
    scale codes are integers, so that only what shares an activation scale and a super group is finished apart."""
    size = WIDE_GROUP_SIZE if columns >= WIDE_COLUMNS else NARROW_GROUP_SIZE
    super_group = stored.super_group_size
    if super_group is not None and (super_group % size or size % (stored.group_size or 1)):
        return super_group
    return size


OWN_KV: dict[Policy, Literal["fp32", "bf16"]] = {"exact": "fp32", "fast": "bf16"}
"""What a policy stores keys and values as where nobody prescribes anything."""


def rounded_name(name: str, target: DenseType | Scheme) -> str:
    """Name of the rounded copy of a value: ``x.bf16``, ``x.int8_token``, ``x.int8_g128``, ``x.int8_token_asym``,
    ``x.int8_token_narrow``."""
    if not isinstance(target, Scheme):
        return f"{name}.{target}"
    shared = f"g{target.group_size}" if target.group_size else target.granularity
    kind = "_narrow" if target.narrow_range else "" if target.symmetric else "_asym"
    return f"{name}.{target.element}_{shared}{kind}"


def kv_scheme(policy: Policy, kv_cache: KVCache) -> DenseType | Scheme:
    """What a KV state stores. Quantised: symmetric, one fp32 scale per token and head, computed when it is written."""
    if kv_cache == "auto":
        return OWN_KV[policy]
    if kv_cache == "fp32" or kv_cache == "bf16":
        return kv_cache
    return quantised_kv("fp8_e4m3" if kv_cache == "fp8" else kv_cache)


def quantised_kv(element: ElementName) -> Scheme:
    """How keys and values are stored as ``element``, whoever asks for it: the command line or a checkpoint."""
    return Scheme(element, "head", dynamic=True, scale_dtype="fp32")


def numerics_name(program: Program, policy: Policy) -> str:
    """``fast``, or ``fast-kv_int8`` where the KV cache's type is not the policy's own; part of a ``numerics_id``."""
    stored = {state.dtype for state in program.states} - {kv_scheme(policy, "auto")}
    kinds = sorted(dtype.element if isinstance(dtype, Scheme) else dtype for dtype in stored)
    return "-kv_".join((policy, *kinds))


def choose_numerics(program: Program, policy: Policy, kv_cache: KVCache = "auto") -> Program:
    """Insert quantise and cast ops in front of projections, set the dtype of KV states and attention's arithmetic.

    Inputs of weights with sorted columns are put into their order first.

    Consumers of one value that want the same rounding share one op, placed in front of the first of them.
    Raises ConfigError for an unknown policy or KV type or a program whose numerics are already chosen, UnsupportedError
    for activations that a checkpoint prescribes and nobody here can execute.
    """
    policy, kv_cache = known_policy(policy), known_kv_cache(kv_cache)
    if any(op.kind in ("quantise", "cast", *FUSED_KINDS) for op in program.ops):
        raise ConfigError(
            "the program already has rounding or fused ops; choose_numerics runs once, on a built program"
        )
    program = sort_inputs(program)
    weights = {weight.name: weight for weight in program.weights}

    def rounding(op: Op, source: Value) -> Conversion | None:
        if op.kind not in PROJECTIONS:
            return None
        target = _scheme_of_all([weights[name] for name in multiplied(op)], policy)
        if target == source.dtype:
            return None
        value = Value(rounded_name(source.name, target), source.shape, target)
        if isinstance(target, Scheme):
            weight = weights[op.weights[0]]
            if not target.dynamic:  # another scale for every linear
                value = replace(value, name=rounded_name(f"{source.name}.{weight.name}", target))
            return Conversion(value, "quantise", Quantise(target), static_parameters(weight, target))
        return Conversion(value, "cast", Cast())

    rounded = convert_inputs(program, rounding)
    chosen = kv_scheme(policy, kv_cache)
    stored = {
        state.name: state.dtype if kv_cache == "auto" and isinstance(state.dtype, Scheme) else chosen
        for state in rounded.states
    }
    states = tuple(replace(state, dtype=stored[state.name]) for state in rounded.states)
    ops = rounded.ops
    if policy == "fast":
        ops = tuple(_narrow(op) if op.kind == "attention" and stored[op.states[0]] != "fp32" else op for op in ops)
    return replace(rounded, states=states, ops=ops)


def _narrow(op: Op) -> Op:
    assert isinstance(op.attributes, Attention)
    return replace(op, attributes=replace(op.attributes, arithmetic="bf16"))
