# SPDX-License-Identifier: Apache-2.0
"""What transformers reads of directories; tested with transformers itself (tests/golden/test_programs.py)."""

from collections.abc import Mapping

from linnet.formats.forms import WRITTEN_FORMS
from linnet.formats.forms.written import is_inner
from linnet.formats.programs.described import AGAIN, Model, Verdict
from linnet.formats.programs.gguf_of_transformers import reads_file
from linnet.schemes import LinearScheme

NAME = "transformers"
METHODS: Mapping[str, str] = {
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "fp8": "a GPU",
    "fbgemm_fp8": "a GPU",
    "bitnet": "accelerate",
    "mxfp4": "kernels for it, or it dequantises",
}
"""``quant_method`` -> what transformers needs beside itself."""
UNCHECKED = ("torchao",)
"""Values of ``quant_method`` that it takes, and nothing here writes."""
LOSES: Mapping[str, str] = {
    "hqq": "version 5 draws random weights in its place (4 reads it, with hqq)",
    "quanto": "it draws random weights in its place; optimum-quanto's QuantizedModelForCausalLM reads it",
}
"""``quant_method`` -> what happens instead of a refusal: its tensors are taken for superfluous."""
FORMS = ("gptq", "bitsandbytes")
"""Forms that hold what compressed-tensors has no kernels or no word for."""


def transformers(model: Model) -> Verdict:
    """The verdict; ``instead`` is AGAIN, or None where it reads the model."""
    if model.file is not None:
        return reads_file(model, model.file)
    if model.method == "compressed-tensors":
        if model.own_words:
            return Verdict(NAME, False, "it reads past transform_config, and so computes something else", AGAIN)
        if all(scheme.weight.symmetric for scheme in model.schemes.values()):
            return Verdict(NAME, True, "with compressed-tensors")
        return Verdict(NAME, True, "with CompressedTensorsConfig(dequantize=True), because of the zero points")
    if model.method in LOSES:
        return Verdict(NAME, False, LOSES[model.method], AGAIN)
    if model.method in UNCHECKED:
        return Verdict(NAME, None, f"{model.method} is one of its forms; what it takes of it is not checked")
    needs = METHODS.get(model.method)
    if needs is None:
        return Verdict(NAME, False, f"it has no reader for quant_method {model.method!r}", AGAIN)
    return Verdict(NAME, True, f"it needs {needs}")


def form_instead(schemes: Mapping[str, LinearScheme]) -> str | None:
    """A form of ``linnet convert`` that holds these codes as they are and that transformers reads; None if there is
    none."""
    inner = [scheme for module, scheme in schemes.items() if is_inner(module)]
    for name in FORMS:
        form = WRITTEN_FORMS[name]("")
        if inner and all(form.held(scheme) is not None for scheme in inner):
            return name
    return None
