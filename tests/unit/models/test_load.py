# SPDX-License-Identifier: Apache-2.0
"""load_model: everything checked before any weight is read; fused, packed, tied and bare checkpoints."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from published_configs import GEMMA_2_2B, LLAMA_2_7B, PHI_3_MINI_4K, PYTHIA_70M

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats import Checkpoint
from linnet.models import arch_spec, load_model
from linnet.models.inventory import required_tensors
from linnet.program.program import WeightRef
from linnet.schemes import PackedWeight, parse_scheme, quantize_weight
from linnet.schemes.scheme import LinearScheme

safetensors = pytest.importorskip("safetensors.numpy", reason="writes its checkpoints with safetensors")

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
LLAMA = LLAMA_2_7B | TINY
PHI = PHI_3_MINI_4K | TINY
NEOX = PYTHIA_70M | {name: value for name, value in TINY.items() if name != "num_key_value_heads"}


def tensors_of(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = required_tensors(arch_spec(config))
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(directory: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    safetensors.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_weights_come_back_as_stored(tmp_path: Path) -> None:
    tensors = tensors_of(LLAMA)
    source = load_model(write(tmp_path, LLAMA, tensors))
    assert source.warnings == ()
    assert source.parameters == sum(tensor.size for tensor in tensors.values())
    for weight in source.program.weights:
        found = source.weight(weight.ref)
        assert isinstance(found, np.ndarray)
        assert found.shape == weight.shape
        np.testing.assert_array_equal(found, tensors[weight.ref.checkpoint_name])
        assert source.stored_bytes(weight.ref) == found.nbytes


def test_an_open_checkpoint_is_taken_too(tmp_path: Path) -> None:
    with Checkpoint.open(write(tmp_path, LLAMA, tensors_of(LLAMA))) as checkpoint:
        assert load_model(checkpoint).checkpoint is checkpoint


def test_linears_once_each_in_walking_order(tmp_path: Path) -> None:
    source = load_model(write(tmp_path, PHI, tensors_of(PHI)))
    linears = source.linears()
    assert [linear.module for linear in linears[:4]] == [
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.gate_up_proj",
        "model.layers.0.mlp.down_proj",
    ]
    qkv, output, gate_up, down = linears[:4]
    assert qkv.operations == tuple(f"layers.0.attention.{part}" for part in ("query", "key", "value"))
    assert (qkv.shape, qkv.tap, qkv.segment) == ((64, 32), "layers.0.attention.norm", 1)
    assert (output.tap, gate_up.tap) == ("layers.0.attention.context", "layers.0.mlp.norm")
    assert (down.tap, gate_up.operations) == ("layers.0.mlp.activation", ("layers.0.mlp.gate", "layers.0.mlp.up"))
    head = linears[-1]
    assert (head.module, head.kind, head.tap) == ("lm_head", "head", "head.norm")
    assert len(linears) == 2 * 4 + 1


def test_a_tied_head_is_a_linear_whose_weight_is_the_embedding(tmp_path: Path) -> None:
    config = LLAMA | {"tie_word_embeddings": True}
    source = load_model(write(tmp_path, config, tensors_of(config)))
    head = source.linears()[-1]
    assert (head.module, head.tensor, head.kind) == ("lm_head", "model.embed_tokens.weight", "head")
    assert [op.weights for op in source.program.ops if op.kind == "logits"] == [("embed.weight",)]


def test_rows_of_fused_tensors(tmp_path: Path) -> None:
    tensors = tensors_of(NEOX)
    source = load_model(write(tmp_path, NEOX, tensors))
    weights = {weight.name: weight for weight in source.program.weights}
    fused = tensors["gpt_neox.layers.0.attention.query_key_value.weight"].reshape(4, 3, 8, 32)
    bias = tensors["gpt_neox.layers.0.attention.query_key_value.bias"].reshape(4, 3, 8)
    for part, name in enumerate(("query", "key", "value")):
        ref = weights[f"layers.0.attention.{name}.weight"].ref
        np.testing.assert_array_equal(source.weight(ref), fused[:, part].reshape(32, 32))
        assert source.stored_bytes(ref) == 32 * 32 * 4
        np.testing.assert_array_equal(
            source.weight(weights[f"layers.0.attention.{name}.bias"].ref), bias[:, part].ravel()
        )


def test_transposed_references(tmp_path: Path) -> None:
    tensors = tensors_of(LLAMA)
    source = load_model(write(tmp_path, LLAMA, tensors))
    name = "model.layers.0.mlp.down_proj.weight"
    found = source.weight(WeightRef(name, rows=((0, 3), (5, 6)), transposed=True))
    np.testing.assert_array_equal(found, tensors[name][[0, 1, 2, 5]].T)


def pack(tensors: dict[str, np.ndarray], module: str, scheme: LinearScheme) -> np.ndarray:
    """Replace a dense weight by its packed arrays; returns what it now means."""
    packed = quantize_weight(tensors.pop(f"{module}.weight"), scheme)
    tensors.update({f"{module}.{name}": np.ascontiguousarray(array) for name, array in packed.arrays.items()})
    return packed.dequantize()


def quantised(config: dict[str, Any], targets: list[str]) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True, "dynamic": False}
    group = {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}
    section = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    return config | {"quantization_config": section}


def test_packed_fused_tensors_are_sliced_by_rows(tmp_path: Path) -> None:
    scheme = parse_scheme("W4A16-g16").scheme_map().resolve(["x"])["x"]
    assert scheme is not None
    tensors = tensors_of(PHI)
    module = "model.layers.1.self_attn.qkv_proj"
    meaning = pack(tensors, module, scheme)
    source = load_model(write(tmp_path, quantised(PHI, [module]), tensors))
    weights = {weight.name: weight for weight in source.program.weights}
    for name, rows in (("query", slice(0, 32)), ("key", slice(32, 48)), ("value", slice(48, 64))):
        weight = weights[f"layers.1.attention.{name}.weight"]
        assert isinstance(weight.dtype, LinearScheme)
        assert weight.dtype.weight.element == "int4"
        found = source.weight(weight.ref)
        assert isinstance(found, PackedWeight)
        np.testing.assert_array_equal(found.dequantize(), meaning[rows])
    assert weights["layers.0.attention.query.weight"].dtype == "fp32"
    assert [linear.module for linear in source.linears()].count(module) == 1


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight is missing"),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight is missing"),
        (lambda t: t.update({"model.norm.weight": np.ones(31, np.float32)}), r"model.norm.weight has shape \[31\]"),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight": t["model.layers.0.mlp.up_proj.weight"].T.copy()}),
            r"model.layers.0.mlp.up_proj.weight has shape \[32, 64\]",
        ),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}), "q_proj.bias"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.ones(4, np.float32)}), "model.layers.2.mlp"),
        (lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": np.ones(8, np.float32)}), "q_norm"),
        (lambda t: t.update({"lm_head.bias": np.ones(50, np.float32)}), "lm_head.bias"),
    ],
)
def test_tensors_that_do_not_fit_the_config(tmp_path: Path, break_it: Any, named: str) -> None:
    tensors = tensors_of(LLAMA)
    break_it(tensors)
    with pytest.raises(CheckpointError, match=named):
        load_model(write(tmp_path, LLAMA, tensors))


def test_a_config_with_more_layers_than_the_files_names_a_few_and_counts_the_rest(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        load_model(write(tmp_path, LLAMA | {"num_hidden_layers": 4096}, tensors_of(LLAMA)))


def test_leftovers_that_cannot_matter(tmp_path: Path) -> None:
    """Buffers of rotary embeddings (K7), and what no computation reads."""
    tensors = tensors_of(LLAMA)
    for name in ("inv_freq", "cos_cached", "sin_cached"):
        tensors[f"model.layers.0.self_attn.rotary_emb.{name}"] = np.ones(4, np.float32)
    tensors["model.rotary_emb.cos_cached"] = np.ones((64, 8), np.float32)
    assert load_model(write(tmp_path, LLAMA, tensors)).warnings == ()
    tensors["model.layers.0.self_attn.o_proj.bias"] = np.zeros(32, np.float32)
    tensors["score.weight"] = np.ones((2, 32), np.float32)
    tensors["model.layers.0.self_attn.k_scale"] = np.ones(1, np.float32)
    warnings = load_model(write(tmp_path, LLAMA, tensors)).warnings
    assert len(warnings) == 2
    assert "score.weight" in warnings[0]
    assert "o_proj.bias (all zeros)" in warnings[0]
    assert "k_scale" in warnings[1]


def test_biases_that_the_files_leave_out(tmp_path: Path) -> None:
    """Zero where some of a kind are stored (K10); none at all is an error."""
    config = LLAMA | {"attention_bias": True, "mlp_bias": True}
    tensors = tensors_of(config)
    del tensors["model.layers.0.self_attn.o_proj.bias"], tensors["model.layers.1.mlp.up_proj.bias"]
    source = load_model(write(tmp_path, config, tensors))
    (warning,) = source.warnings
    assert "layers.0.self_attn.o_proj.bias" in warning
    assert "layers.1.mlp.up_proj.bias" in warning
    ops = {op.name: op for op in source.program.ops}
    assert len(ops["layers.0.attention.output"].weights) == 1
    assert len(ops["layers.1.attention.output"].weights) == 2
    for name in [name for name in tensors if "self_attn" in name and name.endswith("bias")]:
        del tensors[name]
    with pytest.raises(CheckpointError, match=r"q_proj\.bias is missing"):
        load_model(write(tmp_path, config, tensors))


def test_a_prefix_that_nobody_knows_is_named(tmp_path: Path) -> None:
    tensors = {f"student.{name}": tensor for name, tensor in tensors_of(LLAMA).items()}
    with pytest.raises(CheckpointError, match=r"begin with 'student\.model\.'") as caught:
        load_model(write(tmp_path, LLAMA, tensors))
    assert "base_model.model." in str(caught.value)


def test_a_drafting_head_does_not_look_like_a_prefix(tmp_path: Path) -> None:
    tensors = tensors_of(LLAMA)
    tensors["mtp.layers.0.input_layernorm.weight"] = np.ones(32, np.float32)
    (warning,) = load_model(write(tmp_path, LLAMA, tensors)).warnings
    assert "mtp.layers.0" in warning


def test_unreadable_types_are_refused_by_name(tmp_path: Path) -> None:
    tensors = tensors_of(LLAMA)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight"):
        load_model(write(tmp_path, LLAMA, tensors))


def test_sixteen_bit_types_are_kept(tmp_path: Path) -> None:
    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors_of(LLAMA).items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float16)
    source = load_model(write(tmp_path, LLAMA, tensors))
    kinds = {weight.name: weight.dtype for weight in source.program.weights}
    assert (kinds["head.norm.weight"], kinds["layers.0.mlp.up.weight"]) == ("fp16", "bf16")


def eight_bits() -> LinearScheme:
    scheme = parse_scheme("W8A16").scheme_map().resolve(["x"])["x"]
    assert scheme is not None
    return scheme


def tables_in_eight_bits() -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
    section = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["re:.*lm_head$", "re:.*embed_tokens$"], "weights": weights}},
    }
    return {"quantization_config": section}


class TestTiedHeads:
    """The files decide when config.json and they disagree (K15)."""

    config = GEMMA_2_2B | TINY | {"head_dim": 8, "tie_word_embeddings": True}

    def test_equal_copies_are_tied(self, tmp_path: Path) -> None:
        tensors = tensors_of(self.config)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        source = load_model(write(tmp_path, self.config, tensors))
        assert source.spec.tied_head
        assert source.warnings == ()

    def test_different_values_are_used_with_a_warning(self, tmp_path: Path) -> None:
        tensors = tensors_of(self.config)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
        source = load_model(write(tmp_path, self.config, tensors))
        assert not source.spec.tied_head
        assert "lm_head" in source.warnings[0]

    def test_a_packed_head_is_used(self, tmp_path: Path) -> None:
        tensors = tensors_of(self.config)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        meaning = pack(tensors, "lm_head", eight_bits())
        source = load_model(write(tmp_path, self.config | tables_in_eight_bits(), tensors))
        head = next(op for op in source.program.ops if op.kind == "logits").weights[0]
        weight = next(weight for weight in source.program.weights if weight.name == head)
        assert weight.ref.checkpoint_name == "lm_head.weight"
        found = source.weight(weight.ref)
        assert isinstance(found, PackedWeight)
        np.testing.assert_array_equal(found.dequantize(), meaning)

    def test_a_quantised_embedding_is_both(self, tmp_path: Path) -> None:
        tensors = tensors_of(self.config)
        pack(tensors, "model.embed_tokens", eight_bits())
        source = load_model(write(tmp_path, self.config | tables_in_eight_bits(), tensors))
        assert source.spec.tied_head
        assert source.warnings == ()
        assert {op.weights for op in source.program.ops if op.kind in ("embed", "logits")} == {("embed.weight",)}
        assert isinstance(source.program.weights[0].dtype, LinearScheme)

    def test_a_quantised_head_alone_is_both(self, tmp_path: Path) -> None:
        tensors = tensors_of(self.config)
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
        pack(tensors, "lm_head", eight_bits())
        source = load_model(write(tmp_path, self.config | tables_in_eight_bits(), tensors))
        assert source.spec.tied_head
        assert source.program.weights[0].ref.checkpoint_name == "lm_head.weight"

    def test_a_dense_head_that_repeats_a_quantised_embedding_is_dropped(self, tmp_path: Path) -> None:
        tensors = tensors_of(self.config)
        tensors["lm_head.weight"] = pack(tensors, "model.embed_tokens", eight_bits())
        source = load_model(write(tmp_path, self.config | tables_in_eight_bits(), tensors))
        assert source.spec.tied_head
        (warning,) = source.warnings
        assert "lm_head" in warning
        assert "dropped" in warning

    def test_a_dense_head_beside_a_quantised_embedding_is_used(self, tmp_path: Path) -> None:
        tensors = tensors_of(self.config)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        pack(tensors, "model.embed_tokens", eight_bits())
        source = load_model(write(tmp_path, self.config | tables_in_eight_bits(), tensors))
        assert not source.spec.tied_head
        assert "lm_head" in source.warnings[0]

    def test_two_quantised_tables_that_are_equal_are_one(self, tmp_path: Path) -> None:
        tensors = tensors_of(self.config)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        pack(tensors, "model.embed_tokens", eight_bits())
        pack(tensors, "lm_head", eight_bits())
        source = load_model(write(tmp_path, self.config | tables_in_eight_bits(), tensors))
        assert source.spec.tied_head
        assert source.warnings == ()

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
    def test_one_module_dense_and_quantised(self, tied: bool, module: str, tmp_path: Path) -> None:
        tensors = tensors_of(self.config | {"tie_word_embeddings": False})
        if tied and module == "model.embed_tokens":
            del tensors["lm_head.weight"]
        dense = tensors[f"{module}.weight"].copy()
        meaning = pack(tensors, module, eight_bits())
        tensors[f"{module}.weight"] = dense
        config = self.config | tables_in_eight_bits() | {"tie_word_embeddings": tied}
        source = load_model(write(tmp_path, config, tensors))
        (dropped,) = (warning for warning in source.warnings if "dropped" in warning)
        assert module in dropped
        weight = next(w for w in source.program.weights if w.ref.checkpoint_name == f"{module}.weight")
        found = source.weight(weight.ref)
        assert isinstance(found, PackedWeight)
        np.testing.assert_array_equal(found.dequantize(), meaning)
        tensors[f"{module}.weight"] = dense[::-1].copy()
        with pytest.raises(CheckpointError, match=module):
            load_model(write(tmp_path, config, tensors))

    def test_only_the_head_is_there(self, tmp_path: Path) -> None:
        tensors = tensors_of(self.config)
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
        source = load_model(write(tmp_path, self.config, tensors))
        assert source.program.ops[0].weights == ("embed.weight",)
        assert source.program.weights[0].ref.checkpoint_name == "lm_head.weight"
