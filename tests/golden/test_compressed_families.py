# SPDX-License-Identifier: Apache-2.0
"""Every family compressed by ``compress`` and read again: exact logits equal transformers' with what the codes mean.

What is left dense must lie in the result as the family publishes it: transformers' names and orientation are compared.
"""

import random
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="golden logits need PyTorch")
pytest.importorskip("transformers", reason="golden logits need transformers")

import stepping
import torch
from test_families import LIMITS, TOLERANCE, backend_named, worst_difference
from tiny_models import ONE_PER_FAMILY, TINY_MODELS, VOCABULARY, reference_logits, write

from linnet.compress import compress, make_recipe
from linnet.formats import Checkpoint
from linnet.models.load import load_model
from linnet.program.check import check
from linnet.schemes.packed_weight import PackedWeight

SEED = 13
MODELS = {tiny.name: tiny for tiny in TINY_MODELS}


@pytest.mark.parametrize("scheme", ["W8A16", "W4A16-g16"])
@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_compressed_and_read_again(name: str, scheme: str, tmp_path: Path) -> None:
    tiny = MODELS[name]
    model = write(tiny, tmp_path / "dense", SEED)
    dense = load_model(tmp_path / "dense", tiny.max_context)
    first = re.escape(dense.spec.layers[0].feed_forward.down.module.format(layer=0))
    recipe = make_recipe(scheme, "rtn", rules=[{"match": f"re:{first}", "scheme": "dense"}])
    made = compress(tmp_path / "dense", tmp_path / "packed", recipe)
    source = load_model(made.path, tiny.max_context)
    check(source.program)
    assert source.parameters == dense.parameters
    before, after = (Checkpoint.open(tmp_path / where) for where in ("dense", "packed"))
    kept = [key for key in after.names() if key in before]
    assert len(kept) > len(dense.spec.layers)
    assert all(np.array_equal(before.tensor(key), after.tensor(key)) for key in kept), "as the family publishes it"

    parameters, prefix = dict(model.named_parameters()), "" if not tiny.bare else f"{model.base_model_prefix}."
    linears = [linear for linear in source.linears() if linear.kind == "linear"]
    with torch.no_grad():
        for linear in linears:
            packed = source.checkpoint.linear(linear.module)
            if not isinstance(packed, PackedWeight):
                assert linear.tensor in kept
                continue
            meant = source.as_published(linear.tensor, packed.dequantize())
            parameters[prefix + linear.tensor].copy_(torch.from_numpy(np.ascontiguousarray(meant)))
    generator = random.Random(SEED)
    prompts = [[generator.randrange(VOCABULARY) for _ in range(length)] for length in tiny.lengths]
    expected = reference_logits(model, prompts)
    for backend in ("reference", "cpu"):
        executable = backend_named(backend).prepare(source, "exact", LIMITS)
        for chunks in (None, (7, 1, 1, 1)):
            worst = worst_difference(stepping.run(executable, prompts, chunks, SEED), expected)
            print(f"{name} {scheme} {backend} {chunks}: max abs difference {worst:.1e}, seed {SEED}")
            assert worst <= TOLERANCE
