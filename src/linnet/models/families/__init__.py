# SPDX-License-Identifier: Apache-2.0
"""config.json -> ArchSpec. The only folder that knows model families by name; everything after it reads the spec.

A family is one function from its config to an ArchSpec, in the module of its kin. Fields are read through
``ConfigReader``: what is read is understood, and anything left that could change the mathematics is refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from linnet.errors import UnsupportedError
from linnet.models.config import ConfigReader
from linnet.models.families import (
    encoders,
    experts,
    gated,
    gated_layer_norms,
    gemma,
    latent,
    learned,
    state_space,
    ungated,
)
from linnet.models.spec import ArchSpec

FAMILIES: dict[str, Callable[[ConfigReader, int | None], ArchSpec]] = {
    "LlamaForCausalLM": gated.llama,
    "MistralForCausalLM": gated.mistral,
    "Qwen2ForCausalLM": gated.qwen2,
    "Qwen3ForCausalLM": gated.qwen3,
    "Gemma2ForCausalLM": gemma.gemma2,
    "Gemma3ForCausalLM": gemma.gemma3,
    "Gemma3ForConditionalGeneration": gemma.gemma3_pair,
    "Phi3ForCausalLM": gated.phi3,
    "GPTNeoXForCausalLM": ungated.gpt_neox,
    "BloomForCausalLM": ungated.bloom,
    "GPT2LMHeadModel": learned.gpt2,
    "GPTJForCausalLM": ungated.gptj,
    "FalconForCausalLM": ungated.falcon,
    "Olmo2ForCausalLM": gated.olmo2,
    "GemmaForCausalLM": gemma.gemma,
    "GPTBigCodeForCausalLM": learned.gpt_bigcode,
    "Starcoder2ForCausalLM": ungated.starcoder2,
    "PhiForCausalLM": ungated.phi,
    "StableLmForCausalLM": gated_layer_norms.stablelm,
    "GraniteForCausalLM": gated.granite,
    "CohereForCausalLM": gated_layer_norms.cohere,
    "Cohere2ForCausalLM": gated_layer_norms.cohere2,
    "SmolLM3ForCausalLM": gated.smollm3,
    "GlmForCausalLM": gated.glm,
    "Glm4ForCausalLM": gated.glm4,
    "ChatGLMModel": gated.chatglm,
    "OPTForCausalLM": learned.opt,
    "InternLM2ForCausalLM": gated.internlm2,
    "BaiChuanForCausalLM": gated.baichuan,
    "BaichuanForCausalLM": gated.baichuan_alibi,
    "Exaone4ForCausalLM": gated.exaone4,
    "BitNetForCausalLM": gated.bitnet,
    "MixtralForCausalLM": experts.mixtral,
    "Qwen2MoeForCausalLM": experts.qwen2_moe,
    "Qwen3MoeForCausalLM": experts.qwen3_moe,
    "OlmoeForCausalLM": experts.olmoe,
    "MambaForCausalLM": state_space.mamba,
    "Mamba2ForCausalLM": state_space.mamba2,
    "GraniteMoeHybridForCausalLM": state_space.granite_hybrid,
    "GptOssForCausalLM": experts.gpt_oss,
    "DeepseekV2ForCausalLM": latent.deepseek_v2,
    "DeepseekV3ForCausalLM": latent.deepseek_v3,
    "BertModel": encoders.bert,
    "RobertaModel": encoders.roberta,
}

ALIASES = {
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "RWForCausalLM": "FalconForCausalLM",
    "ChatGLMForConditionalGeneration": "ChatGLMModel",
    "StableLMEpochForCausalLM": "StableLmForCausalLM",
    "XLMRobertaModel": "RobertaModel",
    "BitnetForCausalLM": "BitNetForCausalLM",
}

BARE = {
    "LlamaModel": "LlamaForCausalLM",
    "MistralModel": "MistralForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
}
"""Decoders without their head, which tell hidden states: embedding models made of language models."""

MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "phi3": "Phi3ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "bloom": "BloomForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gptj": "GPTJForCausalLM",
    "falcon": "FalconForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gpt_bigcode": "GPTBigCodeForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "phi": "PhiForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "granite": "GraniteForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "chatglm": "ChatGLMModel",
    "opt": "OPTForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "bitnet": "BitNetForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "mamba": "MambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "RobertaModel",
}
"""For configs without ``architectures``."""


def supported_architectures() -> tuple[str, ...]:
    """Names accepted in a config's ``architectures``."""
    return (*FAMILIES, *BARE)


def architecture(config: Mapping[str, Any]) -> str:
    """The architecture a config names. Raises UnsupportedError listing the supported ones."""
    listed = config.get("architectures")
    if not listed:
        named = MODEL_TYPES.get(str(config.get("model_type")), f"model_type {config.get('model_type')!r}")
    elif isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], str):
        named = ALIASES.get(listed[0], listed[0])
    else:
        named = repr(listed)
    if named not in FAMILIES and named not in BARE:
        raise UnsupportedError(f"architecture {named} is not supported; supported are:", supported_architectures())
    return named


def read_spec(config: Mapping[str, Any], max_context: int | None = None) -> tuple[ArchSpec, tuple[str, ...]]:
    """The ArchSpec of a parsed config.json, and warnings about what of it is passed over.

    ``max_context`` (tokens) only matters where rotary frequencies depend on it, see ``rope.read_rope``. Raises
    UnsupportedError for an architecture, option or field that nobody here understands, CheckpointError for a value
    that cannot be true, ConfigError for a context beyond the model's positions.
    """
    reader = ConfigReader(config)
    named = architecture(config)
    spec = FAMILIES[BARE.get(named, named)](reader, max_context)
    if named in BARE:
        spec = replace(spec, head=None, tied_head=False)
    reader.finish()
    return spec, tuple(reader.warnings)


def arch_spec(config: Mapping[str, Any], max_context: int | None = None) -> ArchSpec:
    """``read_spec`` without its warnings."""
    return read_spec(config, max_context)[0]
