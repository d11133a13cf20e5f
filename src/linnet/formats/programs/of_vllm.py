# SPDX-License-Identifier: Apache-2.0
"""What vLLM reads: what is known of one version, tested with that version itself (tests/golden/test_programs_vllm.py).

What it takes and what it can compute with are two things: kernels for CPUs are fewer than those for GPUs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from linnet.formats.forms import WRITTEN_FORMS
from linnet.formats.forms.written import is_inner
from linnet.formats.programs.described import AGAIN, GgufFacts, Model, Verdict
from linnet.formats.programs.gguf_of_vllm import CHECKED, PACKAGE, WITH, unread
from linnet.schemes import LinearScheme

NAME = "vLLM"
VERSION = "0.32"
PLUGINS: Mapping[str, tuple[str, str]] = {
    "bitsandbytes": ("vllm-bnb-plugin", "0.28"),
}
"""What it gave away -> the package that reads it now, and the version from which that is needed."""
METHODS = ("compressed-tensors", "gptq", "awq", "fp8", "fbgemm_fp8", "mxfp4", "modelopt", "torchao")
"""The values of ``quant_method`` that it takes."""
BITS_OF_CPU = 4
"""Of integers that activations in 16 bits meet on a CPU; 4 and 8 do on any GPU."""
BITS_OF_GPU = (4, 8)
GPTQ_GROUPS = (None, 32, 64, 128)
EVERYWHERE = "on CPUs and GPUs"
GPU_ONLY = "on a GPU only"


@dataclass(frozen=True)
class _Found:
    """Whether it reads a model (None: not checked), and why or why not."""

    loads: bool | None
    why: str


def vllm(model: Model) -> Verdict:
    """The verdict; ``instead`` is AGAIN, or None where it reads the model."""
    if model.file is not None:
        return _reads_file(model, model.file)
    if model.method in PLUGINS:
        package, version = PLUGINS[model.method]
        return Verdict(NAME, True, f"with {package}, from version {version} on")
    if model.method not in METHODS:
        return Verdict(NAME, False, f"it has no reader for quant_method {model.method!r}", AGAIN)
    rule = RULES.get(model.method)
    if rule is None:
        return Verdict(NAME, None, f"{model.method} is one of its forms; what it takes of it is not checked")
    found = rule(model)
    return Verdict(NAME, found.loads, found.why, AGAIN if found.loads is False else None)


def _reads_file(model: Model, file: GgufFacts) -> Verdict:
    """The verdict of a GGUF file."""
    if model.config is None or model.damaged or model.architecture not in CHECKED:
        return Verdict(NAME, None, f"it needs {PACKAGE}; whether that reads the file is not checked")
    why = unread(model, file)
    if why is not None:
        return Verdict(NAME, False, why, AGAIN)
    return Verdict(NAME, True, f"{WITH}, and the original's config.json (--hf-config-path); {GPU_ONLY}")


def form_instead(schemes: Mapping[str, LinearScheme]) -> str | None:
    """A form of ``linnet convert`` that holds these codes as they are and that vLLM reads, one for CPUs first; None if
    there is none."""
    inner = [scheme for module, scheme in schemes.items() if is_inner(module)]
    if not inner:
        return None
    sizes = gcd(*(scheme.weight.columns_per_scale or 0 for scheme in inner))
    for name, kind in (("gptq", ""), ("awq", f"W4A16-g{sizes}" if sizes else ""), ("bitsandbytes", "")):
        form = WRITTEN_FORMS[name](kind)
        held = [form.held(scheme) for scheme in inner]
        if all(scheme is not None and (name != "gptq" or _takes_gptq(scheme)) for scheme in held):
            return name
    return None


def _takes_gptq(scheme: LinearScheme) -> bool:
    weight = scheme.weight
    known = weight.symmetric and weight.bits == BITS_OF_CPU and weight.group_size in GPTQ_GROUPS
    return known and not scheme.sorted_columns


def _compressed_tensors(model: Model) -> _Found:
    cache = model.record.get("kv_cache_scheme")
    refused = _cache_refused(cache) if isinstance(cache, dict) else None
    refused = refused or next((why for scheme in model.schemes.values() if (why := _refused(scheme))), None)
    if refused is not None:
        return _Found(False, refused)
    limits = sorted({why for scheme in model.schemes.values() if (why := _limit(scheme))})
    limits += [model.own_words] if model.own_words else []
    own = "compressed-tensors is its own form"
    return _Found(True, f"{own}; {GPU_ONLY}: {' and '.join(limits)}" if limits else f"{own}, {EVERYWHERE}")


def _cache_refused(cache: Mapping[str, Any]) -> str | None:
    """Why it does not take a prescribed KV cache."""
    if cache.get("type") != "float" or cache.get("num_bits") != 8:
        return "a prescribed KV cache must be fp8 there"
    if cache.get("strategy") not in ("tensor", "attn_head") or not cache.get("symmetric", True):
        return "a prescribed fp8 KV cache must have stored scales there"
    return None


def _refused(scheme: LinearScheme) -> str | None:
    """Why it does not take a linear, on any machine."""
    weight, inputs = scheme.weight, scheme.input
    if scheme.sorted_columns:
        return "activation order (actorder: group) is no longer read"
    if inputs is not None and inputs.granularity == "group":
        return "inputs rounded in groups have no kernel there"
    if weight.numbers.integer and weight.bits not in BITS_OF_GPU:
        return f"{weight.bits} bits have kernels on a GPU with Humming installed only"
    return None


def _limit(scheme: LinearScheme) -> str | None:
    """What it has no kernel for on a CPU."""
    weight, inputs = scheme.weight, scheme.input
    if weight.numbers.integer:
        if weight.bits == BITS_OF_CPU or inputs is not None:
            return None
        return f"int{weight.bits} weights with 16-bit inputs"
    if inputs is None:
        return f"{weight.bits}-bit floats with 16-bit inputs"
    return None if inputs.dynamic else "fp8 inputs with stored scales"


def _gptq(model: Model) -> _Found:
    if any(scheme.sorted_columns for scheme in model.schemes.values()):
        return _Found(False, "activation order (desc_act) is no longer read")
    weights = [scheme.weight for scheme in model.schemes.values()]
    if not all(weight.symmetric for weight in weights):
        return _Found(False, "GPTQ with zero points is no longer read")
    odd = sorted({weight.bits for weight in weights} - {*BITS_OF_GPU})
    if odd:
        return _Found(False, f"GPTQ of {' and '.join(map(str, odd))} bits is no longer read")
    sizes = sorted({weight.group_size or 0 for weight in weights} - {size or 0 for size in GPTQ_GROUPS})
    if sizes:
        shown = " and ".join(map(str, sizes))
        return _Found(False, f"groups of {shown} have no kernel there: 32, 64, 128 and whole rows do")
    if all(weight.bits == BITS_OF_CPU for weight in weights):
        return _Found(True, f"gptq is one of its forms, {EVERYWHERE}")
    return _Found(True, f"gptq is one of its forms; {GPU_ONLY}: 8 bits")


def _awq(model: Model) -> _Found:
    version = str(model.record.get("version", "gemm")).lower()
    if version != "gemm":
        return _Found(False, f"it reads the order of AWQ's gemm alone, not {version}'s")
    return _Found(True, f"awq is one of its forms, {EVERYWHERE}")


def _fp8(model: Model) -> _Found:
    if model.record.get("weight_block_size"):
        return _Found(True, f"fp8 is one of its forms; {GPU_ONLY}, or on a CPU with AMX where blocks are 128 wide")
    return _Found(True, f"fp8 is one of its forms; {GPU_ONLY}: one scale for a whole weight")


def _mxfp4(model: Model) -> _Found:
    if model.architecture != "gpt_oss":
        return _Found(False, f"it reads mxfp4 of gpt-oss alone, not of {model.architecture}")
    return _Found(None, "mxfp4 of gpt-oss is one of its forms; which machines have its kernels is not checked")


def _fbgemm(model: Model) -> _Found:
    return _Found(True, f"{GPU_ONLY}, with --allow-deprecated-quantization")


RULES: Mapping[str, Callable[[Model], _Found]] = {
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "fbgemm_fp8": _fbgemm,
}
"""``quant_method`` -> what is looked at beside it."""
