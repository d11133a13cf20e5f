# SPDX-License-Identifier: Apache-2.0
"""Ten things a person may have on a disk: who reads them, why not, and what to type instead."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from linnet import demo
from linnet.api import LLM
from linnet.cli.doctoring import examine
from linnet.compress import compress, make_recipe
from linnet.errors import LinnetError
from linnet.formats import Checkpoint
from linnet.formats.convert import parse_target, to_directory, to_gguf
from linnet.formats.programs import Model, identify, verdicts
from linnet.formats.programs.described import GgufFacts
from linnet.schemes import parse_scheme
from linnet.text.gguf_vocabulary import gguf_vocabulary

PROGRAMS = ["Linnet", "transformers", "vLLM", "llama.cpp"]


def answers(path: Path) -> list[bool]:
    found = examine(path)
    assert [verdict.program for verdict in found] == PROGRAMS
    assert all(verdict.why for verdict in found)
    return [verdict.loads for verdict in found]


def with_config(path: Path, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return path


@pytest.mark.parametrize(
    ("scheme", "loads"),
    [
        ("W4A16-g32", [True, True, True, False]),
        ("W3A16-g32", [True, True, False, False]),
        ("W8A8", [True, True, True, False]),
        ("NF4", [True, False, False, False]),
        ("W4A16-g32-head8", [True, False, False, False]),
    ],
)
def test_what_compress_makes(tmp_path: Path, scheme: str, loads: list[bool]) -> None:
    compress(demo.model_directory(), tmp_path / "out", make_recipe(scheme, "rtn"))
    assert answers(tmp_path / "out") == loads


@pytest.mark.parametrize(
    ("scheme", "forms"),
    [
        ("W3A16-g32", {"vLLM": "awq"}),
        ("NF4", {"transformers": "bitsandbytes", "vLLM": "bitsandbytes"}),
        ("W4A16-g32-head8", {"transformers": "gptq", "vLLM": "gptq"}),
        ("TERNARY", {"transformers": "gptq", "vLLM": "awq"}),
    ],
)
def test_a_form_that_another_reads_with_the_same_codes(tmp_path: Path, scheme: str, forms: dict[str, str]) -> None:
    path = tmp_path / "small"
    compress(demo.model_directory(), path, make_recipe(scheme, "rtn"))
    for program, form in forms.items():
        at = PROGRAMS.index(program)
        assert examine(path)[at].instead == f"linnet convert {path} small-{form} --to {form}"
        made = tmp_path / f"{program}-{form}"
        with Checkpoint.open(path) as checkpoint:
            to_directory(checkpoint, made, parse_target(form), {}, exact=scheme != "W4A16-g32-head8")
        found = examine(made)
        assert found[0].loads
        assert found[at].loads


def test_a_dense_directory_and_the_command_that_makes_it_a_gguf() -> None:
    assert answers(demo.model_directory()) == [True, True, True, False]
    llama_cpp = examine(demo.model_directory())[-1]
    assert llama_cpp.instead == f"linnet convert {demo.model_directory()} model.gguf --to gguf:Q8_0"


@pytest.mark.parametrize("method", ["aqlm", "quip", "exl2"])
def test_a_quantisation_nobody_here_reads_is_named(tmp_path: Path, method: str) -> None:
    path = with_config(tmp_path / "model", quantization_config={"quant_method": method})
    found = examine(path)
    assert not any(verdict.loads for verdict in found)
    assert method in found[0].why.lower()
    assert method in found[2].why


def test_an_unknown_architecture_is_linnets_limit_alone(tmp_path: Path) -> None:
    path = with_config(tmp_path / "model", architectures=["JambaForCausalLM"], model_type="jamba")
    (path / "model.safetensors").write_bytes((demo.model_directory() / "model.safetensors").read_bytes())
    linnet, transformers, vllm, llama_cpp = examine(path)
    assert "JambaForCausalLM" in linnet.why
    assert (linnet.loads, transformers.loads, vllm.loads, llama_cpp.loads) == (False, True, True, False)


def test_what_is_no_model_is_said_as_everywhere(tmp_path: Path) -> None:
    with pytest.raises(LinnetError, match="empty directory"):
        examine(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(LinnetError, match="pickle"):
        examine(tmp_path / "model.bin")


FILE = GgufFacts(
    tokenizer="gpt2",
    tokens=True,
    merges=True,
    cut="gpt-2",
    vocabulary=9,
    types=frozenset({"F32", "Q4_K"}),
    keys=frozenset({"llama.attention.head_count_kv"}),
)
ASSUMED_IN = {
    "head_dim": 128,
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000.0,
    "new_decoder_architecture": False,
    "num_kv_heads": 1,
    "ffn_hidden_size": 192,
}
"""What some families' classes take without reading it."""
CONFIG = {"vocab_size": 9, "hidden_size": 48, "num_hidden_layers": 2, "attention_bias": False, "rope_theta": 10000.0}


def test_gguf_is_llama_cpps_own() -> None:
    found = verdicts(Model("gguf", "gguf", "llama", {}, file=FILE, config=CONFIG), "m.gguf")
    assert [verdict.loads for verdict in found] == [True, False, True]
    assert "in pairs" in found[1].why


@pytest.mark.parametrize(
    ("architecture", "changes", "config", "words"),
    [
        ("olmo2", {}, {}, "the architecture 'olmo2'"),
        ("llama", {"parts": 3}, {}, "one file of a set"),
        ("llama", {"types": frozenset({"Q8_K"})}, {}, "the type Q8_K"),
        ("llama", {"vocabulary": 8}, {}, "says 8; the embedding has 9 rows"),
        ("llama", {"vocabulary": None}, {}, "says nothing of it"),
        ("llama", {"keys": frozenset()}, {}, "ggml's order"),
        ("llama", {}, {"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling from a GGUF file: yarn here, none there"),
        ("llama", {}, {"attention_bias": True}, "attention_bias"),
        ("phi3", {}, {}, "padding_token_id"),
        ("qwen3", {}, {"head_dim": 64}, "64 here, 128 there"),
        ("gemma3", {}, {"layer_types": ["full_attention"] * 2}, "one order of layers here"),
        ("falcon", {}, {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ],
)
def test_files_that_transformers_reads_another_way(
    architecture: str, changes: dict[str, Any], config: dict[str, Any], words: str
) -> None:
    model = Model("gguf", "gguf", architecture, {}, file=replace(FILE, **changes), config=CONFIG | ASSUMED_IN | config)
    found = verdicts(model, "a/m.gguf")[0]
    assert found.loads is False
    assert words in found.why
    assert found.instead == "linnet convert a/m.gguf m-dense --to dense"


def test_whether_transformers_reads_all_is_not_checked_of_what_linnet_does_not_read() -> None:
    found = verdicts(Model("gguf", "gguf", "lfm2", {}, file=FILE), "m.gguf")[0]
    assert found.loads is None
    assert found.instead is None


@pytest.mark.parametrize(
    ("architecture", "changes", "words"),
    [
        ("llama", {"first": "m-00001-of-00002.gguf"}, "m-00001-of-00002.gguf"),
        ("nobodys", {}, "no architecture 'nobodys'"),
        ("llama", {"types": frozenset({"F32", "I8"})}, "I8"),
        ("llama", {"tokenizer": None}, "without a tokenizer"),
        ("llama", {"tokenizer": "nobodys"}, "tokenizer.ggml.model 'nobodys'"),
        ("llama", {"tokens": False}, "no tokenizer.ggml.tokens"),
        ("llama", {"merges": False}, "no tokenizer.ggml.merges"),
        ("llama", {"cut": "nobodys"}, "tokenizer.ggml.pre 'nobodys'"),
        (
            "olmoe",
            {"shapes": {"token_embd.weight": (9, 48), "blk.0.attn_k_norm.weight": (16,)}},
            "blk.0.attn_k_norm.weight to be [48], not [16]",
        ),
        ("gptneox", {"shapes": {"token_embd.weight": (9, 48)}}, "blk.0.attn_qkv.bias in every layer"),
        ("exaone4", {"layers": 30, "keys": frozenset({"exaone4.attention.sliding_window"})}, "64 layers alone, not 30"),
        ("command-r", {"layers": 40, "shapes": {"blk.0.attn_q_norm.weight": (8, 6)}}, "from 64 layers on"),
        ("command-r", {"layers": 64}, "from 64 layers on"),
        ("deepseek2", {"layers": 30}, "at 26 or 27 layers alone, not 30"),
    ],
)
def test_files_that_llama_cpp_does_not_open(architecture: str, changes: dict[str, Any], words: str) -> None:
    llama_cpp = verdicts(Model("gguf", "gguf", architecture, {}, file=replace(FILE, **changes)), "m.gguf")[-1]
    assert llama_cpp.loads is False
    assert words in llama_cpp.why


@pytest.mark.parametrize(
    ("architecture", "layers", "key"),
    [
        ("exaone4", 64, "attention.sliding_window"),
        ("exaone4", 30, "context_length"),
        ("command-r", 40, "context_length"),
        ("deepseek2", 27, "context_length"),
        ("deepseek2", 61, "attention.q_lora_rank"),
    ],
)
def test_members_that_llama_cpp_tells_by_their_layers(architecture: str, layers: int, key: str) -> None:
    file = replace(FILE, layers=layers, keys=frozenset({f"{architecture}.{key}"}))
    assert verdicts(Model("gguf", "gguf", architecture, {}, file=file), "m.gguf")[-1].loads


def test_what_was_not_checked_is_said() -> None:
    damaged = verdicts(Model("gguf", "gguf", "llama", {}, file=FILE, damaged=True), "m.gguf")[-1]
    gpt_oss = verdicts(Model("directory", "mxfp4", "gpt_oss", {}), "m")[1]
    modelopt = verdicts(Model("directory", "modelopt", "llama", {}), "m")[1]
    torchao = verdicts(Model("directory", "torchao", "llama", {}), "m")
    for verdict in (damaged, gpt_oss, modelopt, *torchao[:2]):
        assert verdict.loads is None
        assert "not checked" in verdict.why
        assert verdict.instead is None


def test_rotations_at_run_time_are_said(tmp_path: Path) -> None:
    """Whatever layout they lie in: transformers would compute something else without a word."""
    group = {"type": "hadamard", "head_dim": 128, "apply": [{"targets": ["re:.*down_proj$"], "location": "input"}]}
    for method, reads in (("linnet", False), ("compressed-tensors", True)):
        record = {"quant_method": method, "transform_config": {"config_groups": {"a": group}}}
        model = identify(with_config(tmp_path / method, quantization_config=record), {}, None)
        assert model is not None
        transformers, vllm, llama_cpp = verdicts(model, "m")
        assert (transformers.loads, vllm.loads, llama_cpp.loads) == (False, reads, False)
        assert transformers.instead == "linnet compress ORIGINAL -o OUTPUT --scheme W4A16"
        assert "rotations at run time" in llama_cpp.why
    offline = {"type": "hadamard", "apply": [{"targets": ["q_proj"], "location": "weight_input"}]}
    record = {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"a": offline}}}
    model = identify(with_config(tmp_path / "offline", quantization_config=record), {}, None)
    assert model is not None
    assert model.own_words == ""


def test_zero_points_are_said() -> None:
    schemes = {"layers.0.up": parse_scheme("W4A16-g32-asym").linear}
    transformers, vllm, _ = verdicts(Model("directory", "compressed-tensors", "llama", schemes), "m")
    assert "dequantize=True" in transformers.why
    assert vllm.loads


def test_what_vllm_has_no_kernel_for_on_a_cpu_is_said() -> None:
    wanted = {"W4A16-g32": "on CPUs and GPUs", "W8A16": "on a GPU only: int8 weights", "W8A8": "on CPUs and GPUs"}
    for scheme, words in wanted.items():
        model = Model("directory", "compressed-tensors", "llama", {"layers.0.up": parse_scheme(scheme).linear})
        assert words in verdicts(model, "m")[1].why


def test_records_that_vllm_refuses_are_said() -> None:
    schemes = {"layers.0.up": parse_scheme("W4A16-g32").linear}
    for method, record in (
        ("compressed-tensors", {"kv_cache_scheme": {"type": "int", "num_bits": 8, "strategy": "token"}}),
        ("awq", {"version": "GEMV"}),
        ("mxfp4", {}),
    ):
        verdict = verdicts(Model("directory", method, "llama", schemes, record=record), "m")[1]
        assert not verdict.loads, method
        assert verdict.instead


def test_what_lies_as_in_a_gguf_file_is_read_here_alone() -> None:
    """Its tensors have names that the family has nowhere else."""
    model = identify(demo.model_directory(), {}, {"model_type": "deepseek_v2", "_keys_and_values_apart": True})
    assert model is not None
    for verdict in verdicts(model, "DIR")[:2]:
        assert not verdict.loads
        assert "as in the GGUF file that it was made of (_keys_and_values_apart)" in verdict.why
        assert verdict.instead is not None


def blind(path: Path, **keys: Any) -> Path:
    """The bundled model as a GGUF file whose tokenizer has other keys; None: without."""
    with Checkpoint.open(demo.model_directory()) as checkpoint:
        told = gguf_vocabulary(checkpoint.path, checkpoint.config["vocab_size"])
        told |= {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
        to_gguf(checkpoint, path, "Q8_0", {name: value for name, value in told.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model": "nobodys"}, "supported are gpt2"),
        ({"model": None}, "no tokenizer in the metadata"),
        ({"pre": "nobodys"}, "a way of cutting text that is not known here"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
    ],
)
def test_of_a_tokenizer_it_says_what_a_server_would_say(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    path = blind(tmp_path / "m.gguf", **keys)
    linnet = examine(path)[0]
    assert linnet.loads is False
    assert words in linnet.why
    with pytest.raises(LinnetError) as refused:
        LLM(path)
    assert str(refused.value) == linnet.why


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(demo.model_directory() / name, tmp_path)
    linnet, *others = examine(tmp_path)
    assert "no tokenizer found" in linnet.why
    assert [linnet.loads, *(verdict.loads for verdict in others)] == [False, True, True, False]
