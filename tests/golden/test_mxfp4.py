# SPDX-License-Identifier: Apache-2.0
"""gpt-oss' experts in MXFP4 mean what transformers makes of them, expert by expert. Needs torch."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
integration = pytest.importorskip("transformers.integrations.mxfp4")

import stepping  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from test_families import DECODE, LIMITS, TOLERANCE, backend_named, worst_difference  # noqa: E402
from test_foreign_mutants import MOST_BYTES, MUTANTS, change_tensor  # noqa: E402
from tiny_models import TINY_MODELS, reference_logits  # noqa: E402
from tiny_models import write as write_model  # noqa: E402

from linnet.cli.doctoring import examine  # noqa: E402
from linnet.errors import CheckpointError, LinnetError, UnsupportedError  # noqa: E402
from linnet.formats import Checkpoint  # noqa: E402
from linnet.formats.convert.source import list_tensors  # noqa: E402
from linnet.models import load_model  # noqa: E402
from linnet.schemes import PackedWeight  # noqa: E402

EXPERTS, OUTPUTS, GROUPS = 4, 24, 3
MODULE = "model.layers.0.mlp.experts.gate_up_proj"


def tensors(seed: int = 1) -> dict[str, Any]:
    """Every code, and exponents from the least to the greatest that bf16 holds with a code of 6."""
    torch.manual_seed(seed)
    return {
        f"{MODULE}_blocks": torch.randint(0, 256, (EXPERTS, OUTPUTS, GROUPS, 16), dtype=torch.uint8),
        f"{MODULE}_scales": torch.randint(0, 253, (EXPERTS, OUTPUTS, GROUPS), dtype=torch.uint8),
        f"{MODULE}_bias": torch.randn(EXPERTS, OUTPUTS).bfloat16(),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(8, 96).bfloat16(),
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    path.mkdir()
    record = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    config = {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "quantization_config": record}
    (path / "config.json").write_text(json.dumps(config))
    save_file(content, path / "model.safetensors")
    return path


def test_every_expert_means_what_transformers_makes_of_it(tmp_path: Path) -> None:
    content = tensors()
    blocks, scales = content[f"{MODULE}_blocks"], content[f"{MODULE}_scales"]
    wanted = integration.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    with Checkpoint.open(write(tmp_path / "m", content)) as checkpoint:
        assert checkpoint.shape_of(MODULE) == (EXPERTS * OUTPUTS, GROUPS * 32)
        assert set(checkpoint.schemes()) == {MODULE}
        weight = checkpoint.linear(MODULE)
        assert isinstance(weight, PackedWeight)
        assert not weight.arrays["weight_packed"].flags.owndata
        for expert in range(EXPERTS):
            own = weight.take_rows([(expert * OUTPUTS, (expert + 1) * OUTPUTS)])
            assert np.shares_memory(own.arrays["weight_packed"], weight.arrays["weight_packed"])
            assert np.array_equal(own.dequantize(), wanted[expert].T.numpy())
        stored = checkpoint.stored_bytes(MODULE)
        assert stored == blocks.nbytes + scales.nbytes
        with pytest.raises(UnsupportedError, match="holds the experts of a mixture, which are not converted"):
            list_tensors(checkpoint)


def test_in_16_bits_too_where_bf16_reaches(tmp_path: Path) -> None:
    content = tensors()
    content[f"{MODULE}_scales"] = content[f"{MODULE}_scales"].clamp(8)
    wanted = integration.convert_moe_packed_tensors(*list(content.values())[:2], dtype=torch.bfloat16)
    with Checkpoint.open(write(tmp_path / "m", content)) as checkpoint:
        found = checkpoint.linear(MODULE)
        assert isinstance(found, PackedWeight)
        assert np.array_equal(found.dequantize().reshape(EXPERTS, OUTPUTS, -1).transpose(0, 2, 1), wanted.float())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_model_runs_on_the_codes_as_they_lie(backend: str, tmp_path: Path) -> None:
    """Logits are those of the dense model of what the codes mean, and no expert is copied."""
    tiny = next(tiny for tiny in TINY_MODELS if tiny.name == "gpt-oss")
    model = write_model(tiny, tmp_path / "dense", 5)
    saved, packed = load_file(tmp_path / "dense" / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(5)
    for name, tensor in saved.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(122, 126, (experts, outputs, inputs // 32), dtype=torch.uint8, generator=generator)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        meant = integration.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        with torch.no_grad():
            dict(model.named_parameters())[name].copy_(meant)
    (tmp_path / "packed").mkdir()
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    save_file(packed, tmp_path / "packed" / "model.safetensors", {"format": "pt"})
    source = load_model(tmp_path / "packed")
    one = source.checkpoint.linear("model.layers.0.mlp.experts.3.gate_up_proj")
    assert isinstance(one, PackedWeight)
    assert not one.arrays["weight_packed"].flags.owndata
    prompts = [list(range(3, 3 + length)) for length in tiny.lengths]
    executable = backend_named(backend).prepare(source, "exact", LIMITS)
    for chunks in (None, DECODE):
        found = stepping.run(executable, prompts, chunks, 5)
        assert worst_difference(found, reference_logits(model, prompts)) <= TOLERANCE
    model_of_tokens = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
    (tmp_path / "packed" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model_of_tokens}))
    assert examine(tmp_path / "packed")[0].loads


@pytest.mark.parametrize(
    ("leaf", "value", "message"),
    [
        ("_blocks", torch.zeros(4, 24, 3, 8, dtype=torch.uint8), r"_blocks is uint8 \[4, 24, 3, 8\]"),
        ("_blocks", torch.zeros(4, 24, 48, dtype=torch.uint8), r"_blocks is uint8 \[4, 24, 48\]"),
        ("_scales", torch.zeros(4, 24, 2, dtype=torch.uint8), r"_scales is uint8 \[4, 24, 2\]; uint8 \[4, 24, 3\]"),
        ("_scales", torch.zeros(4, 24, 3), "_scales is fp32"),
        ("_scales", None, "_scales is missing"),
        ("_scales", torch.full((4, 24, 3), 255, dtype=torch.uint8), "_scales holds NaN"),
    ],
)
def test_what_cannot_be_so_is_said(leaf: str, value: Any, message: str, tmp_path: Path) -> None:
    content = tensors()
    content[f"{MODULE}{leaf}"] = value
    path = write(tmp_path / "m", {name: tensor for name, tensor in content.items() if tensor is not None})

    def read() -> None:
        with Checkpoint.open(path) as checkpoint:
            checkpoint.linear(MODULE)

    with pytest.raises(CheckpointError, match=message):
        read()


def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    generator = random.Random(seed)
    refused = 0
    for number in range(MUTANTS):
        content = tensors(number)
        change_tensor(content, generator, of=(f"{MODULE}_blocks", f"{MODULE}_scales"))
        path, where = write(tmp_path / f"mutant-{number}", content), f"mutant {number} of seed {seed}"
        tracemalloc.start()
        try:
            with Checkpoint.open(path) as checkpoint:
                if checkpoint.scheme_of(MODULE) is not None:
                    checkpoint.shape_of(MODULE)
                    checkpoint.linear(MODULE)
        except LinnetError as error:
            refused += "\n" not in str(error)
        except Exception as error:
            raise AssertionError(where) from error
        finally:
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert most < MOST_BYTES, where
    assert refused >= MUTANTS // 20
