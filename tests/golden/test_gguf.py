# SPDX-License-Identifier: Apache-2.0
"""GGUF files of every architecture: the logits of the model they were made from, and of transformers reading them."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="golden logits need PyTorch")
pytest.importorskip("transformers", reason="golden logits need transformers")
gguf = pytest.importorskip("gguf", reason="the files are written by the gguf package")

import stepping  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from gguf_models import write_gguf  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from test_families import DECODE, LIMITS, TOLERANCE, backend_named, worst_difference  # noqa: E402
from tiny_models import (  # noqa: E402
    GEMMA2,
    GEMMA3,
    GEMMA3_KINDS,
    GEMMA3_ROPES,
    GROUPED,
    LATENT,
    MIXED,
    TINY_MODELS,
    VOCABULARY,
    WARM,
    TinyModel,
    alibi_instead_of_a_rope,
    gated,
    plain,
    reference_logits,
    stored_buffers,
    write,
)

from linnet.models.load import load_model  # noqa: E402
from linnet.schemes.packed_weight import PackedWeight  # noqa: E402

SEED = 11
SCALED = {"query_pre_attn_scalar": 16}
"""What a GGUF file does not say: llama.cpp takes the head's size for it."""
PUBLISHED_YARN = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 4096,
    "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
}  # fmt: skip
"""gpt-oss' own: llama.cpp takes these two bounds whatever its keys say."""
NAMED = {tiny.name: tiny for tiny in TINY_MODELS}
MODELS = (
    *(
        NAMED[name]
        for name in (
            *("llama-1", "llama-2-biases", "llama-3-tied", "llama-head-size", "llama-yarn", "mistral"),
            *("qwen2", "qwen3", "phi-3", "phi-3-partial", "phi-3-long-rope-short", "phi-3-long-rope-long"),
        )
    ),
    TinyModel("gemma-2", lambda: transformers.Gemma2Config(**gated(**{**GEMMA2, **SCALED}))),
    TinyModel(
        "gemma-3", lambda: transformers.Gemma3TextConfig(**gated(**{**GEMMA3, **SCALED, "num_hidden_layers": 7}))
    ),
    TinyModel(
        "gemma-3-ropes",
        lambda: transformers.Gemma3TextConfig(
            **gated(
                **{**GEMMA3, **SCALED},
                rope_parameters=GEMMA3_ROPES,
                layer_types=GEMMA3_KINDS,
                final_logit_softcapping=6.0,
            )
        ),
    ),
    *(
        NAMED[name]
        for name in (
            *("gpt-2", "gpt-bigcode", "falcon-7b", "falcon-40b", "falcon-11b", "gpt-neox"),
            *("gpt-neox-sequential", "phi-2", "stablelm", "stablelm-parallel", "cohere", "cohere-2", "gemma"),
            *("stablelm-12b", "command-r-plus", "exaone-4", "exaone-4-full"),
            *("olmo-2", "granite", "smollm-3", "glm", "glm-4", "bloom"),
        )
    ),
    *(NAMED[name] for name in ("mixtral", "qwen3-moe", "olmoe", "mamba", "mamba-2", "mamba-2-groups")),
    TinyModel("qwen2-moe", lambda: transformers.Qwen2MoeConfig(**MIXED, shared_expert_intermediate_size=64)),
    TinyModel(
        "deepseek-v2-lite",
        lambda: transformers.DeepseekV2Config(**LATENT, q_lora_rank=None, rope_parameters=WARM),
    ),
    NAMED["deepseek-v3"],
    TinyModel(
        "gpt-oss",
        lambda: transformers.GptOssConfig(
            **gated(head_dim=64, num_local_experts=4, num_experts_per_tok=2, hidden_size=64, intermediate_size=32),
            sliding_window=9,
            rope_parameters=PUBLISHED_YARN,
        ),
    ),
    TinyModel("starcoder-2", lambda: transformers.Starcoder2Config(**GROUPED)),
)
READ_BY_TRANSFORMERS = ("llama-1", "qwen2")
"""Those whose keys transformers' reader takes all in. Of the others it leaves out the head's size (qwen3), caps,
windows and the scale of queries (gemma), biases and every scaled rope, and puts its class's defaults there."""


def prompts_of(tiny: TinyModel) -> list[list[int]]:
    generator = random.Random(SEED)
    return [[generator.randrange(VOCABULARY) for _ in range(length)] for length in tiny.lengths]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_logits_equal_those_of_the_model_it_was_made_from(tiny: TinyModel, backend: str, tmp_path: Path) -> None:
    model = write(tiny, tmp_path / "directory", SEED)
    prompts = prompts_of(tiny)
    expected = reference_logits(model, prompts)
    saved = load_file(tmp_path / "directory" / "model.safetensors")
    tensors = saved if any(".experts." in name for name in saved) else None  # transformers stacks them otherwise
    source = load_model(write_gguf(model, tmp_path / "m.gguf", tensors=tensors), tiny.max_context)
    assert source.parameters == sum(each.numel() for each in (*model.parameters(), *stored_buffers(model)))
    executable = backend_named(backend).prepare(source, "exact", LIMITS)
    for chunks in (None, DECODE):
        worst = worst_difference(stepping.run(executable, prompts, chunks, SEED), expected)
        print(f"{tiny.name}: max abs difference {worst:.1e}, seed {SEED}")
        assert worst <= TOLERANCE


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_experts_of_codes_lie_one_after_the_other_in_a_tensor(kind: str, tmp_path: Path) -> None:
    """Each is the rows that gguf's own reader has at its place, and both backends multiply with them."""
    sizes = gated(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_local_experts=4)
    tiny = TinyModel("mixtral", lambda: transformers.MixtralConfig(**sizes))
    model = write(tiny, tmp_path / "directory", SEED)
    saved = load_file(tmp_path / "directory" / "model.safetensors")
    path = write_gguf(model, tmp_path / "m.gguf", {"_exps.weight": kind}, tensors=saved)
    source = load_model(path)
    names = {"gate": "w1", "up": "w3", "down": "w2"}
    for tensor in gguf.GGUFReader(path).tensors:
        if "_exps." not in tensor.name:
            continue
        _, layer, stem, _ = tensor.name.split(".")
        whole = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for expert, meant in enumerate(whole):
            name = names[stem.removeprefix("ffn_").removesuffix("_exps")]
            packed = source.checkpoint.linear(f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}")
            assert isinstance(packed, PackedWeight)
            assert np.array_equal(packed.dequantize(), meant)
    runs = [backend_named(name).prepare(source, "exact", LIMITS) for name in ("reference", "cpu")]
    expected, found = (stepping.run(executable, prompts_of(tiny), None, SEED) for executable in runs)
    assert worst_difference(found, [torch.from_numpy(one) for one in expected]) <= TOLERANCE


def test_experts_of_four_bit_floats_have_biases_and_sinks_beside_them(tmp_path: Path) -> None:
    """gpt-oss as it is published: the model with what the blocks mean says the same."""
    tiny = next(tiny for tiny in MODELS if tiny.name == "gpt-oss")
    model = write(tiny, tmp_path / "directory", SEED)
    path = write_gguf(model, tmp_path / "m.gguf", {"_exps.weight": "MXFP4"})
    source = load_model(path)
    stacks = {"gate": ("gate_up_proj", slice(0, None, 2)), "up": ("gate_up_proj", slice(1, None, 2))}
    stacks["down"] = ("down_proj", slice(None))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for linear in source.linears():
            if ".experts." not in linear.module:
                continue
            packed = source.checkpoint.linear(linear.module)
            assert isinstance(packed, PackedWeight)
            before, _, rest = linear.module.partition(".experts.")
            expert, _, name = rest.partition(".")
            stack, columns = stacks[name.removesuffix("_proj")]
            dense = parameters[f"{before}.experts.{stack}"][int(expert)][:, columns]
            assert 0 < float((dense - torch.from_numpy(packed.dequantize()).T).abs().max()) < 0.2
            dense.copy_(torch.from_numpy(packed.dequantize()).T)
    prompts = prompts_of(tiny)
    for backend in ("reference", "cpu"):
        found = stepping.run(backend_named(backend).prepare(source, "exact", LIMITS), prompts, DECODE, SEED)
        worst = worst_difference(found, reference_logits(model, prompts))
        print(f"{backend}: max abs difference {worst:.1e}")
        assert worst <= TOLERANCE


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v3"])
def test_matrices_of_heads_around_a_narrow_vector(name: str, tmp_path: Path) -> None:
    """Files that have no keys and values but the narrow vector, and what makes those of heads in two parts."""
    tiny = next(tiny for tiny in MODELS if tiny.name == name)
    model = write(tiny, tmp_path / "directory", SEED)
    saved = load_file(tmp_path / "directory" / "model.safetensors")
    source = load_model(write_gguf(model, tmp_path / "m.gguf", tensors=saved, narrow=True))
    assert source.parameters == sum(each.numel() for each in (*model.parameters(), *stored_buffers(model)))
    prompts = prompts_of(tiny)
    for backend in ("reference", "cpu"):
        found = stepping.run(backend_named(backend).prepare(source, "exact", LIMITS), prompts, DECODE, SEED)
        worst = worst_difference(found, reference_logits(model, prompts))
        print(f"{name} {backend}: max abs difference {worst:.1e}")
        assert worst <= TOLERANCE


def test_turned_matrices_of_codes_are_numbers(tmp_path: Path) -> None:
    """Codes lie along what becomes the rows; values stay codes."""
    wide = LATENT | {"qk_nope_head_dim": 32}
    tiny = TinyModel("latent", lambda: transformers.DeepseekV2Config(**wide, q_lora_rank=None))
    model = write(tiny, tmp_path / "directory", SEED)
    saved = load_file(tmp_path / "directory" / "model.safetensors")
    kinds = {"attn_k_b.weight": "Q8_0", "attn_v_b.weight": "Q4_0"}
    path = write_gguf(model, tmp_path / "m.gguf", kinds, tensors=saved, narrow=True)
    source = load_model(path)
    meant = {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in gguf.GGUFReader(path).tensors}
    keys = source.checkpoint.linear("model.layers.1.self_attn.k_b_proj")
    values = source.checkpoint.linear("model.layers.1.self_attn.v_b_proj")
    assert isinstance(keys, np.ndarray)
    assert isinstance(values, PackedWeight)
    assert np.array_equal(keys.reshape(6, 32, 32), meant["blk.1.attn_k_b.weight"].swapaxes(1, 2))
    assert np.array_equal(values.dequantize().reshape(6, 16, 32), meant["blk.1.attn_v_b.weight"])
    assert np.abs(keys).max() > 0.1
    runs = [backend_named(name).prepare(source, "exact", LIMITS) for name in ("reference", "cpu")]
    expected, found = (stepping.run(executable, prompts_of(tiny), None, SEED) for executable in runs)
    assert worst_difference(found, [torch.from_numpy(one) for one in expected]) <= TOLERANCE


DEEP = TinyModel(
    "baichuan",
    lambda: transformers.LlamaConfig(**gated(num_key_value_heads=6, num_hidden_layers=40)),
    (9, 3),
    given=alibi_instead_of_a_rope,
)
"""Of as many layers as the member that has ALiBi."""


@pytest.mark.parametrize("tiny", [NAMED["internlm-2"], NAMED["baichuan"], DEEP], ids=["internlm-2", "7b", "13b"])
def test_what_llama_cpp_takes_for_llama(tiny: TinyModel, tmp_path: Path) -> None:
    """Their converters take the fused tensor apart and pair the rows of queries and keys."""
    model = write(tiny, tmp_path / "directory", SEED)
    path = write_gguf(model, tmp_path / "m.gguf", architecture=tiny.name.replace("-", ""))
    executable = backend_named("reference").prepare(load_model(path), "exact", LIMITS)
    prompts = prompts_of(tiny)
    found = stepping.run(executable, prompts, None, SEED)
    assert worst_difference(found, reference_logits(model, prompts, tiny)) <= TOLERANCE


def test_fused_rows_under_names_of_their_own(tmp_path: Path) -> None:
    """ChatGLMModel's converter keeps the tensor of query, key and value, which the later one has apart."""
    tiny = NAMED["chatglm"]
    model = write(tiny, tmp_path / "directory", SEED)
    tensors = load_file(tmp_path / "directory" / "model.safetensors")
    source = load_model(write_gguf(model, tmp_path / "m.gguf", tensors=tensors))
    assert source.spec.family == "ChatGLMModel"
    prompts = prompts_of(tiny)
    found = stepping.run(backend_named("cpu").prepare(source, "exact", LIMITS), prompts, None, SEED)
    assert worst_difference(found, reference_logits(model, prompts)) <= TOLERANCE


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_logits_equal_transformers_reading_the_same_file(name: str, tmp_path: Path) -> None:
    tiny = next(model for model in MODELS if model.name == name)
    model = write(tiny, tmp_path / "directory", SEED)
    path = write_gguf(model, tmp_path / "m.gguf", {"attn_q.weight": "F16", "ffn_down.weight": "BF16"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    prompts = prompts_of(tiny)
    executable = backend_named("reference").prepare(load_model(path, tiny.max_context), "exact", LIMITS)
    worst = worst_difference(stepping.run(executable, prompts, None, SEED), reference_logits(theirs, prompts))
    assert worst <= TOLERANCE


WIDE = {"hidden_size": 96, "num_attention_heads": 6}
BLOCKS = {
    "gpt-2": lambda: transformers.GPT2Config(**plain(**WIDE)),
    "falcon-40b": lambda: transformers.FalconConfig(
        **plain(**WIDE, new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=128)
    ),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**plain(**WIDE, intermediate_size=128)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_codes_lie_by_outputs_and_in_groups(name: str, tmp_path: Path) -> None:
    """What is turned or regrouped as numbers is not, or is, as blocks: the model with their meaning says the same."""
    tiny = TinyModel(name, BLOCKS[name])
    model = write(tiny, tmp_path / "directory", SEED)
    kinds = dict.fromkeys(("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight"), "Q8_0")
    source = load_model(write_gguf(model, tmp_path / "m.gguf", kinds))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for linear in source.linears()[:-1]:
            packed = source.checkpoint.linear(linear.module)
            assert isinstance(packed, PackedWeight)
            meant = np.ascontiguousarray(source.as_published(linear.tensor, packed.dequantize()))
            dense = parameters[linear.tensor]
            assert float((dense - torch.from_numpy(meant)).abs().max()) < 0.02, "Q8_0 of another matrix"
            dense.copy_(torch.from_numpy(meant))
    prompts = prompts_of(tiny)
    for backend in ("reference", "cpu"):
        found = stepping.run(backend_named(backend).prepare(source, "exact", LIMITS), prompts, DECODE, SEED)
        assert worst_difference(found, reference_logits(model, prompts)) <= TOLERANCE


def wide(**changes: Any) -> dict[str, Any]:
    """Widths of whole blocks."""
    return gated(hidden_size=96, intermediate_size=256, num_attention_heads=6, num_key_value_heads=2, **changes)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_rows_are_gathered_whole(kind: str, tmp_path: Path) -> None:
    """Query and key lie in pairs of rows: the model with their dequantised weights gives the same logits."""
    tiny = TinyModel("llama", lambda: transformers.LlamaConfig(**wide()))
    model = write(tiny, tmp_path / "directory", SEED)
    ends = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    path = write_gguf(model, tmp_path / "m.gguf", dict.fromkeys((*ends, "token_embd.weight"), kind))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    prompts = prompts_of(tiny)
    executable = backend_named("reference").prepare(load_model(path), "exact", LIMITS)
    found = stepping.run(executable, prompts, None, SEED)
    assert worst_difference(found, reference_logits(theirs, prompts)) <= TOLERANCE
    assert worst_difference(found, reference_logits(model, prompts)) > 10 * TOLERANCE, "nothing was quantised"
    assert np.isfinite(found[0]).all()
