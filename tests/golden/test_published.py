# SPDX-License-Identifier: Apache-2.0
"""What we publish means the same to others: transformers + compressed-tensors read our directory and agree.

Trained weights (the bundled model; also ``../shared/models`` where present), W4A16, both algorithms.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("compressed_tensors", reason="golden logits of packed checkpoints need compressed-tensors")
pytest.importorskip("torch", reason="golden logits need PyTorch")
pytest.importorskip("transformers", reason="golden logits need transformers")

import stepping
import torch
import transformers

from linnet import demo
from linnet.api import LLM, SamplingParams
from linnet.backends.interface import Limits
from linnet.backends.select import choose_backend
from linnet.compress import compress, make_recipe
from linnet.evals import windows
from linnet.evals.text_loss import compare
from linnet.models import load_model

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
LIMITS = Limits(128, 8, 128, stepping.BLOCK_SIZE, stepping.BLOCKS_PER_SEQUENCE)
TEXT = "In the morning the baker opened the door and looked at the long street. It was a cold day, and nobody"
LOGIT_TOLERANCE = 1e-3
KL_FAST_AGAINST_EXACT = 1e-3


@pytest.fixture(params=["bundled", "novels7M", "stories260K-hf"])
def original(request: pytest.FixtureRequest) -> Path:
    if request.param == "bundled":
        return demo.model_directory()
    path = SHARED / request.param
    if not path.exists():
        pytest.skip(f"{request.param} lies in ../shared/models, which is not there")
    return path


@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
def test_transformers_reads_what_we_publish(original: Path, algorithm: str, tmp_path: Path) -> None:
    recipe = make_recipe("W4A16-g32", algorithm, group_size="auto", calibration_rows=8, calibration_length=128)
    text = demo.calibration_file().read_text(encoding="utf-8")  # any text will do
    path = compress(original, tmp_path / "packed", recipe, calibration_text=text).path
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    source = load_model(path)
    prompt = LLM(path, kv_bytes=2**22, max_model_len=256).tokenizer.encode(TEXT)[: stepping.BLOCK_SIZE * 12]
    executable = choose_backend("cpu").prepare(source, "exact", LIMITS)
    ours = stepping.run(executable, [prompt], chunks=[7, 1, 1])[0]
    with torch.no_grad():
        expected = theirs(torch.tensor([prompt]), use_cache=False).logits[0].float().numpy()
    assert np.abs(ours - expected).max() <= LOGIT_TOLERANCE


@pytest.mark.parametrize("scheme", ["W4A16-g32", "W8A16"])
def test_fast_arithmetic_stays_close_to_exact(original: Path, scheme: str, tmp_path: Path) -> None:
    recipe = make_recipe(scheme, "rtn", group_size="auto" if "g32" in scheme else None)
    path = compress(original, tmp_path / "packed", recipe).path
    settings = {"kv_bytes": 2**24, "max_model_len": 256}
    sampled = SamplingParams(max_tokens=200, ignore_eos=True)
    with LLM(path, policy="fast", **settings) as fast, LLM(path, policy="exact", **settings) as exact:
        # Text the model itself would write: on foreign text a small model is unsure of everything.
        written = [
            output.outputs[0].token_ids
            for output in exact.generate(["Once upon a time"] * 6, [replace(sampled, seed=seed) for seed in range(6)])
        ]
        cut = windows([token for row in written for token in row], 256, 128)
        loss = compare(fast, exact, cut, lambda stage, done, total: None)
    assert loss.kl_mean.value <= KL_FAST_AGAINST_EXACT
