# SPDX-License-Identifier: Apache-2.0
"""What ``linnet doctor`` says of transformers and GGUF files, asked of transformers itself: where it says yes, the
model that transformers makes of the file computes what the file means; where it says no, it refuses, misses weights, or
computes something else."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the dev extra")
transformers = pytest.importorskip("transformers", reason="needs the dev extra")
pytest.importorskip("gguf", reason="the files are written by the gguf package")

from program_files import CASES, IDS, Make, changed, family, header, off, said  # noqa: E402
from test_gguf import NAMED  # noqa: E402
from tiny_models import GEMMA3, MIXED, TinyModel, gated, plain, rope  # noqa: E402
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # noqa: E402

from linnet.formats.gguf.architectures_read import READ  # noqa: E402
from linnet.formats.programs.gguf_of_transformers import ARCHITECTURES, ASSUMED, NOT_DECODED, WITHOUT_EXPERTS  # noqa: E402

SAME = 1e-5
"""By how much logits of one computation in fp32 may be off, relative."""
WHERE_ITS_CLASS_IS = {
    "qwen3": lambda: transformers.Qwen3Config(**gated(head_dim=128)),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
        **{**MIXED, "moe_intermediate_size": 768, "head_dim": 16}, norm_topk_prob=True
    ),
    "gemma-3": lambda: transformers.Gemma3TextConfig(**gated(**{**GEMMA3, "num_hidden_layers": 7, "head_dim": 256})),
    "gpt-2": lambda: transformers.GPT2Config(**plain(max_position_embeddings=1024)),
}
"""Families whose class assumes what its reader leaves out -> a member for which that is right."""
MOE = TinyModel(
    "qwen2-moe-assumed",
    lambda: transformers.Qwen2MoeConfig(
        **{**MIXED, "moe_intermediate_size": 1408, "num_hidden_layers": 1}, shared_expert_intermediate_size=5632
    ),
)
BASE = TinyModel("llama-base", lambda: transformers.LlamaConfig(**gated(rope_parameters=rope(rope_theta=500.0))))
NAMES = [name for name in CASES if not name.startswith(("type", "written"))]
OWN: dict[str, Make] = {
    **{f"assumed {name}": family(TinyModel(f"{name}-assumed", make)) for name, make in WHERE_ITS_CLASS_IS.items()},
    "phi-3 padded": changed(NAMED["phi-3"], phi3__attention__sliding_window=None, tokenizer__ggml__padding_token_id=0),
    "another base": family(BASE),
    "assumed qwen2-moe": family(MOE),
    "assumed qwen2-moe as of old": changed(MOE, flat="gate_inp_shexp.weight"),
    "a base left out": changed(NAMED["starcoder-2"], starcoder2__rope__freq_base=500.0),
    "rows without tokens": changed(llama__vocab_size=90),
    **{name: CASES[name] for name in ("type Q8_K", "type I8", "type IQ1_S", "type Q4_K", "type MXFP4")},
}


def logits(path: Path) -> "list[list[float]] | None":
    """[ids, vocabulary] of what transformers makes of a file; None: it refuses, or misses something."""
    try:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        print(f"{type(error).__name__}: {error}"[:300])
        return None
    if loading["missing_keys"]:
        print("missing", sorted(loading["missing_keys"])[:3])
        return None
    with torch.no_grad():
        found = model(torch.tensor([IDS])).logits[0]
    return np.asarray(found).tolist()


@pytest.mark.parametrize("name", [*NAMES, *OWN])
def test_transformers_does_as_it_is_said_to(name: str, tmp_path: Path) -> None:
    path = (CASES | OWN)[name](tmp_path)
    verdicts, found = said(path), logits(path)
    print(name, verdicts)
    if not isinstance(verdicts, list):
        assert found is None
        return
    linnet, transformer = verdicts[:2]
    if transformer.loads is None:
        assert linnet.loads is not True
        return
    if found is None:
        assert transformer.loads is False
    elif linnet.loads:
        error = off(path, found)
        print(f"off by {error:.2g}")
        assert transformer.loads == (error < SAME) or "sliding_window" in transformer.why, "a window is beyond four ids"
    else:
        assert transformer.loads is True


def why_not(path: Path) -> str:
    """The reader's refusal; files without tensors are refused further on, too."""
    try:
        load_gguf_checkpoint(str(path))
    except (KeyError, TypeError, ValueError) as error:
        return str(error)
    return ""


def test_its_architectures_are_known(tmp_path: Path) -> None:
    found = {name: why_not(header(tmp_path, name)) for name in {*ARCHITECTURES, *READ, "nobodys"}}
    assert {name for name, why in found.items() if "is not supported yet" in why} == {*READ, "nobodys"} - ARCHITECTURES


def test_what_it_leaves_out_is_known() -> None:
    assert {*ASSUMED, *WITHOUT_EXPERTS} == ARCHITECTURES & set(READ)


def test_types_without_numbers_are_known() -> None:
    import gguf
    from gguf.quants import _type_traits

    decoded = {kind.name for kind in _type_traits} | {"F32", "F16"}
    assert decoded.isdisjoint(NOT_DECODED)
    assert {kind.name for kind in gguf.GGMLQuantizationType} - decoded <= {*NOT_DECODED, "NVFP4", "Q1_0"}
