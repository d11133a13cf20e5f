# SPDX-License-Identifier: Apache-2.0
"""The ledger adds up to the byte, the roofline bends where it should, describe speaks plain JSON."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from published_configs import GEMMA_2_2B, GEMMA_3_270M, LLAMA_2_7B, PHI_3_MINI_4K, PYTHIA_70M
from tiny_llama import byte_level_tokenizer, write_tokenizer

from linnet.backends.interface import Limits
from linnet.backends.select import choose_backend
from linnet.errors import ConfigError
from linnet.models import ModelSource, arch_spec, load_model
from linnet.models.inventory import required_tensors
from linnet.plan import describe, output_rows, predict, roofline
from linnet.program.choose_numerics import choose_numerics
from linnet.program.fuse import fuse
from linnet.program.gather_early import gather_early
from linnet.program.plan_buffers import plan_buffers
from linnet.program.traverse import declarations

safetensors = pytest.importorskip("safetensors.numpy", reason="writes its checkpoints with safetensors")

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "gated": LLAMA_2_7B | TINY,
    "capped": GEMMA_2_2B | TINY | {"sliding_window": 8},
    "mixed": GEMMA_3_270M
    | TINY
    | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8},
    "fused": PHI_3_MINI_4K | TINY,
    "parallel": PYTHIA_70M | {name: TINY[name] for name in TINY if name not in ("head_dim", "num_key_value_heads")},
}
LIMITS = Limits(max_tokens=16, max_sequences=3, max_outputs=4, block_size=4, max_blocks_per_sequence=16)


def source_of(directory: Path, config: dict[str, Any]) -> ModelSource:
    tensors = {name: np.zeros(shape, ml_dtypes.bfloat16) for name, shape in required_tensors(arch_spec(config)).items()}
    safetensors.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    return load_model(directory)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_the_ledger_adds_up(name: str, policy: Any, tmp_path: Path) -> None:
    source = source_of(tmp_path, CONFIGS[name])
    ledger = predict(source, LIMITS, policy)
    assert ledger.weight_bytes == source.checkpoint.nbytes == 2 * source.parameters
    element = 4 if policy == "exact" else 2
    attention = source.spec.layers[0].mixer
    assert ledger.kv_bytes_per_token == 2 * 2 * attention.kv_heads * attention.head_size * element
    assert ledger.kv_bytes_per_block == 4 * ledger.kv_bytes_per_token
    windows = [layer.mixer.window for layer in source.spec.layers]
    blocks = [16 if window is None else min(16, -(-(window + 16 - 2) // 4) + 1) for window in windows]  # of a sequence
    assert ledger.kv_bytes * len(windows) == 3 * sum(blocks) * ledger.kv_bytes_per_block
    early = gather_early(choose_numerics(source.program, policy))
    arena = plan_buffers(fuse(early), LIMITS.symbols()).arena_bytes
    assert ledger.arena_bytes == arena >= ledger.logits_bytes == 4 * 50 * 4
    rows = ledger.rows()
    assert rows[-1] == ("total", sum(count for _, count in rows[:-1])) == ("total", ledger.total_bytes)
    assert f"{ledger.total_bytes:,}" in ledger.table()
    linears = sum(linear.shape[0] * linear.shape[1] for linear in source.linears())
    assert ledger.multiplications == linears
    declared = declarations(early)
    late = [op for op in early.ops if op.kind == "linear" and declared[op.outputs[0]].shape[0] == "outputs"]
    assert {op.name.partition(".")[2].partition(".")[2] for op in late} >= {"attention.output", "mlp.up", "mlp.down"}
    shapes = {weight.name: weight.shape for weight in early.weights}
    done = sum(shapes[op.weights[0]][0] * shapes[op.weights[0]][1] for op in late)
    head = 50 * source.spec.hidden_size
    assert ledger.prompt_multiplications == ledger.multiplications - done - head
    embedding = 50 * 32 * 2
    assert ledger.step_weight_bytes == ledger.weight_bytes - (0 if source.spec.tied_head else embedding)


@pytest.mark.parametrize("name", ["capped", "mixed"])
def test_windows_bound_what_is_read(name: str, tmp_path: Path) -> None:
    ledger = predict(source_of(tmp_path, CONFIGS[name]), LIMITS, "fast")
    layer = ledger.kv_layers[0].bytes_per_token
    assert [kv.window for kv in ledger.kv_layers] == [8, None]
    assert ledger.kv_bytes_read(5) == 5 * layer + 5 * layer
    assert ledger.kv_bytes_read(60) == 8 * layer + 60 * layer


def test_roofline(tmp_path: Path) -> None:
    ledger = predict(source_of(tmp_path, CONFIGS["gated"]), LIMITS, "fast")
    slow_memory = roofline(ledger, bandwidth_bytes_per_s=1e3, peak_operations_per_s=1e15)
    assert slow_memory.decode.limited_by == "memory"
    moved = ledger.step_weight_bytes + ledger.kv_bytes_per_token
    assert slow_memory.decode.tokens_per_s == pytest.approx(1e3 / moved)
    slow_sums = roofline(ledger, bandwidth_bytes_per_s=1e15, peak_operations_per_s=1e3)
    assert slow_sums.decode.limited_by == slow_sums.prefill.limited_by == "compute"
    operations = 2 * ledger.multiplications + 4 * ledger.attention_width
    assert slow_sums.decode.tokens_per_s == pytest.approx(1e3 / operations)
    one = roofline(ledger, 1e9, 1e12, context_tokens=32).decode.tokens_per_s
    many = roofline(ledger, 1e9, 1e12, context_tokens=32, sequences=16).decode.tokens_per_s
    assert one < many <= 16 * one, "a batch shares the weights it reads"
    assert roofline(ledger, 1e9, 1e12, context_tokens=32).prefill.tokens_per_s > one
    with pytest.raises(ConfigError, match="bandwidth_bytes_per_s"):
        roofline(ledger, 0, 1e12)


def test_describe_is_plain_json(tmp_path: Path) -> None:
    facts = describe(source_of(tmp_path, CONFIGS["capped"]), policy="exact", context=32, sequences=2)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["linears"] == {"bf16": 14}
    assert facts["head"] == "bf16, tied to the embedding"
    assert facts["sliding_window"] == "8 tokens in 1 of 2 layers"
    memory = facts["predicted_memory"]
    assert memory["total_bytes"] == memory["weight_bytes"] + memory["arena_bytes"] + memory["kv_bytes"]
    assert memory["kv_bytes"] == 2 * 32 * memory["kv_per_token_bytes"]


def test_describe_reaches_as_far_as_the_family_can(tmp_path: Path) -> None:
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = CONFIGS["fused"] | {"rope_scaling": rope, "original_max_position_embeddings": 16}
    source = source_of(tmp_path, config)
    facts = describe(source)
    assert (facts["context_tokens"], facts["longest_context_tokens"]) == (16, 64)
    assert facts["predicted_memory"]["context_tokens"] == 16
    longer = describe(source, context=40)
    assert (longer["context_tokens"], longer["predicted_memory"]["context_tokens"]) == (64, 40)
    assert source.for_context(16) is source
    assert source.for_context(17).spec.layers[0].mixer.rope != source.spec.layers[0].mixer.rope
    with pytest.raises(ConfigError, match="64"):
        source.for_context(65)


def test_output_rows() -> None:
    assert output_rows(width=512, token_budget=512, sequences=64) == 512
    assert output_rows(width=151_936, token_budget=512, sequences=64) == 110
    assert output_rows(width=151_936, token_budget=512, sequences=256) == 256
    assert output_rows(width=1 << 24, token_budget=512, sequences=1) == 1


def test_describe_refuses_what_cannot_be(tmp_path: Path) -> None:
    source = source_of(tmp_path, CONFIGS["gated"])
    with pytest.raises(ConfigError, match="1 to 64"):
        describe(source, context=65)
    with pytest.raises(ConfigError, match="sequences"):
        describe(source, sequences=0)


@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_the_kv_is_what_the_backend_stores(policy: Any, tmp_path: Path) -> None:
    """Heads of 8: the native kernels fill lanes of 16, the reference does not."""
    source = source_of(tmp_path, CONFIGS["gated"])
    limits = Limits(max_tokens=16, max_sequences=3, max_outputs=4, block_size=16, max_blocks_per_sequence=4)
    declared = predict(source, limits, policy).kv_bytes_per_block
    for name in ("cpu", "reference"):
        backend = choose_backend(name)
        (stored,) = backend.prepare(source, policy, limits).kv_bytes_per_block
        assert predict(source, limits, policy, backend).kv_bytes_per_block == stored >= declared
    assert describe(source, policy)["predicted_memory"]["kv_per_token_bytes"] * 16 >= declared


FILL = """
import sys
from pathlib import Path
from linnet.api import LLM, SamplingParams
from linnet.backends.select import choose_backend
from linnet.engine import limits_of
from linnet.plan import predict
with LLM(sys.argv[1], num_blocks=None, max_model_len=2048, max_sequences=16, kv_bytes=1 << 30, backend="cpu") as llm:
    ledger = predict(llm.source, limits_of(llm.facts.scheduling), "fast", choose_backend("cpu"))
    assert llm.kv_bytes == ledger.kv_bytes > 256 << 20, (llm.kv_bytes, ledger.kv_bytes)
    llm.generate([[index, index + 1] * 40 for index in range(16)], SamplingParams(max_tokens=2, ignore_eos=True))
    llm._engine.states.memory[::4096] = 0  # every sequence at its longest context
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # getrusage's survives exec
    print(int(peak.split()[1]) * 1024, ledger.resident_bytes)
"""


def test_the_predicted_size_is_the_size(tmp_path: Path) -> None:
    wide = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 80, "max_position_embeddings": 2048}
    source_of(tmp_path, CONFIGS["gated"] | wide)
    write_tokenizer(tmp_path, byte_level_tokenizer())
    done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    measured, predicted = map(int, done.stdout.split())
    assert 0.9 * predicted <= measured <= 1.1 * predicted
