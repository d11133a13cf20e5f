# SPDX-License-Identifier: Apache-2.0
"""The first half of a block that attends: ops from its norm to what is added to the stream."""

from typing import TYPE_CHECKING

from linnet.models.spec import AttentionSpec, Projection
from linnet.program import attributes as a
from linnet.program.program import Op, PagedState

if TYPE_CHECKING:
    from linnet.models.build import Builder


def attention(builder: "Builder", spec: AttentionSpec, layer: int, x: str, hidden: int) -> str:
    """Norm, q/k/v, positions, cache, attention, output projection; the result is not yet added to the stream."""
    here = f"layers.{layer}.attention"
    kv_type = "fp32" if builder.kv_types is None else builder.kv_types[layer]
    sizes = spec.kv_heads, spec.head_size, spec.value_size
    state = PagedState(f"layers.{layer}.kv", builder.groups[spec.window], *sizes, kv_type)
    builder.states.append(state)
    normed = builder.before(f"{here}.norm", x, spec.norm, hidden, layer)
    query, key, value, shared = _projected(builder, here, spec, layer, normed)
    query, key = _positioned(builder, here, spec, layer, query, key, shared)
    written = (key, value, "kv_slots")
    builder.ops.append(Op("kv_write", f"{here}.kv_write", written, (), a.KVWrite(), states=(state.name,)))
    attributes = a.Attention(
        spec.heads,
        spec.kv_heads,
        spec.head_size,
        spec.scale,
        spec.window,
        spec.softcap,
        spec.alibi_slopes,
        full=spec.full,
    )
    inputs = (query, "positions", "query_start", "context_lengths", "block_tables")
    width = spec.heads * spec.value_size
    sinks: tuple[str, ...] = ()
    if spec.sinks is not None:
        sinks = (builder.weight(f"{here}.sinks", spec.sinks.format(layer=layer), (spec.heads,)),)
    context = builder.op("attention", f"{here}.context", inputs, attributes, width, sinks, (state.name,))
    if spec.output_norm is not None:
        context = builder.norm(f"{here}.output_norm", context, spec.output_norm, width, layer)
    output = builder.linear(f"{here}.output", context, spec.output, layer)
    return builder.after(here, output, spec.post_norm, spec.multiplier, hidden, layer)


def _projected(
    builder: "Builder", here: str, spec: AttentionSpec, layer: int, normed: str
) -> tuple[str, str, str, str | None]:
    """Queries, keys, values and what all keys share. Those that read something narrower come behind what leads to it;
    all that read the stream are linears of one value."""
    narrowed = {"query": spec.query_narrow, "key": spec.kv_narrow, "value": spec.kv_narrow}
    own = {"query": spec.query, "key": spec.key, "value": spec.value}
    wanted: dict[str, Projection] = {name: linear for name, linear in own.items() if narrowed[name] is None}
    if spec.query_narrow is not None:
        wanted["query_narrow"] = spec.query_narrow.down
    if spec.kv_narrow is not None:
        wanted["kv_narrow"] = spec.kv_narrow.down
    if spec.shared_key is not None:
        wanted["shared_key"] = spec.shared_key
    made = _linears(builder, here, layer, normed, wanted)
    for name, narrow in (("query_narrow", spec.query_narrow), ("kv_narrow", spec.kv_narrow)):
        if narrow is not None:
            read = builder.norm(f"{here}.{name}.norm", made[name], narrow.norm, narrow.down.outputs, layer)
            behind = {each: linear for each, linear in own.items() if narrowed[each] is narrow}
            made |= _linears(builder, here, layer, read, behind)
    return made["query"], made["key"], made["value"], made.get("shared_key")


def _linears(builder: "Builder", here: str, layer: int, x: str, wanted: dict[str, Projection]) -> dict[str, str]:
    made = builder.linears(x, layer, {f"{here}.{name}": linear for name, linear in wanted.items()})
    return dict(zip(wanted, made, strict=True))


def _positioned(
    builder: "Builder", here: str, spec: AttentionSpec, layer: int, query: str, key: str, shared: str | None
) -> tuple[str, str]:
    """Queries and keys as attention multiplies them: normalised, turned, rotated. What all keys share turns by itself
    and then stands first in each of them."""
    size, queries, keys = spec.head_size, spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    run = None if spec.norm_whole else size
    if spec.query_norm is not None:
        query = builder.norm(f"{here}.query_norm", query, spec.query_norm, queries, layer, run)
    if spec.key_norm is not None:
        key = builder.norm(f"{here}.key_norm", key, spec.key_norm, keys, layer, run)
    if spec.rope is not None:
        query = builder.rope(f"{here}.query_rope", query, spec.rope, size, queries)
    if spec.shared_key is not None and shared is not None:
        width = spec.shared_key.outputs
        if spec.rope is not None:
            shared = builder.rope(f"{here}.shared_key_rope", shared, spec.rope, width, width)
        join = a.JoinHeads(spec.kv_heads, shared=True)
        key = builder.op("join_heads", f"{here}.key_joined", (shared, key), join, keys)
    elif spec.rope is not None:
        key = builder.rope(f"{here}.key_rope", key, spec.rope, size, keys)
    rotated = builder.rotations.get(spec.module(layer))
    query = builder.rotated(f"{here}.query_rotated", query, rotated, queries)
    return query, builder.rotated(f"{here}.key_rotated", key, rotated, keys)
