# SPDX-License-Identifier: Apache-2.0
"""Which other programs read a model, and why not: what is known of transformers, vLLM and llama.cpp, as rules.

What a rule says of transformers is tested with transformers itself (tests/golden/test_programs.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from linnet.errors import CheckpointError, LinnetError
from linnet.formats.forms import WRITTEN_FORMS
from linnet.formats.forms.written import is_inner
from linnet.formats.gguf.architectures import ARCHITECTURES
from linnet.formats.tensor_files import read_config
from linnet.formats.terms_record import TERMS_KEY
from linnet.formats.transform_record import TRANSFORMS_KEY, rotates
from linnet.gguf import GgufModel, gguf_of
from linnet.schemes import LinearScheme

Kind = Literal["directory", "gguf"]

VLLM_BITS = (4, 8)
"""Widths of packed integers that vLLM has kernels for."""
VLLM_METHODS = ("gptq", "awq", "bitsandbytes", "fp8", "fbgemm_fp8", "mxfp4", "modelopt", "torchao")
TRANSFORMERS_METHODS: Mapping[str, str] = {
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "fp8": "a GPU",
    "fbgemm_fp8": "a GPU",
    "mxfp4": "kernels for it, or it dequantises",
    "torchao": "torchao",
}
"""``quant_method`` -> what transformers needs beside itself."""
TRANSFORMERS_LOSES: Mapping[str, str] = {
    "hqq": "version 5 draws random weights in its place (4 reads it, with hqq)",
    "quanto": "it draws random weights in its place; optimum-quanto's QuantizedModelForCausalLM reads it",
}
"""``quant_method`` -> what happens instead of a refusal: its tensors are taken for superfluous."""
NO_LONGER_READ = "weights stored without the zeros of 2:4 are read up to compressed-tensors 0.14 only"
OTHER_FORMS = ("gptq", "bitsandbytes")
"""Forms of transformers and vLLM that hold what compressed-tensors has no kernels or no word for."""
AGAIN = "linnet compress ORIGINAL -o OUTPUT --scheme W4A16"
"""What makes a form that every reader of directories has."""
WRITTEN_AS_GGUF = frozenset(kind for row in ARCHITECTURES.values() for kind in (row.model_type, *row.also))
"""Model types that ``linnet convert`` writes for llama.cpp."""


@dataclass(frozen=True)
class Model:
    """What the rules look at. ``method``: a config's ``quant_method``, or ``dense``; ``schemes``: of its modules, where
    Linnet reads them; ``architecture``: as the file calls it."""

    kind: Kind
    method: str
    architecture: str
    schemes: Mapping[str, LinearScheme]
    own_words: str = ""
    """What it has that Linnet's own layout alone has a word for: sums of terms, rotations at run time; or empty."""


@dataclass(frozen=True)
class Verdict:
    """``instead``: what to type for a form that the program reads; None where it reads this one or nothing helps."""

    program: str
    loads: bool
    why: str
    instead: str | None = None


def identify(path: Path, schemes: Mapping[str, LinearScheme], opened: Mapping[str, Any] | None = None) -> Model | None:
    """What a path says it is, whoever can read it; None where nothing says so. ``opened``: its config, where Linnet
    could open it, which says more than the file does."""
    file = gguf_of(path)
    if file is not None:
        try:
            with GgufModel(file) as model:
                return Model("gguf", "gguf", model.metadata.text("general.architecture") or "unnamed", schemes)
        except LinnetError:
            return None
    try:
        config = read_config(path) if opened is None else opened
    except (CheckpointError, OSError):
        return None
    record = config.get("quantization_config", config.get("compression_config"))
    method = record.get("quant_method", "compressed-tensors") if isinstance(record, dict) else "dense"
    kinds = {
        "sums of terms": isinstance(record, dict) and bool(record.get(TERMS_KEY)),
        "rotations at run time": isinstance(record, dict) and rotates(record.get(TRANSFORMS_KEY)),
    }
    own_words = " and ".join(kind for kind, there in kinds.items() if there)
    return Model("directory", str(method), str(config.get("model_type", "unnamed")), schemes, own_words)


def verdicts(model: Model, path: str) -> tuple[Verdict, ...]:
    """Of transformers, vLLM and llama.cpp, in that order. ``path`` is what to write in the commands proposed."""
    readers = (("transformers", _transformers), ("vLLM", _vllm))
    return *(_directory_reader(name, rules, model, path) for name, rules in readers), _gguf_reader(model, path)


def _directory_reader(name: str, rules: Callable[[Model], Verdict], model: Model, path: str) -> Verdict:
    """What holds for every reader of safetensors directories, else ``rules`` of its own; what Linnet reads and another
    form holds exactly is to be converted."""
    if model.kind == "directory" and model.method == "dense":
        return Verdict(name, True, "dense safetensors are its own form")
    if model.method == "linnet":
        return Verdict(name, False, "Linnet's own layout, which it refuses", _in_another_form(model, path))
    if any(scheme.weight.sparsity is not None for scheme in model.schemes.values()):
        return Verdict(name, False, NO_LONGER_READ, _with_zeros(model, path))
    found = rules(model)
    return found if found.instead is None else replace(found, instead=_in_another_form(model, path))


def _with_zeros(model: Model, path: str) -> str:
    """The command that puts back the zeros that were left out."""
    plain = all(scheme.weight.numbers.plain for scheme in model.schemes.values())
    form = "dense:BF16" if plain else "compressed-tensors"
    return f"linnet convert {path} {_last_name(path)}-whole --to {form}"


def _in_another_form(model: Model, path: str) -> str:
    """The command that carries every linear's codes over, if there is one; else the one that starts anew."""
    inner = [scheme for module, scheme in model.schemes.items() if is_inner(module)]
    for name in OTHER_FORMS:
        form = WRITTEN_FORMS[name]("")
        if inner and not model.own_words and all(form.held(scheme) is not None for scheme in inner):
            return f"linnet convert {path} {_last_name(path)}-{name} --to {name}"
    return AGAIN


def _transformers(model: Model) -> Verdict:
    name = "transformers"
    if model.kind == "gguf":
        return Verdict(name, True, "with gguf installed it dequantises the file to 16 or 32 bits when it loads it")
    if model.method == "compressed-tensors":
        if model.own_words:
            return Verdict(name, False, "it reads past transform_config, and so computes something else", AGAIN)
        if all(scheme.weight.symmetric for scheme in model.schemes.values()):
            return Verdict(name, True, "with compressed-tensors")
        return Verdict(name, True, "with CompressedTensorsConfig(dequantize=True), because of the zero points")
    if model.method in TRANSFORMERS_LOSES:
        return Verdict(name, False, TRANSFORMERS_LOSES[model.method], AGAIN)
    needs = TRANSFORMERS_METHODS.get(model.method)
    if needs is None:
        return Verdict(name, False, f"it has no reader for quant_method {model.method!r}")
    return Verdict(name, True, f"it needs {needs}")


def _vllm(model: Model) -> Verdict:
    name = "vLLM"
    if model.kind == "gguf":
        return Verdict(name, True, "its GGUF support is experimental; it wants the original's tokenizer (--tokenizer)")
    if model.method != "compressed-tensors":
        if model.method in VLLM_METHODS:
            return Verdict(name, True, f"{model.method} is one of its forms; kernels depend on the machine")
        return Verdict(name, False, f"it has no reader for quant_method {model.method!r}")
    weights = [scheme.weight for scheme in model.schemes.values()]
    narrow = sorted({weight.bits for weight in weights if weight.numbers.integer and weight.bits not in VLLM_BITS})
    if narrow:
        widths = " and ".join(map(str, narrow))
        return Verdict(name, False, f"it has no kernels for {widths} bits", AGAIN)
    if not all(weight.symmetric for weight in weights):
        return Verdict(name, False, "packed zero points of compressed-tensors have no kernel there", AGAIN)
    if model.own_words:
        return Verdict(name, True, "compressed-tensors is its own form, transform_config too")
    return Verdict(name, True, "compressed-tensors is its own form")


def _gguf_reader(model: Model, path: str) -> Verdict:
    name = "llama.cpp"
    if model.kind == "gguf":
        return Verdict(name, True, "GGUF is its own form")
    if model.own_words:
        return Verdict(name, False, f"it reads GGUF files only, which have no word for {model.own_words}", AGAIN)
    if model.architecture not in WRITTEN_AS_GGUF:
        return Verdict(name, False, f"it reads GGUF files only, and Linnet writes none for {model.architecture}")
    command = f"linnet convert {path} {_last_name(path)}.gguf --to gguf:Q8_0"
    return Verdict(name, False, "it reads GGUF files only", command)


def _last_name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1] or "model"
