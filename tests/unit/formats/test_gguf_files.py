# SPDX-License-Identifier: Apache-2.0
"""GGUF files as Hugging Face directories: config, names, rows and gains as they were before the converter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
from gguf_small import (  # noqa: E402
    FOUR_NORMS,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    tensors_of,
    write_gguf,
)

from linnet.errors import CheckpointError, LinnetError, UnsupportedError  # noqa: E402
from linnet.formats.gguf import (  # noqa: E402
    ARCHITECTURES,
    GgufFiles,
    halved_rows,
    paired_rows,
    to_ggml,
    to_hugging_face,
)
from linnet.formats.gguf.architectures_read import READ  # noqa: E402
from linnet.formats.gguf.names import grouped_rows  # noqa: E402


def config(tmp_path: Path, architecture: str, changes: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    path = write_gguf(tmp_path / "m.gguf", architecture, changes, **options)
    files = GgufFiles(path)
    files.close()
    return files.config


def refusal(tmp_path: Path, architecture: str, changes: dict[str, Any], **options: Any) -> str:
    with pytest.raises(LinnetError) as caught:
        config(tmp_path, architecture, changes, **options)
    message = str(caught.value)
    assert "m.gguf" in message
    return message


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_config_says_every_size(name: str, tmp_path: Path) -> None:
    found = config(tmp_path, name)
    expected = {
        "architectures": [ARCHITECTURES[name].family],
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: found[key] for key in expected} == expected
    assert found.get("head_dim", 16) == (32 if ARCHITECTURES[name].own_head_size else 16)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_go_both_ways_as_the_reference_package_has_them(name: str) -> None:
    architecture = ARCHITECTURES[name]
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    theirs = gguf.get_tensor_name_map(number, LAYERS)
    always_tied = theirs.get_name("lm_head") is None
    for ggml in [*tensors_of(name), *([] if always_tied else ["output.weight"])]:
        named = to_hugging_face(architecture, ggml)
        assert named is not None, ggml
        stem, _, kind = named.name.rpartition(".")
        assert f"{theirs.get_name(stem)}.{kind}" == ggml
        back = to_ggml(architecture, named.name)
        assert back is not None
        assert (back.name, back.change) == (ggml, named.change)
    for unknown in ("blk.0.attn_sinks.weight", "blk.00.attn_q.weight", "blk.x.attn_q.weight", "v.patch_embd.weight"):
        assert to_hugging_face(architecture, unknown) is None
    assert to_ggml(architecture, "model.layers.0.self_attn.rotary_emb.inv_freq") is None


@pytest.mark.parametrize("name", sorted(READ.keys() - ARCHITECTURES.keys()))
def test_names_of_what_is_only_read(name: str) -> None:
    """Both ways, and as the reference package has them for files that keep the names of the family's directory."""
    rows = (READ[name], *READ[name].variants.values())
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    theirs = gguf.get_tensor_name_map(number, LAYERS)
    for row in rows:
        names = [f"{stem}.weight" for stem in row.outer] + [f"blk.1.{stem}.weight" for stem in row.block]
        for ggml in names:
            named = to_hugging_face(row, ggml)
            assert named is not None
            stem = named.name.removesuffix(".weight").replace(".{expert}", "")  # converters put them into one
            stem = stem.removeprefix("transformer.") if name in ("bloom", "chatglm") else stem
            assert theirs.get_name(stem) in (ggml.removesuffix(".weight"), None if ggml == "output.weight" else "")
            back = to_ggml(row, named.name)
            assert back is not None
            assert (back.name, back.change) == (ggml, named.change)


def test_groups_are_gathered_from_rows_one_after_the_other() -> None:
    apart = ["q0", "q1", "q2", "q3", "k0", "k1", "v0", "v1"]
    rows = [f"{name}.{row}" for name in apart for row in range(3)]
    found = [rows[index].partition(".")[0] for index in grouped_rows(24, 4, 2)][::3]
    assert found == ["q0", "q1", "k0", "v0", "q2", "q3", "k1", "v1"]


def test_rows_of_query_and_key_are_gathered_back_and_nothing_else(tmp_path: Path) -> None:
    tensors = tensors_of("llama")
    rng = np.random.default_rng(3)
    tensors["blk.0.attn_q.bias"] = rng.standard_normal(HIDDEN).astype(np.float32)
    files = GgufFiles(write_gguf(tmp_path / "m.gguf", "llama", tensors=tensors))
    assert files.config["attention_bias"] is True
    for ggml, ours, heads in (("attn_q", "q_proj", HEADS), ("attn_k", "k_proj", KV_HEADS)):
        stored = tensors[f"blk.1.{ggml}.weight"]
        # the converter's own permutation, forwards, must lead to what is stored
        found = files.view(f"model.layers.1.self_attn.{ours}.weight")
        size = len(found) // heads
        permuted = found.reshape(heads, 2, size // 2, -1).swapaxes(1, 2).reshape(found.shape)
        np.testing.assert_array_equal(permuted, stored)
        assert not np.array_equal(found, stored)
        assert not found.flags["W"]
        np.testing.assert_array_equal(found[paired_rows(len(found), heads)], stored)
    bias = files.view("model.layers.0.self_attn.q_proj.bias")
    np.testing.assert_array_equal(bias[paired_rows(HIDDEN, HEADS)], tensors["blk.0.attn_q.bias"])
    whole = files.mapped()[0]
    for name in files.tensors:
        moved = "q_proj" in name or "k_proj" in name
        assert np.shares_memory(files.view(name), whole) != moved, name


def test_pairs_and_halves_are_inverses() -> None:
    rows = np.arange(4 * 6)
    assert halved_rows(24, 4).tolist()[:6] == [0, 2, 4, 1, 3, 5]
    np.testing.assert_array_equal(rows[halved_rows(24, 4)][paired_rows(24, 4)], rows)


@pytest.mark.parametrize("name", FOUR_NORMS)
def test_gains_lose_their_one(name: str, tmp_path: Path) -> None:
    files = GgufFiles(write_gguf(tmp_path / "m.gguf", name))
    tensors = tensors_of(name)
    changed = 0
    for ggml, stored in tensors.items():
        named = to_hugging_face(ARCHITECTURES[name], ggml)
        assert named is not None
        if named.change:
            changed += 1
            np.testing.assert_array_equal(files.view(named.name), stored - np.float32(1))
        else:
            np.testing.assert_array_equal(files.view(named.name), stored)
    assert changed == sum("norm" in ggml for ggml in tensors)


def test_quantised_tensors_are_their_blocks(tmp_path: Path) -> None:
    types = {"blk.0.ffn_gate.weight": "Q4_0", "blk.0.attn_q.weight": "Q8_0", "blk.1.attn_v.weight": "BF16"}
    tensors = tensors_of("llama")
    files = GgufFiles(write_gguf(tmp_path / "m.gguf", "llama", types=types))
    gate = files.tensors["model.layers.0.mlp.gate_proj.weight"]
    assert (gate.dtype, gate.shape, gate.nbytes) == ("Q4_0", (96, 64), 96 * 36)
    blocks = files.view("model.layers.0.mlp.gate_proj.weight")
    assert (blocks.dtype, blocks.shape) == (np.uint8, (96, 36))
    assert np.shares_memory(blocks, files.mapped()[0])
    query = files.view("model.layers.0.self_attn.q_proj.weight")
    values = gguf.quants.dequantize(query, gguf.GGMLQuantizationType.Q8_0)
    expected = tensors["blk.0.attn_q.weight"][halved_rows(HIDDEN, HEADS)]
    np.testing.assert_allclose(values, expected, atol=2e-3)
    value = files.tensors["model.layers.1.self_attn.v_proj.weight"]
    assert (value.dtype, value.nbytes) == ("bf16", 32 * 64 * 2)
    assert len(files.raw("model.layers.1.self_attn.v_proj.weight")) == value.nbytes


def test_a_split_set_is_one_model(tmp_path: Path) -> None:
    whole = GgufFiles(write_gguf(tmp_path / "whole.gguf", "qwen2"))
    write_gguf(tmp_path / "set.gguf", "qwen2", split_max_tensors=7)
    files = GgufFiles(tmp_path / "set-00002-of-00004.gguf")
    assert [path.name for path in files.paths()] == [f"set-0000{number}-of-00004.gguf" for number in (1, 2, 3, 4)]
    assert files.config == whole.config
    assert list(files.tensors) == list(whole.tensors)
    for name in files.tensors:
        np.testing.assert_array_equal(files.view(name), whole.view(name))


def test_rope_scaling(tmp_path: Path) -> None:
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": np.float32(8)}
    assert config(tmp_path, "gemma3", linear)["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert "rope_scaling" not in config(tmp_path, "llama", {"rope.scaling.type": "none"})
    yarn = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": np.float32(4),
        "rope.scaling.original_context_length": 32,
    }
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert config(tmp_path, "qwen2", yarn)["rope_scaling"] == expected
    table = np.linspace(1, 8, 8, dtype=np.float32)
    found = config(tmp_path, "llama", tensors={**tensors_of("llama"), "rope_freqs.weight": table})
    assert found["rope_scaling"] == {
        "rope_type": "longrope",
        "factor": 1.0,
        "short_factor": table.tolist(),
        "long_factor": table.tolist(),
        "attention_factor": 1.0,
    }
    assert found["original_max_position_embeddings"] == 128
    ones = {**tensors_of("llama"), "rope_freqs.weight": np.ones(8, np.float32)}
    assert "rope_scaling" not in config(tmp_path, "llama", tensors=ones)
    both = {"rope_factors_short.weight": table, "rope_factors_long.weight": table + 1}
    keys = {"rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": np.float32(1.19)}
    long = config(tmp_path, "phi3", keys, tensors={**tensors_of("phi3"), **both})
    assert long["original_max_position_embeddings"] == 32
    assert long["rope_scaling"]["long_factor"] == (table + 1).tolist()
    assert long["rope_scaling"]["attention_factor"] == 1.19
    assert long["rope_scaling"]["factor"] == 4.0


def test_what_families_differ_in(tmp_path: Path) -> None:
    windowed = config(tmp_path, "llama", {"attention.sliding_window": 24})
    assert (windowed["architectures"], windowed["sliding_window"]) == (["MistralForCausalLM"], 24)
    assert config(tmp_path, "gemma3")["layer_types"] == ["sliding_attention"] * 2
    assert config(tmp_path, "gemma3")["rope_local_base_freq"] == 10000.0
    assert config(tmp_path, "gemma2")["layer_types"] == ["sliding_attention", "full_attention"]
    assert config(tmp_path, "gemma2")["query_pre_attn_scalar"] == 32
    flags = config(tmp_path, "gemma3", {"attention.sliding_window_pattern": [False, True]})
    assert flags["layer_types"] == ["full_attention", "sliding_attention"]
    every = config(tmp_path, "gemma3", {"attention.sliding_window": None})
    assert every["layer_types"] == ["full_attention"] * 2
    untied = {**tensors_of("qwen3"), "output.weight": tensors_of("qwen3", 5)["token_embd.weight"]}
    assert config(tmp_path, "qwen3", tensors=untied)["tie_word_embeddings"] is False
    assert config(tmp_path, "phi3", {"rope.dimension_count": 8})["partial_rotary_factor"] == 0.5
    assert config(tmp_path, "llama", {"attention.head_count_kv": [2, 2]})["num_key_value_heads"] == 2


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "heads that differ": (
        "llama",
        {"attention.head_count_kv": [2, 4]},
        "attention.head_count_kv differs by layer (2, 4)",
    ),
    "experts": ("llama", {"expert_count": 8}, "llama.expert_count is 8: mixtures of experts are not supported in this"),
    "looks ahead": ("qwen2", {"attention.causal": False}, "tokens that see only what is before them"),
    "values of another size": ("qwen3", {"attention.value_length": 64}, "keys and values of one size"),
    "unknown key": ("llama", {"attention.clamp_kqv": np.float32(8)}, "llama.attention.clamp_kqv = 8.0"),
    "no heads": ("llama", {"attention.head_count": None}, "llama.attention.head_count is missing"),
    "heads is a text": ("llama", {"attention.head_count": "four"}, "llama.attention.head_count is 'four'; a whole"),
    "too many layers": ("llama", {"block_count": 2**31}, "llama.block_count is 2147483648"),
    "no epsilon": ("llama", {"attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
    "unknown rope": ("llama", {"rope.scaling.type": "dynamic"}, "rope.scaling.type is 'dynamic'"),
    "longrope without tables": ("phi3", {"rope.scaling.type": "longrope"}, "longrope with tables"),
    "endless theta": ("llama", {"rope.freq_base": np.float32(np.inf)}, "rope.freq_base is inf"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nothing_here_computes_is_refused_by_name(name: str, tmp_path: Path) -> None:
    architecture, changes, words = REFUSED[name]
    assert words in refusal(tmp_path, architecture, changes)


def test_harmless_keys_are_no_obstacle(tmp_path: Path) -> None:
    config(tmp_path, "llama", {"vocab_size": 50, "expert_count": 0, "attention.causal": True, "pooling_type": 0})


def test_tensors_that_cannot_be(tmp_path: Path) -> None:
    tensors = tensors_of("llama")
    for changed, words in [
        ({"blk.0.attn_sinks.weight": np.ones(4, np.float32)}, "tensor 'blk.0.attn_sinks.weight' is none that"),
        ({"token_embd.weight": tensors["token_embd.weight"][:40]}, "50 tokens, but token_embd.weight has only 40 rows"),
        ({"rope_freqs.weight": np.full(4, 2, np.float32)}, "F32 [8] is needed"),
        ({"rope_freqs.weight": np.zeros(8, np.float32)}, "numbers that are not positive"),
        ({"blk.0.attn_q.weight": np.ones((6, 64), np.float32)}, "6 rows are not 4 heads of an even size"),
    ]:
        assert words in refusal(tmp_path, "llama", {}, tensors={**tensors, **changed})
    table = {"rope_factors_short.weight": np.full(8, 2, np.float32)}
    assert "of the tables of rotary factors only rope_factors_short.weight" in refusal(
        tmp_path, "phi3", {}, tensors={**tensors_of("phi3"), **table}
    )


def test_an_unknown_architecture_hears_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(
        UnsupportedError, match=r"architecture 'rwkv7'.*it runs llama, qwen2, qwen3, gemma2, gemma3, phi3"
    ):
        GgufFiles(path)
    path.write_bytes(path.read_bytes().replace(b"general.architecture", b"general.architextura"))
    with pytest.raises(CheckpointError, match=r"general\.architecture is missing"):
        GgufFiles(path)


NARROW = {
    "attention.head_count_kv": 1, "attention.key_length": 40, "attention.value_length": 32,
    "attention.key_length_mla": 24, "attention.value_length_mla": 16, "attention.kv_lora_rank": 32,
    "rope.dimension_count": 8, "expert_count": 4, "expert_used_count": 2, "expert_shared_count": 1,
    "expert_feed_forward_length": 32,
}  # fmt: skip
"""Of latent attention whose keys and values are the narrow vector."""


def test_matrices_of_heads(tmp_path: Path) -> None:
    path, names = tmp_path / "m.gguf", ("blk.0.attn_k_b.weight", "blk.0.attn_v_b.weight")
    rng = np.random.default_rng(0)
    keys, values = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 32, 16), (4, 16, 32)))
    embedding = tensors_of("llama")["token_embd.weight"]

    def files(changes: dict[str, object], *tensors: np.ndarray) -> GgufFiles:
        given = {"token_embd.weight": embedding} | dict(zip(names, tensors, strict=False))
        return GgufFiles(write_gguf(path, "deepseek2", NARROW | changes, given))

    found = files({}, keys, values)
    shown = [found.view(f"model.layers.0.self_attn.{name}_b_proj.weight") for name in "kv"]
    assert np.array_equal(shown[0], np.concatenate([head.T for head in keys]))
    assert np.array_equal(shown[1], np.concatenate(values))
    assert found.config["qk_head_dim"] == 24
    assert (found.config["qk_nope_head_dim"], found.config["v_head_dim"]) == (16, 16)
    assert (found.config["num_key_value_heads"], found.config["_keys_and_values_apart"]) == (4, True)
    with pytest.raises(CheckpointError, match=r"attn_k_b\.weight' has 2 dimensions; a matrix for every head is needed"):
        files({}, keys[0])
    for key, value in (("key_length", 48), ("value_length", 16), ("head_count_kv", 2)):
        with pytest.raises(UnsupportedError, match=f"deepseek2.attention.{key} is {value}"):
            files({f"attention.{key}": value})
