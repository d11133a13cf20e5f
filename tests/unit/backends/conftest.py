# SPDX-License-Identifier: Apache-2.0
"""Random tiny models of several families and storages, for tests of the cpu backend against its own laws."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from linnet.models.build import build_program
from linnet.models.families import arch_spec
from linnet.models.inventory import linear_shapes
from linnet.program.program import Program, Weight, WeightRef
from linnet.schemes import gguf_blocks
from linnet.schemes.layouts.gguf import BLOCKS, GGUF_LAYOUTS
from linnet.schemes.packed_weight import PackedWeight, quantize_weight
from linnet.schemes.presets import parse_scheme
from linnet.schemes.scheme import LinearScheme
from linnet.schemes.terms import CALM, CHOSEN, Terms, calm_order, one_hot

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ops"))  # the op cases

DENSE = {"fp32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16), "fp16": np.dtype(np.float16)}

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 101,
    "max_position_embeddings": 4096,
}
GATED: dict[str, Any] = {**COMMON, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "hidden_act": "silu"}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**GATED, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 10000.0},
    "window": {**GATED, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 37},
    "qwen3": {**GATED, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 24},
    "gemma2": {
        **GATED,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 300,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 10.0,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "latent": {
        **COMMON,
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "first_k_dense_replace": 2,
        "hidden_act": "silu",
        "kv_lora_rank": 32,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "q_lora_rank": 64,
        "qk_nope_head_dim": 20,
        "qk_rope_head_dim": 12,
        "v_head_dim": 24,
    },
    "neox": {
        **COMMON,
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "rotary_pct": 0.25,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
    },
    "bloom": {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 101,
        "layer_norm_epsilon": 1e-5,
    },
}


GGUF = "gguf:"


def _schemes(storage: str) -> tuple[LinearScheme | None, LinearScheme | None]:
    """Of linears, and of the embedding and the head. ``gguf:Q4_K`` is all of them in such blocks."""
    if storage in DENSE:
        return None, None
    if storage.startswith(GGUF):
        scheme = GGUF_LAYOUTS[storage.removeprefix(GGUF)].scheme
        return scheme, scheme
    return parse_scheme(storage).linear, parse_scheme(storage).head


def _packed(values: np.ndarray, scheme: LinearScheme) -> PackedWeight:
    for layout in GGUF_LAYOUTS.values():
        if layout.scheme == scheme:
            blocks = gguf_blocks.encode(layout.kind, values).reshape(len(values), -1)
            return PackedWeight(scheme, (values.shape[0], values.shape[1]), layout, {BLOCKS: blocks})
    return quantize_weight(values, scheme)


class RandomSource:
    """A Source whose weights are made on demand from a seed; ``terms``: of every linear of its layers; ``rotated``: so
    is what every one of them reads, and keys and queries."""

    def __init__(
        self,
        family: str,
        storage: str,
        seed: int,
        overrides: dict[str, Any] | None = None,
        terms: Terms | None = None,
        rotated: bool = False,
    ) -> None:
        scheme, head = _schemes(storage)
        spec = arch_spec({**CONFIGS[family], **(overrides or {})})
        widths = {module: columns for module, (_, columns) in linear_shapes(spec).items()}
        widths |= {spec.attention_module(layer): block.mixer.head_size for layer, block in enumerate(spec.layers)}
        rotations = {module: width & -width for module, width in widths.items()} if rotated else {}
        of_all = {} if terms is None else dict.fromkeys(linear_shapes(spec), terms)
        self._terms = of_all
        norms_and_biases = ("norm", "layernorm", "ln_f", "bias", "word_embeddings", "embed", "low_rank", "outliers")

        def stored_as(name: str) -> str | LinearScheme:
            if scheme is None:
                return storage
            if head is not None and name.endswith(("embed_tokens.weight", "lm_head.weight")):
                return head
            return "bf16" if any(part in name for part in norms_and_biases) else scheme

        self.program: Program = build_program(spec, stored_as, terms=of_all, rotations=rotations)
        self._declared: dict[WeightRef, Weight] = {weight.ref: weight for weight in self.program.weights}
        self._made: dict[WeightRef, np.ndarray | PackedWeight] = {}
        self._random = np.random.default_rng(seed)

    def weight(self, ref: WeightRef) -> "np.ndarray | PackedWeight":
        for leaf, made in ((CHOSEN, one_hot), (CALM, calm_order)):
            if ref.checkpoint_name.endswith(leaf):
                module = ref.checkpoint_name.removesuffix(f".{leaf}")
                return made(self._terms[module].outliers, self._declared[ref].shape[-1])
        if ref not in self._made:
            weight = self._declared[ref]
            spread = 1.0 if len(weight.shape) == 1 else 1.0 / np.sqrt(weight.shape[-1])
            values = self._random.standard_normal(weight.shape, np.float32) * np.float32(spread)
            terms = self._terms.get(ref.checkpoint_name.removesuffix(".weight"))
            if terms is not None:
                values[:, list(terms.outliers)] = 0
            if isinstance(weight.dtype, LinearScheme):
                self._made[ref] = _packed(values, weight.dtype)
            else:
                self._made[ref] = values.astype(DENSE[weight.dtype])
        return self._made[ref]


@pytest.fixture
def random_model() -> Callable[..., RandomSource]:
    """``random_model(family, storage, seed, overrides)``: storage is a dense type or a scheme preset."""
    return RandomSource
