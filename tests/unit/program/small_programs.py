# SPDX-License-Identifier: Apache-2.0
"""Small built programs to run passes on."""

from collections.abc import Mapping
from typing import Any

from published_configs import BLOOM_560M, DEEPSEEK_V2_LITE, GEMMA_2_2B, LLAMA_2_7B, PHI_3_MINI_4K, PYTHIA_70M

from linnet.models import arch_spec
from linnet.models.build import build_program
from linnet.program.program import Program
from linnet.schemes.scheme import LinearScheme, Scheme

W4_G128 = LinearScheme(Scheme("int4", "group", group_size=128))
W8 = LinearScheme(Scheme("int8", "channel"))
W8A8 = LinearScheme(Scheme("int8", "channel"), Scheme("int8", "token", dynamic=True))

SMALL = {"num_hidden_layers": 2, "vocab_size": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "gated": LLAMA_2_7B | SMALL,
    "capped": GEMMA_2_2B | SMALL,
    "fused": PHI_3_MINI_4K | SMALL,
    "parallel": PYTHIA_70M | SMALL,
    "alibi": BLOOM_560M | SMALL | {"n_layer": 2},
    "latent": DEEPSEEK_V2_LITE | SMALL | {"n_routed_experts": 8},
}


def program(
    name: str = "gated", linears: Any = "bf16", rest: Any = "bf16", rotations: Mapping[str, int] = {}
) -> Program:
    """A program whose block linears are stored as ``linears`` and all else as ``rest``; ``rotations``: see
    build_program."""

    def stored(tensor: str) -> Any:
        return linears if "layers." in tensor and "proj" in tensor and "weight" in tensor else rest

    return build_program(arch_spec(CONFIGS[name]), stored, rotations=rotations)
