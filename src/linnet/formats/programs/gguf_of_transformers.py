# SPDX-License-Identifier: Apache-2.0
"""What transformers reads of GGUF files: what is known of one version, tested with that version itself
(tests/golden/test_programs_gguf.py).

It makes a config of some of a file's keys and leaves the rest to its class, whose values are those of the model that
the class was written for. So the question is not whether it opens a file: it is whether what it leaves out happens to
have that value. What the file means is Linnet's own config of it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from linnet.formats.programs.described import AGAIN, GgufFacts, Model, Verdict

NAME = "transformers"
VERSION = "5.24"
_ARCHITECTURES = """
    bloom deci falcon gemma2 gemma3 gemma4 gpt-oss gpt2 lfm2 llama mamba minimax-m2 nemotron phi3 qwen2 qwen2moe qwen3
    qwen3moe stablelm starcoder2 t5 t5encoder
"""
ARCHITECTURES = frozenset(_ARCHITECTURES.split())
"""The values of ``general.architecture``."""
WITHOUT_EXPERTS = ("gpt-oss",)
"""Those of them whose experts' tensors it finds no names for."""
NOT_DECODED = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")
"""Types of tensors that it has no numbers for."""
Config = Mapping[str, Any]
Assumed = Any | Callable[[Config], Any]


def _gemma3_layers(config: Config) -> list[str]:
    kinds = (
        "full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(config["num_hidden_layers"])
    )
    return list(kinds)


def _head_size(config: Config) -> int:
    return int(config["hidden_size"]) // int(config["num_attention_heads"])


_ROPE: Mapping[str, Assumed] = {"rope_scaling": None, "partial_rotary_factor": None}
ASSUMED: Mapping[str, Mapping[str, Assumed]] = {
    "bloom": {"n_inner": lambda config: 4 * config["hidden_size"]},
    "falcon": {
        **_ROPE,
        "new_decoder_architecture": False,
        "num_kv_heads": 1,
        "ffn_hidden_size": lambda config: 4 * config["hidden_size"],
        "tie_word_embeddings": True,
    },
    "gemma2": {
        **_ROPE,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": {
        **_ROPE,
        "query_pre_attn_scalar": 256,
        "final_logit_softcapping": None,
        "rope_local_base_freq": 10000.0,
        "layer_types": _gemma3_layers,
    },
    "gpt2": {"max_position_embeddings": 1024, "n_inner": lambda config: 4 * config["hidden_size"]},
    "llama": {**_ROPE, "attention_bias": False, "mlp_bias": False, "num_experts": None, "sliding_window": None},
    "mamba": {},
    "phi3": {**_ROPE, "sliding_window": None},
    "qwen2": _ROPE,
    "qwen2moe": {**_ROPE, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
    "qwen3": {**_ROPE, "head_dim": 128, "attention_bias": False, "mlp_bias": False},
    "qwen3moe": {**_ROPE, "moe_intermediate_size": 768},
    "stablelm": {
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "qk_layernorm": False,
    },
    "starcoder2": {**_ROPE, "rope_theta": 10000.0, "sliding_window": None},
}
"""Architecture -> what it leaves out of a file and Linnet reads, by the config's names, and the value that it takes
instead; None: there is none."""
WITH_KEYS = ("llama",)
"""Architectures whose rows of query and key lie in pairs, which it puts back only if it finds head_count_kv."""
VECTORS: Mapping[str, str] = {"qwen2moe": "blk.0.ffn_gate_inp_shexp.weight"}
"""Architecture -> a tensor that converters wrote as a vector once, and now as a matrix of one row."""
PADDING = 32000
"""The id of padding in its class for Phi 3, of which a smaller vocabulary has no row."""


def reads_file(model: Model, file: GgufFacts) -> Verdict:
    """The verdict of a GGUF file; ``instead`` is AGAIN, or None where it reads the file; ``loads`` is None where Linnet
    could not say what the file means."""
    refused = _refused(model.architecture, file)
    if refused is not None:
        return Verdict(NAME, False, refused, AGAIN)
    if model.config is None or model.damaged or model.architecture not in ASSUMED:
        return Verdict(
            NAME, None, f"{model.architecture} is one of its architectures; whether it reads all is not checked"
        )
    wrong = _wrong(model.architecture, file, model.config)
    if wrong is not None:
        return Verdict(NAME, False, wrong, AGAIN)
    return Verdict(NAME, True, "with gguf installed it dequantises the file to 16 or 32 bits when it loads it")


def _refused(architecture: str, file: GgufFacts) -> str | None:
    """Why it does not open a file, or draws random weights for a part of it."""
    if file.parts > 1:
        return "it reads one file of a set, and draws random weights for what the others hold"
    if architecture not in ARCHITECTURES:
        return f"it reads no GGUF files of the architecture {architecture!r} (version {VERSION})"
    if architecture in WITHOUT_EXPERTS:
        return f"it does not find the experts of {architecture}'s files, and draws random weights in their place"
    found = [name for name in NOT_DECODED if name in file.types]
    return f"it has no numbers for the type {' or '.join(found)}" if found else None


def _wrong(architecture: str, file: GgufFacts, config: Config) -> str | None:
    """What it reads another way."""
    rows = config["vocab_size"]
    if file.vocabulary != rows:
        said = "says nothing of it" if file.vocabulary is None else f"says {file.vocabulary}"
        return f"it takes the vocabulary's size from the metadata, which {said}; the embedding has {rows} rows"
    if architecture in WITH_KEYS and f"{architecture}.attention.head_count_kv" not in file.keys:
        return "without attention.head_count_kv it leaves the rows of query and key in ggml's order"
    vector = VECTORS.get(architecture, "")
    if len(file.shapes.get(vector, ())) > 1:
        return f"it takes {vector} as a vector alone, which here is a matrix of one row"
    if architecture == "phi3" and config.get("pad_token_id") is None and rows <= PADDING:
        return f"without padding_token_id it takes {PADDING} for it, and the vocabulary has {rows}"
    for name, assumed in ASSUMED[architecture].items():
        value, instead = config.get(name), assumed(config) if callable(assumed) else assumed
        if not _same(value, instead):
            return f"it does not read {name} from a GGUF file: {_shown(value)} here, {_shown(instead)} there"
    return None


def _same(value: Any, other: Any) -> bool:
    """Whether two settings are one; numbers pass through fp32, and what is not said is not so."""
    if value is None and other is False:
        return True
    if isinstance(value, float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=1e-6)
    return bool(value == other)


def _shown(value: Any) -> str:
    """A setting in a sentence."""
    if isinstance(value, Mapping):
        return str(value.get("rope_type", "a table"))
    if isinstance(value, list):
        return "one order of layers" if value else "none"
    return "none" if value is None else str(value)
