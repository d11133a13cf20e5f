# SPDX-License-Identifier: Apache-2.0
"""What is said of vLLM and GGUF files, rule by rule; tests/golden/test_programs_vllm_gguf.py asks vLLM itself."""

from dataclasses import replace
from typing import Any

import pytest

from linnet.formats.programs import Model, Verdict
from linnet.formats.programs.described import AGAIN, GgufFacts
from linnet.formats.programs.of_vllm import vllm

LAYER = dict.fromkeys(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"), "Q4_K")
KINDS = {"token_embd.weight": "Q6_K", **{f"blk.0.{name}.weight": kind for name, kind in LAYER.items()}}
FILE = GgufFacts(types=frozenset(("F32", "Q4_K", "Q6_K")), kinds=KINDS)


def said(architecture: str, config: dict[str, Any] | None, **changes: Any) -> Verdict:
    damaged = changes.pop("damaged", False)
    file = replace(FILE, **changes)
    return vllm(Model("gguf", "gguf", architecture, {}, file=file, config=config, damaged=damaged))


def test_what_it_reads_it_reads_on_a_gpu_and_with_the_originals_config() -> None:
    verdict = said("qwen2", {"model_type": "qwen2"})
    assert verdict.loads
    assert "vllm-gguf-plugin" in verdict.why
    assert "config.json" in verdict.why
    assert "on a GPU only" in verdict.why
    assert verdict.instead is None


@pytest.mark.parametrize(
    ("architecture", "config", "changes", "why"),
    [
        ("qwen2", {}, {"types": frozenset(("F32", "TQ1_0"))}, "no kernel for the type TQ1_0"),
        ("llama", {"model_type": "mistral"}, {}, "an architecture called 'mistral', not 'llama'"),
        ("phi2", {"model_type": "phi"}, {}, "called 'phi', not 'phi2'"),
        ("gemma2", {"model_type": "gemma2"}, {}, "no names for some tensors"),
        ("stablelm", {"model_type": "stablelm", "qk_layernorm": True}, {}, "no names for some tensors"),
        ("qwen3moe", {"model_type": "qwen3_moe"}, {}, "does not find the experts"),
        ("llama", {"model_type": "llama"}, {}, "queries and keys in pairs, and so computes something else"),
        ("smollm3", {"model_type": "smollm3"}, {}, "queries and keys in pairs, and so computes something else"),
        ("falcon", {"model_type": "falcon", "num_kv_heads": 8}, {}, "apart, and so computes something else"),
        ("gpt2", {"model_type": "gpt2"}, {}, "in GGUF's arrangement"),
        ("qwen2", {"model_type": "qwen2"}, {"parts": 2}, "the head of a set of files"),
        ("phi3", {"model_type": "phi3"}, {"kinds": KINDS | {"token_embd.weight": "F16"}}, "embedding stored as F16"),
        ("falcon", {"model_type": "falcon", "num_kv_heads": 1}, {}, "embedding stored as Q6_K"),
        ("qwen2", {"model_type": "qwen2"}, {"kinds": KINDS | {"blk.0.attn_v.weight": "F16"}}, "all as numbers or all"),
    ],
)
def test_what_it_does_not_read(architecture: str, config: dict[str, Any], changes: Any, why: str) -> None:
    verdict = said(architecture, config, **changes)
    assert verdict.loads is False
    assert why in verdict.why
    assert verdict.instead == AGAIN


def test_a_tied_head_needs_no_file_of_its_own() -> None:
    assert said("qwen2", {"model_type": "qwen2", "tie_word_embeddings": True}, parts=2).loads


@pytest.mark.parametrize(
    ("architecture", "config", "damaged"), [("nobodys", {}, False), ("qwen2", None, False), ("qwen2", {}, True)]
)
def test_what_was_not_checked_is_not_said(architecture: str, config: dict[str, Any] | None, damaged: bool) -> None:
    verdict = said(architecture, config, damaged=damaged)
    assert verdict.loads is None
    assert "not checked" in verdict.why
