# SPDX-License-Identifier: Apache-2.0
"""Damaged models in other loaders' forms: each is read, or refused in one sentence, and takes no memory before that.

A mutant changes one value of the config's record, or one stored tensor: gone, of another shape or type, of other bytes.
"""

import json
import os
import random
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

import test_awq  # noqa: E402
import test_bitnet  # noqa: E402
import test_bitsandbytes  # noqa: E402
import test_compressed_tensors_forms as test_ct  # noqa: E402
import test_fp8  # noqa: E402
import test_gptq  # noqa: E402
import test_hqq  # noqa: E402
import test_quanto  # noqa: E402
import test_sparse_24  # noqa: E402
from foreign_forms import llama, write_pair  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from linnet.errors import LinnetError  # noqa: E402
from linnet.models import load_model  # noqa: E402

MUTANTS = int(os.environ.get("LINNET_MUTANTS", "40"))
"""Per form; 1,000 before a release."""
MOST_BYTES = 64 << 20
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 7, 2**31, 2**64, -(2**63), 1.5, "", "gptq_v2", "x" * 5000, [], [1, 2], {}, {"a": 1},
    [2**62, 2**62], {"(a+)+$": {}},
)  # fmt: skip

IN_ORDER = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "actorder": "group"}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
FORMS: dict[str, tuple[dict[str, Any], Any]] = {
    "gptq": (test_gptq.record(4, 32, False, True, False), test_gptq.encoder(4, 32, False, True, False)),
    "gptq3": (test_gptq.record(3, 32, True, False, True), test_gptq.encoder(3, 32, True, False, True)),
    "awq": (test_awq.record(32, False, True), test_awq.encoder(32, False, True)),
    "awq-gemv": (test_awq.record(32, True, True), test_awq.encoder(32, True, True)),
    "fp8": test_fp8.FORMS["blocks"],
    "fp8-static": test_fp8.FORMS["tensors, static"],
    "fbgemm": test_fp8.FORMS["rows"],
    "bitsandbytes": (test_bitsandbytes.record("nf4", True), test_bitsandbytes.encoder("nf4", True)),
    "bitsandbytes-int8": (test_bitsandbytes.EIGHT, test_bitsandbytes.int8_encoder),
    "hqq": (test_hqq.record(4), test_hqq.encoder(4)),
    "hqq-rows": (test_hqq.record(4, axis=0), test_hqq.down_the_rows(4)),
    "hqq3": (test_hqq.record(3), test_hqq.encoder(3)),
    "bitnet": test_bitnet.FORMS["autobitlinear"],
    "bitnet-online": test_bitnet.FORMS["online"],
    "quanto": (test_quanto.record("int4"), test_quanto.bits_encoder(4, torch.float16)),
    "quanto-zeros": (test_quanto.record("int2"), test_quanto.bits_encoder(2, torch.bfloat16, zero_points=True)),
    "quanto-int8": (test_quanto.record("int8"), test_quanto.bytes_encoder(torch.int8, torch.float16)),
    "packed": (test_ct.record("pack-quantized", test_ct.ASYMMETRIC), test_ct.with_zero_points),
    "packed-in-order": (test_ct.record("pack-quantized", IN_ORDER), test_ct.in_activation_order(4, packed=True)),
    "int8-in-order": (
        test_ct.record("int-quantized", IN_ORDER | {"num_bits": 8}),
        test_ct.in_activation_order(8, packed=False),
    ),
    "float8": (test_ct.record("float-quantized", FLOAT8, kv_cache_scheme=FLOAT8), test_fp8.row_encoder),
    "nvfp4": (test_ct.record("nvfp4-pack-quantized", test_ct.NV), test_ct.four_bit_floats(True)),
    "mxfp4-packed": (test_ct.record("mxfp4-pack-quantized", test_ct.MX), test_ct.four_bit_floats(False)),
    "sparse-24": test_sparse_24.FORMS["bf16"],
    "sparse-24-int8": test_sparse_24.FORMS["int8"],
}
TYPES = (torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.float32, torch.bfloat16)


def change_record(record: dict[str, Any], generator: random.Random) -> None:
    """One value of it, or of a record inside it."""
    others = ("dynamic", "checkpoint_format", "modules_to_not_convert", "weight_block_size", "sparsity_config")
    key = generator.choice([*record, *others])
    inner = record.get(key)
    if isinstance(inner, dict) and inner and generator.random() < 0.8:
        change_record(inner, generator)
    elif key != "quant_method":
        record[key] = generator.choice(VALUES)


def change_tensor(
    tensors: dict[str, Any], generator: random.Random, of: tuple[str, ...] = ("self_attn.q_proj", "mlp.down_proj")
) -> None:
    quantised = [name for name in tensors if any(part in name for part in of)]
    name = generator.choice(quantised)
    tensor, kind = tensors[name], generator.randrange(6)
    flat = tensor.reshape(-1)
    if kind == 0:
        del tensors[name]
    elif kind == 1 and flat.numel() > 1:
        tensors[name] = flat[: generator.randrange(flat.numel())].clone()
    elif kind == 2:
        tensors[name] = tensor.clone().reshape([*([1] * generator.randrange(4)), *reversed(tensor.shape)])
    elif kind == 3:
        tensors[name] = tensor.to(generator.choice(TYPES))
    else:
        data = flat.clone().contiguous().view(torch.uint8) if flat.numel() else flat
        for _ in range(generator.randrange(1, 8)):
            data[generator.randrange(data.numel())] = generator.randrange(256)
        tensors[name] = data.view(tensor.dtype).reshape(tensor.shape)


@pytest.mark.parametrize("form", FORMS)
def test_mutants_are_read_or_refused(form: str, tmp_path: Path) -> None:
    record, encode = FORMS[form]
    path = write_pair(llama(), tmp_path, record, encode).quantised
    config, tensors = json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")
    seed = random.randrange(1 << 30)
    generator = random.Random(seed)
    refused = 0
    for number in range(MUTANTS):
        mutant = path.parent / f"mutant-{number}"
        mutant.mkdir()
        changed, content = json.loads(json.dumps(config)), dict(tensors)
        if generator.random() < 0.4:
            change_record(changed["quantization_config"], generator)
        else:
            change_tensor(content, generator)
        (mutant / "config.json").write_text(json.dumps(changed))
        save_file(content, mutant / "model.safetensors")
        where = f"{form}, mutant {number} of seed {seed}"
        tracemalloc.start()
        try:
            source = load_model(mutant)
            for linear in source.linears():
                source.checkpoint.linear(linear.tensor.removesuffix(".weight"))
            source.checkpoint.close()
        except LinnetError as error:
            refused += "\n" not in str(error)
        except Exception as error:
            raise AssertionError(where) from error
        finally:
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert most < MOST_BYTES, where
        shutil.rmtree(mutant)
    assert refused >= MUTANTS // 20  # the damage is random: a fifth of forty was missed by chance
