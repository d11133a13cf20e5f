# SPDX-License-Identifier: Apache-2.0
"""The algorithms by kind of step and name. A new one is a file in ``algorithms`` or ``transforms`` and a line here."""

from collections.abc import Mapping
from typing import Any

from linnet.compress.algorithms.asvd import Asvd
from linnet.compress.algorithms.autoround import AutoRound
from linnet.compress.algorithms.awq import Awq
from linnet.compress.algorithms.block_influence import BlockInfluence
from linnet.compress.algorithms.eora import Eora
from linnet.compress.algorithms.esparse import Esparse
from linnet.compress.algorithms.gptq import Gptq
from linnet.compress.algorithms.hqq import Hqq
from linnet.compress.algorithms.kmeans import Kmeans
from linnet.compress.algorithms.lkd import Lkd
from linnet.compress.algorithms.llm_int8 import LlmInt8
from linnet.compress.algorithms.lqer import Lqer
from linnet.compress.algorithms.magnitude import Magnitude
from linnet.compress.algorithms.obc import Obc
from linnet.compress.algorithms.rtn import Rtn
from linnet.compress.algorithms.sparsegpt import Sparsegpt
from linnet.compress.algorithms.squeezellm import SqueezeLlm
from linnet.compress.algorithms.static import Static
from linnet.compress.algorithms.svd import Svd
from linnet.compress.algorithms.svd_llm import SvdLlm
from linnet.compress.algorithms.unit_magnitude import UnitMagnitude
from linnet.compress.algorithms.unit_taylor import UnitTaylor
from linnet.compress.algorithms.unit_wanda import UnitWanda
from linnet.compress.algorithms.unit_zeros import UnitZeros
from linnet.compress.algorithms.wanda import Wanda
from linnet.compress.options import read_options
from linnet.compress.recipe import StepKind
from linnet.compress.transforms.awq import AwqScales
from linnet.compress.transforms.quarot import Quarot
from linnet.compress.transforms.smoothattention import SmoothAttention
from linnet.compress.transforms.smoothquant import SmoothQuant
from linnet.errors import unknown_choice

ALGORITHMS: dict[StepKind, dict[str, type[Any]]] = {
    "prune": {
        "magnitude": UnitMagnitude,
        "wanda": UnitWanda,
        "zeros": UnitZeros,
        "influence": BlockInfluence,
        "taylor": UnitTaylor,
    },
    "rotate": {"quarot": Quarot},
    "smooth": {"smoothquant": SmoothQuant, "awq": AwqScales, "smoothattention": SmoothAttention},
    "factorise": {"svd": Svd, "asvd": Asvd, "svd_llm": SvdLlm},
    "sparsify": {"magnitude": Magnitude, "wanda": Wanda, "esparse": Esparse, "sparsegpt": Sparsegpt},
    "calibrate": {"static": Static},
    "quantise": {
        "rtn": Rtn,
        "gptq": Gptq,
        "awq": Awq,
        "hqq": Hqq,
        "obc": Obc,
        "autoround": AutoRound,
        "lkd": Lkd,
        "llm_int8": LlmInt8,
        "kmeans": Kmeans,
        "squeezellm": SqueezeLlm,
    },
    "repair": {"lqer": Lqer, "eora": Eora},
}


def options_of(kind: StepKind, name: str) -> type:
    """The options record of an algorithm."""
    record: type = ALGORITHMS[kind][name].Options
    return record


def make_algorithm(kind: StepKind, name: str, options: Mapping[str, Any]) -> Any:
    """The named algorithm with checked options; ConfigError lists what is known."""
    known = ALGORITHMS[kind]
    if name not in known:
        raise unknown_choice("algorithm" if kind == "quantise" else f"algorithm of a {kind} step", name, known)
    return known[name](read_options(name, options, known[name].Options))
