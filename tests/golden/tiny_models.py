# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints of every family, written by transformers, with weights large enough that nothing can hide."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from own_names import Arrange, baichuan, baichuan_alibi, chatglm, internlm2, rearrange

VOCABULARY = 97
DEFAULT_LENGTHS = (29, 3, 17, 1, 8)


@dataclass(frozen=True, eq=False)
class TinyModel:
    """One configuration to compare. ``lengths``: prompt lengths; ``max_context``: what load_model is asked for."""

    name: str
    config: Callable[[], Any]
    lengths: tuple[int, ...] = DEFAULT_LENGTHS
    max_context: int | None = None
    bare: bool = False
    """Save the model without its head, as some published checkpoints are: names have no prefix."""
    arrange: Arrange | None = None
    """What makes a repository's own files of those that transformers writes."""
    attention: str = "eager"
    """Which of transformers' implementations is right (Falcon's eager one adds ALiBi twice, 5.24)."""
    given: Callable[[Any, int], dict[str, torch.Tensor]] | None = None
    """(config, length) -> what transformers' model is told beside the ids, so that it computes another one."""
    tells: str = "logits"
    """What is compared: logits, or the last_hidden_state of a model without a head."""


def gated(**changes: Any) -> dict[str, Any]:
    """Sizes chosen so that heads, KV heads, head size and widths are all different."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return sizes | changes


def plain(**changes: Any) -> dict[str, Any]:
    """Of the families of layer norms, by the first spelling that transformers knows for all of them."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return sizes | changes


def alibi_instead_of_a_rope(config: Any, length: int) -> dict[str, torch.Tensor]:
    """Everything stands at position 0, where nothing turns, and Press et al.'s slopes are in the mask."""
    heads, keys = config.num_attention_heads, torch.arange(length)
    few = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (n + 1) / few) for n in range(few)]
    slopes += [2.0 ** (-4 * (2 * n + 1) / few) for n in range(heads - few)]
    distances = torch.tensor(slopes)[:, None, None] * (keys - keys[:, None])
    hidden = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    return {"attention_mask": (distances + hidden)[None], "position_ids": torch.zeros(1, length, dtype=torch.long)}


def rope(kind: str = "default", theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **more}


LLAMA3 = rope(
    "llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5)
LONG = rope(
    "longrope",
    short_factor=[1.0, 1.1, 1.2, 1.3],
    long_factor=[1.0, 2.0, 3.0, 4.0],
    original_max_position_embeddings=16,
)
PHI3_LONG = gated(rope_parameters=LONG, original_max_position_embeddings=16)
NEOX = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 64,
}
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 3}
GEMMA2 = {
    "head_dim": 16,
    "sliding_window": 8,
    "query_pre_attn_scalar": 20,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 6.0,
}
LEFT_AT_ORIGINAL = rope("yarn", factor=4.0, original_max_position_embeddings=16, attn_factor=0.878)
LONG_WITH_MSCALES = LONG | {"short_mscale": 1.1, "long_mscale": 1.3}
GEMMA3 = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 20, "tie_word_embeddings": True}
GEMMA3_ROPES = {
    "full_attention": rope("linear", theta=1e6, factor=8.0),
    "sliding_attention": rope(theta=100.0),
}
QUARTER = rope(partial_rotary_factor=0.25)
GEMMA3_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
t = transformers

GROUPED = plain(num_key_value_heads=2, intermediate_size=80, pad_token_id=0)
OTHERS = (
    TinyModel("gpt-j", lambda: t.GPTJConfig(**plain(rotary_dim=6))),
    TinyModel("falcon-7b", lambda: t.FalconConfig(**plain())),
    TinyModel(
        "falcon-40b", lambda: t.FalconConfig(**plain(new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=80))
    ),
    TinyModel(
        "falcon-11b",
        lambda: t.FalconConfig(
            **plain(new_decoder_architecture=True, num_kv_heads=3, num_ln_in_parallel_attn=1, tie_word_embeddings=False)
        ),
    ),
    TinyModel(
        "falcon-rw",
        lambda: t.FalconConfig(
            **plain(alibi=True, bias=True, multi_query=False, parallel_attn=False, num_attention_heads=4)
        ),
        attention="sdpa",
    ),
    TinyModel("olmo-2", lambda: t.Olmo2Config(**gated())),
    TinyModel("gemma", lambda: t.GemmaConfig(**gated(head_dim=16))),
    TinyModel("gpt-bigcode", lambda: t.GPTBigCodeConfig(**plain())),
    TinyModel("gpt-bigcode-own-keys", lambda: t.GPTBigCodeConfig(**plain(multi_query=False, n_inner=80))),
    TinyModel("starcoder-2", lambda: t.Starcoder2Config(**GROUPED, sliding_window=9)),
    TinyModel("phi-2", lambda: t.PhiConfig(**GROUPED)),
    TinyModel("stablelm", lambda: t.StableLmConfig(**GROUPED, use_qkv_bias=True, rope_parameters=QUARTER)),
    TinyModel(
        "stablelm-parallel", lambda: t.StableLmConfig(**GROUPED, use_parallel_residual=True, rope_parameters=QUARTER)
    ),
    TinyModel(
        "stablelm-12b",
        lambda: t.StableLmConfig(**GROUPED, use_parallel_residual=True, qk_layernorm=True, rope_parameters=QUARTER),
    ),
    TinyModel("command-r-plus", lambda: t.CohereConfig(**GROUPED, use_qk_norm=True, logit_scale=3.0)),
    TinyModel("exaone-4", lambda: t.Exaone4Config(**gated(num_hidden_layers=5, sliding_window=8))),
    TinyModel(
        "exaone-4-full", lambda: t.Exaone4Config(**gated(sliding_window=None, layer_types=["full_attention"] * 3))
    ),
    TinyModel("bitnet", lambda: t.BitNetConfig(**gated())),
    TinyModel(
        "baichuan-13b",
        lambda: t.LlamaConfig(**gated(num_key_value_heads=6)),
        arrange=baichuan_alibi,
        given=alibi_instead_of_a_rope,
    ),
    TinyModel(
        "granite",
        lambda: t.GraniteConfig(
            **gated(embedding_multiplier=3.0, logits_scaling=0.7, residual_multiplier=0.22, attention_multiplier=0.2)
        ),
    ),
    TinyModel("cohere", lambda: t.CohereConfig(**GROUPED, logit_scale=0.3)),
    TinyModel("cohere-2", lambda: t.Cohere2Config(**(GROUPED | {"num_hidden_layers": 5}), sliding_window=8)),
    TinyModel("smollm-3", lambda: t.SmolLM3Config(**gated(num_hidden_layers=5))),
    TinyModel(
        "smollm-3-window",
        lambda: t.SmolLM3Config(
            **gated(num_hidden_layers=4, use_sliding_window=True, sliding_window=8, no_rope_layer_interval=2)
        ),
    ),
    TinyModel("glm", lambda: t.GlmConfig(**gated(head_dim=16, rope_parameters=rope(partial_rotary_factor=0.5)))),
    TinyModel("glm-4", lambda: t.Glm4Config(**gated(head_dim=16, rope_parameters=rope(partial_rotary_factor=0.5)))),
    TinyModel("internlm-2", lambda: t.LlamaConfig(**gated()), arrange=internlm2),
    TinyModel("baichuan", lambda: t.LlamaConfig(**gated(num_key_value_heads=6)), arrange=baichuan),
    TinyModel(
        "chatglm",
        lambda: t.GlmConfig(**gated(head_dim=16, rope_parameters=rope(theta=500000.0, partial_rotary_factor=0.5))),
        arrange=chatglm,
    ),
    TinyModel("opt", lambda: t.OPTConfig(**plain(ffn_dim=80, pad_token_id=0))),
    TinyModel(
        "opt-350m",
        lambda: t.OPTConfig(**plain(ffn_dim=80, do_layer_norm_before=False, word_embed_proj_dim=24, pad_token_id=0)),
    ),
)
STATE_SPACE = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 3, "conv_kernel": 4}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HYBRID = gated(
    num_hidden_layers=4,
    layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    num_local_experts=0,
    num_experts_per_tok=0,
    shared_intermediate_size=80,
    mamba_n_heads=8,
    mamba_d_state=7,
    embedding_multiplier=3.0,
    logits_scaling=0.7,
    residual_multiplier=0.4,
    attention_multiplier=0.3,
)
STATE_SPACES = (
    TinyModel("mamba", lambda: t.MambaConfig(**STATE_SPACE, state_size=5, time_step_rank=16)),
    TinyModel(
        "mamba-biases",
        lambda: t.MambaConfig(
            **STATE_SPACE, state_size=16, use_bias=True, use_conv_bias=False, tie_word_embeddings=False
        ),
    ),
    TinyModel(
        "mamba-2", lambda: t.Mamba2Config(**STATE_SPACE, **TOKENS, state_size=7, num_heads=8, head_dim=12, n_groups=1)
    ),
    TinyModel(
        "mamba-2-groups",
        lambda: t.Mamba2Config(
            **STATE_SPACE, **TOKENS, state_size=16, num_heads=6, head_dim=16, n_groups=3, tie_word_embeddings=True
        ),
    ),
    TinyModel("granite-hybrid", lambda: t.GraniteMoeHybridConfig(**HYBRID, mamba_n_groups=2)),
    TinyModel(
        "granite-hybrid-rope",
        lambda: t.GraniteMoeHybridConfig(**HYBRID, mamba_n_groups=1, position_embedding_type="rope"),
    ),
)
HYBRID_EXPERTS = HYBRID | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32}

MIXED = gated(num_experts=5, num_experts_per_tok=3, moe_intermediate_size=32)
LATENT = gated(
    num_key_value_heads=6,
    kv_lora_rank=32,
    qk_nope_head_dim=12,
    qk_rope_head_dim=6,
    v_head_dim=16,
    n_routed_experts=6,
    num_experts_per_tok=2,
    n_shared_experts=2,
    moe_intermediate_size=32,
    first_k_dense_replace=1,
)
WARM = YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}
EXPERTS = (
    TinyModel("mixtral", lambda: t.MixtralConfig(**gated(num_local_experts=4, num_experts_per_tok=2))),
    TinyModel(
        "qwen2-moe",
        lambda: t.Qwen2MoeConfig(**MIXED, shared_expert_intermediate_size=64, mlp_only_layers=[1]),
    ),
    TinyModel("qwen3-moe", lambda: t.Qwen3MoeConfig(**MIXED, head_dim=16, norm_topk_prob=True)),
    TinyModel(
        "gpt-oss",
        lambda: t.GptOssConfig(
            **gated(head_dim=16, num_local_experts=4, num_experts_per_tok=2, hidden_size=64, intermediate_size=32),
            sliding_window=9,
            swiglu_limit=0.5,
            rope_parameters=YARN | {"truncate": False},
        ),
    ),
    TinyModel(
        "deepseek-v2-lite",
        lambda: t.DeepseekV2Config(**LATENT, q_lora_rank=None, rope_parameters=WARM | {"mscale": 1.3}),
    ),
    TinyModel(
        "deepseek-v2",
        lambda: t.DeepseekV2Config(
            **LATENT,
            q_lora_rank=32,
            topk_method="group_limited_greedy",
            n_group=3,
            topk_group=1,
            routed_scaling_factor=1.7,
            attention_bias=True,
        ),
    ),
    TinyModel(
        "deepseek-v3",
        lambda: t.DeepseekV3Config(
            **LATENT, q_lora_rank=32, n_group=3, topk_group=2, routed_scaling_factor=2.5, rope_parameters=WARM
        ),
    ),
    TinyModel("granite-hybrid-experts", lambda: t.GraniteMoeHybridConfig(**HYBRID_EXPERTS, mamba_n_groups=2)),
    TinyModel("olmoe", lambda: t.OlmoeConfig(**gated(num_experts=6, num_experts_per_tok=2, intermediate_size=32))),
)

XLM_R = t.XLMRobertaConfig
HIDDEN = "last_hidden_state"
ENCODER = plain(intermediate_size=80)
ENCODERS = (
    TinyModel("bert", lambda: t.BertConfig(**ENCODER), tells=HIDDEN),
    TinyModel(
        "xlm-r",
        lambda: XLM_R(**ENCODER | {"max_position_embeddings": 66}, pad_token_id=1, type_vocab_size=1),
        tells=HIDDEN,
    ),
    TinyModel("qwen3-embedding", lambda: t.Qwen3Config(**gated(head_dim=16)), tells=HIDDEN),
)

TINY_MODELS: tuple[TinyModel, ...] = (
    TinyModel("llama-1", lambda: t.LlamaConfig(**gated(num_key_value_heads=6))),
    TinyModel("llama-2-biases", lambda: t.LlamaConfig(**gated(attention_bias=True, mlp_bias=True))),
    TinyModel("llama-3-tied", lambda: t.LlamaConfig(**gated(rope_parameters=LLAMA3, tie_word_embeddings=True))),
    TinyModel(
        "llama-head-size", lambda: t.LlamaConfig(**gated(head_dim=10, rope_parameters=rope("linear", factor=2.0)))
    ),
    TinyModel("llama-yarn", lambda: t.LlamaConfig(**gated(rope_parameters=YARN))),
    TinyModel("mistral", lambda: t.MistralConfig(**gated(sliding_window=8))),
    TinyModel("mistral-no-window", lambda: t.MistralConfig(**gated(sliding_window=None))),
    TinyModel("qwen2", lambda: t.Qwen2Config(**gated())),
    TinyModel(
        "qwen2-window",
        lambda: t.Qwen2Config(**gated(use_sliding_window=True, sliding_window=6, max_window_layers=1)),
    ),
    TinyModel("qwen3", lambda: t.Qwen3Config(**gated(head_dim=16, rope_parameters=rope(theta=1e6)))),
    TinyModel(
        "qwen3-yarn",
        lambda: t.Qwen3Config(**gated(head_dim=16, max_position_embeddings=16, rope_parameters=LEFT_AT_ORIGINAL)),
        (40, 3, 16, 1),
    ),
    TinyModel("gemma-2", lambda: t.Gemma2Config(**gated(**GEMMA2))),
    TinyModel("gemma-3", lambda: t.Gemma3TextConfig(**gated(**GEMMA3, num_hidden_layers=7))),
    TinyModel(
        "gemma-3-ropes",
        lambda: t.Gemma3TextConfig(
            **gated(**GEMMA3, rope_parameters=GEMMA3_ROPES, layer_types=GEMMA3_KINDS, final_logit_softcapping=6.0)
        ),
    ),
    TinyModel("phi-3", lambda: t.Phi3Config(**gated(sliding_window=9))),
    TinyModel("phi-3-partial", lambda: t.Phi3Config(**gated(rope_parameters=rope(partial_rotary_factor=0.5)))),
    TinyModel("phi-3-long-rope-short", lambda: t.Phi3Config(**PHI3_LONG), (15, 3, 8)),
    TinyModel("phi-3-long-rope-long", lambda: t.Phi3Config(**PHI3_LONG), (29, 17, 24), max_context=64),
    TinyModel(
        "phi-3-long-rope-mscales",
        lambda: t.Phi3Config(**gated(rope_parameters=LONG_WITH_MSCALES, original_max_position_embeddings=16)),
        (29, 17, 24),
        max_context=64,
    ),
    TinyModel("gpt-neox", lambda: t.GPTNeoXConfig(**NEOX)),
    TinyModel(
        "gpt-neox-sequential",
        lambda: t.GPTNeoXConfig(**NEOX, use_parallel_residual=False, rotary_pct=1.0, attention_bias=False),
    ),
    TinyModel("bloom", lambda: t.BloomConfig(**BLOOM, n_head=6)),
    TinyModel("bloom-bare", lambda: t.BloomConfig(**BLOOM, n_head=4), bare=True),
    *OTHERS,
    *EXPERTS,
    *STATE_SPACES,
    *ENCODERS,
    TinyModel("gpt-2", lambda: t.GPT2Config(**plain())),
    TinyModel("gpt-2-wide", lambda: t.GPT2Config(**plain(n_inner=80, scale_attn_weights=False))),
)

ONE_PER_FAMILY = (
    *("llama-2-biases", "mistral", "qwen2", "qwen3", "gemma-2", "gemma-3", "phi-3", "gpt-neox", "bloom", "gpt-2"),
    *("gpt-j", "falcon-7b", "falcon-40b", "falcon-rw", "olmo-2", "gemma", "gpt-bigcode", "starcoder-2", "phi-2"),
    *(
        "stablelm",
        "stablelm-12b",
        "command-r-plus",
        "exaone-4",
        "bitnet",
        "baichuan-13b",
        "granite",
        "cohere",
        "cohere-2",
        "smollm-3",
        "glm",
        "glm-4",
        "opt",
        "opt-350m",
    ),
    *("internlm-2", "baichuan", "chatglm", "mamba", "mamba-2-groups", "granite-hybrid", "granite-hybrid-experts"),
    *("mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "gpt-oss", "deepseek-v2-lite", "deepseek-v3"),
    *("bert", "xlm-r", "qwen3-embedding"),
)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights of standard deviation 0.2 and visible gains and biases: a wrong term anywhere moves the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and name.endswith("weight")
            centre = 1.0 if norm and float(parameter.abs().max()) > 0 else 0.0
            parameter.copy_(centre + (0.3 if norm else 0.2) * noise)
        for buffer in stored_buffers(model):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))


def stored_buffers(model: torch.nn.Module) -> list[torch.Tensor]:
    """What is learned and stored, and no parameter: DeepSeek-V3's corrections."""
    stored = model.state_dict().keys()
    return [each for name, each in sorted(model.named_buffers()) if name in stored and each.is_floating_point()]


def write(tiny: TinyModel, directory: Path, seed: int = 0) -> "transformers.PreTrainedModel":
    """Write the checkpoint into ``directory`` and return the model, fp32, eager attention."""
    config = tiny.config()
    config._attn_implementation = tiny.attention
    kind = transformers.AutoModelForCausalLM if tiny.tells == "logits" else transformers.AutoModel
    unpooled = {"add_pooling_layer": False} if isinstance(config, transformers.BertConfig | XLM_R) else {}
    model = kind.from_config(config, dtype=torch.float32, **unpooled).eval()
    randomise(model, seed)
    model.tie_weights()
    if tiny.bare:
        model.config.architectures = [type(model).__name__]
        model.base_model.save_pretrained(directory)
        path = directory / "config.json"
        path.write_text(path.read_text().replace("BloomModel", "BloomForCausalLM"))
    else:
        model.save_pretrained(directory)
    if tiny.arrange is not None:
        rearrange(directory, tiny.arrange)
    return model


@torch.no_grad()
def reference_logits(
    model: "transformers.PreTrainedModel", prompts: list[list[int]], tiny: TinyModel | None = None
) -> list[torch.Tensor]:
    """Logits fp32 [length, vocabulary] of every prompt, each alone, without cache; or what lies before a head."""
    more = [{} if tiny is None or tiny.given is None else tiny.given(model.config, len(prompt)) for prompt in prompts]
    found = [
        model(torch.tensor([prompt]), use_cache=False, **given) for prompt, given in zip(prompts, more, strict=True)
    ]
    return [getattr(one, "logits", one[0])[0].float() for one in found]
