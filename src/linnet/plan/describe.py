# SPDX-License-Identifier: Apache-2.0
"""describe: the facts `linnet inspect` prints, from headers and the config alone. Plain values, ready for JSON."""

from collections import Counter
from typing import Any

from linnet.backends.interface import Backend, Policy
from linnet.backends.select import choose_backend
from linnet.errors import ConfigError, LinnetError
from linnet.models.load import ModelSource, stored_type
from linnet.models.spec import StateSpaceSpec
from linnet.plan.ledger import predict
from linnet.plan.needs import least_step_tokens, step_needs
from linnet.program.choose_numerics import choose_numerics
from linnet.schemes.scheme import LinearScheme, Scheme

BLOCK_SIZE = 16
TOKEN_BUDGET = 512
MOST_AT_ONCE = 1 << 20
"""Sequences, and tokens of one step, beyond which a prediction would be about no machine there is."""


def scheme_text(dtype: str | LinearScheme) -> str:
    """``bf16``; ``bf16 2:4``; ``int4 group 128``; ``int8 channel, input int8 token dynamic``."""
    if not isinstance(dtype, LinearScheme):
        return dtype

    def one(scheme: Scheme) -> str:
        words: list[str] = [scheme.element] if scheme.numbers.plain else [scheme.element, scheme.granularity]
        words += [str(scheme.group_size)] if scheme.group_size else []
        words += ["x".join(map(str, scheme.block))] if scheme.block else []
        words += [] if scheme.symmetric else ["asymmetric"]
        words += ["narrow"] if scheme.narrow_range else []
        words += [] if scheme.sparsity is None else [scheme.sparsity]
        return " ".join(words + (["dynamic"] if scheme.dynamic else []))

    return one(dtype.weight) + ("" if dtype.input is None else f", input {one(dtype.input)}")


def _native_backend() -> Backend | None:
    """Who will store the KV; None where its kernels are not built."""
    try:
        return choose_backend("cpu")
    except LinnetError:
        return None


def describe(
    source: ModelSource,
    policy: Policy = "fast",
    context: int | None = None,
    sequences: int = 1,
    token_budget: int = TOKEN_BUDGET,
) -> dict[str, Any]:
    """Family, sizes, schemes, bytes and predicted memory.

    ``context`` (tokens per sequence, the model's own by default) and ``sequences`` size the KV pool; ``token_budget``
    the activations. Keys ending in ``_bytes`` hold bytes. ConfigError for a context the model cannot reach.
    """
    longest = source.spec.longest_positions
    if context is not None and not 1 <= context <= longest:
        raise ConfigError(
            f"context is {context}; accepted is 1 to {longest} tokens for this model", settings=["context"]
        )
    if context is not None:
        source = source.for_context(context)
    spec = source.spec
    for name, value in (("sequences", sequences), ("token_budget", token_budget)):
        if not 1 <= value <= MOST_AT_ONCE:
            raise ConfigError(f"{name} is {value}; accepted is 1 to {MOST_AT_ONCE}", settings=[name])
    tokens = context or spec.max_positions
    program = choose_numerics(source.program, policy, "auto")
    needs = step_needs(
        program,
        output_width=spec.output_width,
        max_tokens=max(token_budget, least_step_tokens(program, tokens)),
        max_sequences=sequences,
        block_size=BLOCK_SIZE,
        positions=tokens,
    )
    ledger = predict(source, needs.limits, policy, _native_backend(), chosen=program, keep=needs.kept)
    mixers = list(spec.attentions.values())
    heads = dict.fromkeys(f"{mixer.heads} (KV {mixer.kv_heads}) of size {mixer.head_size}" for mixer in mixers)
    schemes = Counter(
        scheme_text(stored_type(source.checkpoint, linear.tensor))
        for linear in source.linears()
        if linear.kind == "linear"
    )
    head = "none: it makes embeddings"
    if spec.head is not None:
        head = scheme_text(stored_type(source.checkpoint, f"{spec.embedding if spec.tied_head else spec.head}.weight"))
    windows = sorted({mixer.window for mixer in mixers if mixer.window is not None})
    facts: dict[str, Any] = {
        "family": spec.family,
        "parameters": source.parameters,
        "layers": len(spec.layers),
        "hidden_size": spec.hidden_size,
        **({"heads": ", ".join(heads)} if heads else {}),
        "vocabulary": spec.vocabulary_size,
        "context_tokens": spec.max_positions,
    }
    if longest > spec.max_positions:
        facts["longest_context_tokens"] = longest
    recurrent = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, StateSpaceSpec)]
    if recurrent:
        sizes = dict.fromkeys(f"{mixer.x.outputs} channels of {mixer.states} states" for mixer in recurrent)
        facts["state_space"] = f"{', '.join(sizes)} in {len(recurrent)} of {len(spec.layers)} layers"
    if windows:
        sliding = sum(mixer.window is not None for mixer in mixers)
        facts["sliding_window"] = f"{', '.join(map(str, windows))} tokens in {sliding} of {len(spec.layers)} layers"
    facts["linears"] = dict(sorted(schemes.items()))
    facts["embedding"] = scheme_text(stored_type(source.checkpoint, f"{spec.embedding}.weight"))
    facts["head"] = f"{head}, tied to the embedding" if spec.tied_head else head
    facts["checkpoint_bytes"] = source.checkpoint.nbytes
    facts["predicted_memory"] = {
        "policy": policy,
        "context_tokens": tokens,
        "sequences": sequences,
        "weight_bytes": ledger.weight_bytes,
        "arena_bytes": ledger.arena_bytes,
        "kv_per_token_bytes": ledger.kv_bytes_per_token,
        "kv_bytes": ledger.kv_bytes,
        **({"state_bytes": ledger.slot_bytes} if recurrent else {}),
        "total_bytes": ledger.total_bytes,
        "process_bytes": ledger.process_bytes,
        "resident_bytes": ledger.resident_bytes,
        "served_bytes": ledger.engine_footprint(ledger.kv_bytes).total_bytes + ledger.server_bytes,
    }
    if source.warnings:
        facts["warnings"] = "; ".join(source.warnings)
    return facts
