# SPDX-License-Identifier: Apache-2.0
"""What vLLM reads of GGUF files: what is known of one version of its plugin, tested with that version itself
(tests/golden/test_programs_vllm_gguf.py).

The plugin takes the original's config, not the file's keys, and copies tensors into Hugging Face's model by names.
What converters changed in a tensor it leaves so (Gemma's norms apart): a file then opens, and computes something else.
"""

from linnet.formats.gguf.architectures import Architecture
from linnet.formats.gguf.architectures_read import READ
from linnet.formats.programs.described import GgufFacts, Model

PACKAGE, VERSION = "vllm-gguf-plugin", "0.0.5"
WITH = f"with {PACKAGE}, from version 0.24 on"
PLAIN_TYPES = ("F32", "F16", "BF16")
_TYPES = """
    Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_M IQ1_S IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_XS IQ4_NL
"""
TYPES = frozenset((*PLAIN_TYPES, *_TYPES.split()))
"""Types of tensors that it multiplies by."""
CALLED = {
    "cohere": "command-r",
    "gemma3_text": "gemma3",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}
"""Types of models that it knows to be called otherwise in GGUF files; others it looks for by their own names."""
WITHOUT_NAMES = ("gemma", "gemma2", "command-r", "cohere2", "bloom", "mamba2")
"""Architectures for some of whose tensors (a head that is tied, norms) it has no names."""
EXPERTS = ("olmoe",)
"""Architectures whose experts it finds in the one tensor that they are in transformers."""
PLAIN_EMBEDDINGS = ("qwen2", "qwen3", "gemma3", "falcon", "olmo2", "starcoder2")
"""Architectures whose embedding may be plain numbers."""
CODED_EMBEDDINGS = ("qwen2", "qwen3", "gemma3", "olmo2", "starcoder2", "phi3", "glm4", "exaone4", "stablelm", "olmoe")
"""And those whose embedding may be codes."""
FUSED = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"))
"""Tensors of a layer that are one in vLLM."""
ELSE = "and so computes something else"


def unread(model: Model, file: GgufFacts) -> str | None:
    """Why it does not read a file, or not as it is meant; None if it does. Of architectures in CHECKED only."""
    architecture = CHECKED[model.architecture]
    found = sorted(file.types - TYPES)
    if found:
        return f"{PACKAGE} has no kernel for the type {' or '.join(found)}"
    return _names(architecture, model) or _changes(architecture, model) or _layouts(architecture, model, file)


def _names(architecture: Architecture, model: Model) -> str | None:
    """What it does not find."""
    config = model.config or {}
    kind = str(config.get("model_type", architecture.model_type))
    if CALLED.get(kind, kind) != architecture.name:
        return f"{PACKAGE} looks for an architecture called {kind!r}, not {architecture.name!r}"
    if architecture.name in WITHOUT_NAMES or config.get("qk_layernorm"):
        return f"{PACKAGE} has no names for some tensors of {architecture.name}"
    if architecture.experts and architecture.name not in EXPERTS:
        return f"{PACKAGE} does not find the experts of {architecture.name}"
    return None


def _changes(architecture: Architecture, model: Model) -> str | None:
    """What converters change and it does not change back."""
    if architecture.paired_rows:
        return f"{PACKAGE} leaves rows of queries and keys in pairs, {ELSE}"
    if architecture.in_groups and (model.config or {}).get("num_kv_heads") != 1:
        return f"{PACKAGE} leaves rows of queries, keys and values apart, {ELSE}"
    if architecture.turned or any(change for _, change in architecture.parameters.values()):
        return f"{PACKAGE} leaves tensors of {architecture.name} in GGUF's arrangement, which vLLM's model has not"
    return None


def _layouts(architecture: Architecture, model: Model, file: GgufFacts) -> str | None:
    """What may be numbers, and what codes; and in how many files."""
    if file.parts > 1 and not (model.config or {}).get("tie_word_embeddings"):
        return f"{PACKAGE} does not find the head of a set of files, {ELSE}"
    embedding = file.kinds.get("token_embd.weight")
    coded = embedding is not None and embedding not in PLAIN_TYPES
    if architecture.name not in (CODED_EMBEDDINGS if coded else PLAIN_EMBEDDINGS):
        return f"its {architecture.name} takes no embedding stored as {embedding}"
    for parts in FUSED:
        kinds = [file.kinds.get(f"blk.0.{part}.weight") for part in parts]
        if len({kind in PLAIN_TYPES for kind in kinds if kind is not None}) > 1:
            return f"{PACKAGE} takes {', '.join(parts)} all as numbers or all as codes"
    return None


CHECKED = {name: architecture for name, architecture in READ.items() if architecture.causal}
"""The architectures of which this says anything."""
