# SPDX-License-Identifier: Apache-2.0
"""Every family's logits against transformers: policy exact, fp32, prefill and cached decode, on every backend.

Prompts of mixed lengths share the batch; contexts are longer than the sliding windows; blocks are scattered.
LINNET_TIERS names further tiers of the CPU backend to ask, with spaces between them (a release: each that runs here).
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="golden logits need PyTorch")
pytest.importorskip("transformers", reason="golden logits need transformers")

import stepping
from tiny_models import TINY_MODELS, VOCABULARY, TinyModel, reference_logits, stored_buffers, write

from linnet.backends.interface import Backend, Limits
from linnet.backends.select import choose_backend
from linnet.backends.settings import CpuSettings
from linnet.models.build import build_program
from linnet.models.load import ModelSource, load_model, stored_type
from linnet.models.rope import plain_rope
from linnet.models.spec import ArchSpec, AttentionSpec, ExpertsSpec
from linnet.program.check import check
from linnet.program.hidden import reads_whole_sequences

TOLERANCE = 1e-4
VISIBLE = 10 * TOLERANCE
SEED = 7
LIMITS = Limits(
    max_tokens=128,
    max_sequences=8,
    max_outputs=128,
    block_size=stepping.BLOCK_SIZE,
    max_blocks_per_sequence=stepping.BLOCKS_PER_SEQUENCE,
)
DECODE = (7, 1, 1, 1, 1, 1)
"""Prefill of 7 tokens, then one at a time, then the rest as a chunk."""

BACKENDS = ("reference", "cpu", "portable", *os.environ.get("LINNET_TIERS", "").split())
MODELS = {tiny.name: tiny for tiny in TINY_MODELS}


def backend_named(name: str) -> Backend:
    """``cpu`` is the best tier of this machine, ``portable`` the tier every machine has."""
    if name == "reference":
        return choose_backend(name)
    pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")
    return choose_backend(CpuSettings(isa=None if name == "cpu" else name))


@dataclass(frozen=True)
class Golden:
    """A checkpoint on disk and what transformers makes of it."""

    path: Path
    parameters: int
    prompts: list[list[int]]
    expected: list[Any]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TinyModel], Golden]:
    """Every checkpoint is written and run by transformers once."""

    @cache
    def make(tiny: TinyModel) -> Golden:
        path = tmp_path_factory.mktemp(tiny.name)
        model = write(tiny, path, SEED)
        generator = random.Random(SEED)
        prompts = [[generator.randrange(VOCABULARY) for _ in range(length)] for length in tiny.lengths]
        parameters = sum(each.numel() for each in (*model.parameters(), *stored_buffers(model)))
        return Golden(path, parameters, prompts, reference_logits(model, prompts, tiny))

    return make


def worst_difference(found: list[np.ndarray], expected: list[Any]) -> float:
    return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_logits_equal_transformers(tiny: TinyModel, backend: str, golden: Any, record_property: Any) -> None:
    chosen = backend_named(backend)
    made = golden(tiny)
    source = load_model(made.path, tiny.max_context)
    check(source.program)
    assert source.parameters == made.parameters
    executable = chosen.prepare(source, "exact", LIMITS)
    largest = max(float(logits.abs().max()) for logits in made.expected)
    whole = reads_whole_sequences(source.program)  # cannot be decoded
    for mode, chunks in (("prefill", None), *([] if whole else [("decode", DECODE)])):
        worst = worst_difference(stepping.run(executable, made.prompts, chunks, SEED), made.expected)
        record_property(f"{mode}_max_abs_difference", worst)
        print(f"{tiny.name} {backend} {mode}: max abs difference {worst:.1e}, logits up to {largest:.1f}, seed {SEED}")
        assert worst <= TOLERANCE


def _attention(**changes: Any) -> Any:
    return _mixers(lambda mixer: replace(mixer, **changes))


def _mixers(change: Callable[[AttentionSpec], AttentionSpec]) -> Any:
    def wrong(spec: ArchSpec) -> ArchSpec:
        return replace(spec, layers=tuple(replace(layer, mixer=change(layer.mixer)) for layer in spec.layers))

    return wrong


def _mlp(**changes: Any) -> Any:
    def wrong(spec: ArchSpec) -> ArchSpec:
        layers = (replace(layer, feed_forward=replace(layer.feed_forward, **changes)) for layer in spec.layers)
        return replace(spec, layers=tuple(layers))

    return wrong


def _experts(**changes: Any) -> Any:
    """Of the layers that have any."""

    def wrong(spec: ArchSpec) -> ArchSpec:
        halves = [layer.feed_forward for layer in spec.layers]
        changed = [replace(half, **changes) if isinstance(half, ExpertsSpec) else half for half in halves]
        layers = zip(spec.layers, changed, strict=True)
        return replace(spec, layers=tuple(replace(layer, feed_forward=half) for layer, half in layers))

    return wrong


def _unnormalised(mixer: AttentionSpec) -> AttentionSpec:
    """A norm that is none: of so large an epsilon that it only scales."""
    assert mixer.kv_narrow is not None
    norm = replace(mixer.kv_narrow.norm, epsilon=1.0)
    return replace(mixer, kv_narrow=replace(mixer.kv_narrow, norm=norm))


def _no_offset(spec: ArchSpec) -> ArchSpec:
    """One norm of many: the first of every block."""
    return _mixers(lambda mixer: replace(mixer, norm=replace(mixer.norm, offset=0.0)))(spec)


def _wider(mixer: AttentionSpec) -> AttentionSpec:
    return replace(mixer, window=None if mixer.window is None else mixer.window + 1)


def _rope(**changes: Any) -> Any:
    def wrong(mixer: AttentionSpec) -> AttentionSpec:
        assert mixer.rope is not None
        return replace(mixer, rope=replace(mixer.rope, **changes))

    return _mixers(wrong)


def _sequential(spec: ArchSpec) -> ArchSpec:
    return replace(spec, layers=tuple(replace(layer, parallel_residual=False) for layer in spec.layers))


def _one_rope(spec: ArchSpec) -> ArchSpec:
    return _mixers(lambda mixer: replace(mixer, rope=spec.layers[0].mixer.rope))(spec)


def _one_on(spec: ArchSpec) -> ArchSpec:
    assert spec.positions is not None
    return replace(spec, positions=replace(spec.positions, first=1))


def _steeper(spec: ArchSpec) -> ArchSpec:
    def wrong(mixer: AttentionSpec) -> AttentionSpec:
        assert mixer.alibi_slopes is not None
        return replace(mixer, alibi_slopes=tuple(slope / mixer.scale for slope in mixer.alibi_slopes))

    return _mixers(wrong)(spec)


def _whole_rope(spec: ArchSpec) -> ArchSpec:
    return _mixers(lambda mixer: replace(mixer, rope=plain_rope(mixer.head_size, "half")))(spec)


_windows = _mixers(_wider)
_swapped = _mixers(lambda mixer: replace(mixer, key=mixer.value, value=mixer.key))


WRONG: tuple[tuple[str, str, Any], ...] = (
    ("mistral", "window off by one", _windows),
    ("qwen2-window", "window off by one", _windows),
    ("gemma-2", "window off by one", _windows),
    ("gemma-2", "no attention softcap", _attention(softcap=None)),
    ("gemma-2", "no logits softcap", lambda spec: replace(spec, logits_softcap=None)),
    ("gemma-2", "gain without one", _no_offset),
    ("gemma-2", "no embedding scale", lambda spec: replace(spec, embedding_scale=None)),
    ("gemma-2", "usual attention scale", _attention(scale=16**-0.5)),
    ("gemma-3", "window off by one", _windows),
    ("gemma-3", "no head norm", _attention(query_norm=None, key_norm=None)),
    ("gemma-3", "no embedding scale", lambda spec: replace(spec, embedding_scale=None)),
    ("gemma-3", "usual attention scale", _attention(scale=16**-0.5)),
    ("gemma-3-ropes", "one rope for all layers", _one_rope),
    ("llama-3-tied", "interleaved rope", _rope(style="interleaved")),
    ("llama-yarn", "no attention factor", _rope(attention_factor=1.0)),
    ("phi-3-long-rope-long", "no attention factor", _rope(attention_factor=1.0)),
    ("phi-3", "key and value swapped", _swapped),
    ("qwen3", "no head norm", _attention(query_norm=None, key_norm=None)),
    ("gpt-neox", "sequential residual", _sequential),
    ("gpt-neox", "gelu by tanh", _mlp(activation="gelu_tanh")),
    ("bloom", "gelu by erf", _mlp(activation="gelu")),
    ("bloom", "no alibi", _attention(alibi_slopes=None)),
    ("bloom", "no embedding norm", lambda spec: replace(spec, embedding_norm=None)),
    ("bloom", "key and value swapped", _swapped),
    ("gpt-2", "no positions", lambda spec: replace(spec, positions=None)),
    ("gpt-2", "positions one on", _one_on),
    ("gpt-j", "halves of a head turn", _rope(style="half")),
    ("gpt-j", "sequential residual", _sequential),
    ("falcon-rw", "slopes that are not scaled", _steeper),
    ("falcon-40b", "key and value swapped", _swapped),
    ("olmo-2", "no norm of queries", _attention(query_norm=None)),
    ("granite", "no residual multiplier", _mixers(lambda mixer: replace(mixer, multiplier=None))),
    ("granite", "no logits multiplier", lambda spec: replace(spec, logits_multiplier=None)),
    ("cohere-2", "a rope in every layer", _one_rope),
    ("smollm-3", "a rope in every layer", _one_rope),
    ("starcoder-2", "window off by one", _windows),
    ("stablelm", "whole heads turn", _whole_rope),
    ("opt-350m", "no norm behind the sum", _mixers(lambda mixer: replace(mixer, stream_norm=None))),
    ("opt", "positions one before", _one_on),
    ("mixtral", "weights that do not sum to one", _mlp(normalise=False)),
    ("qwen3-moe", "one expert fewer", _mlp(chosen=2)),
    ("olmoe", "experts twice as loud", _mlp(factor=2.0)),
    ("deepseek-v2-lite", "halves of a head turn", _rope(style="half")),
    ("deepseek-v2-lite", "scores that are not warmed", _attention(scale=18**-0.5)),
    ("deepseek-v2-lite", "no norm of what is narrow", _mixers(_unnormalised)),
    ("deepseek-v2", "groups that rank by two", _experts(group_best=2)),
    ("deepseek-v2", "experts of any group", _experts(groups=1, groups_chosen=1)),
    ("deepseek-v3", "no correction", _experts(correction=None)),
    ("deepseek-v3", "groups that rank by one", _experts(group_best=1)),
    ("stablelm-12b", "no norm of queries", _attention(query_norm=None)),
    ("exaone-4", "a rope in every layer", _one_rope),
    ("bitnet", "no norm before the output", _attention(output_norm=None)),
    ("bitnet", "no norm before the last linear", _mlp(inner_norm=None)),
    ("baichuan-13b", "no alibi", _attention(alibi_slopes=None)),
    ("gpt-oss", "no sinks", _attention(sinks=None)),
    ("gpt-oss", "window off by one", _windows),
    ("gpt-oss", "nothing held within a limit", _mlp(limit=None)),
    ("gpt-oss", "up without its offset", _mlp(up_offset=0.0)),
    ("bert", "tokens that see no others behind them", _attention(full=False)),
    ("bert", "no kind of tokens", lambda spec: replace(spec, token_types=None)),
    ("xlm-r", "positions one before", _one_on),
)


@pytest.mark.parametrize(("name", "mistake", "wrong"), WRONG, ids=[f"{name}: {mistake}" for name, mistake, _ in WRONG])
def test_a_wrong_spec_cannot_hide(name: str, mistake: str, wrong: Any, golden: Any) -> None:
    """The comparison above is sharp: each planted mistake moves the logits ten times past its tolerance."""
    tiny = MODELS[name]
    made = golden(tiny)
    source = load_model(made.path, tiny.max_context)
    spec = wrong(source.spec)
    program = build_program(spec, lambda tensor: stored_type(source.checkpoint, tensor))
    executable = choose_backend("reference").prepare(ModelSource(spec, program, source.checkpoint), "exact", LIMITS)
    worst = worst_difference(stepping.run(executable, made.prompts, None, SEED), made.expected)
    print(f"{name}, {mistake}: {worst:.2e}")
    assert worst > VISIBLE
