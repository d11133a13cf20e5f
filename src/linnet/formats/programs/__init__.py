# SPDX-License-Identifier: Apache-2.0
"""Which other programs read a model, and why not: what is known of transformers, vLLM and llama.cpp, as rules."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from linnet.formats.gguf.architectures import ARCHITECTURES
from linnet.formats.programs import of_transformers, of_vllm
from linnet.formats.programs.described import AGAIN, Model, Verdict, identify, last_name
from linnet.formats.programs.of_llama_cpp import NAME as GGUF_READER
from linnet.formats.programs.of_llama_cpp import reads_file
from linnet.schemes import LinearScheme

NO_LONGER_READ = "weights stored without the zeros of 2:4 are read up to compressed-tensors 0.14 only"
WRITTEN_AS_GGUF = frozenset(kind for row in ARCHITECTURES.values() for kind in (row.model_type, *row.also))
"""Model types that ``linnet convert`` writes for llama.cpp."""
FormInstead = Callable[[Mapping[str, LinearScheme]], str | None]

__all__ = ["Model", "Verdict", "identify", "verdicts"]


def verdicts(model: Model, path: str) -> tuple[Verdict, ...]:
    """Of transformers, vLLM and llama.cpp, in that order. ``path`` is what to write in the commands proposed."""
    return (
        _directory_reader(of_transformers.transformers, of_transformers.form_instead, model, path),
        _directory_reader(of_vllm.vllm, of_vllm.form_instead, model, path),
        _gguf_reader(model, path),
    )


def _directory_reader(rules: Callable[[Model], Verdict], form_instead: FormInstead, model: Model, path: str) -> Verdict:
    """What holds for every reader of safetensors directories, else ``rules`` of its own; what Linnet reads and another
    form holds exactly is to be converted."""
    found = rules(model)
    name = found.program
    if model.apart:
        return Verdict(name, False, f"its tensors lie as in the GGUF file that it was made of ({model.apart})", AGAIN)
    if model.kind == "directory" and model.method == "dense":
        return Verdict(name, True, "dense safetensors are its own form")
    if model.file is not None:
        return found if found.instead is None else replace(found, instead=_as_directory(model, path))
    form = None if model.own_words else form_instead(model.schemes)
    another = AGAIN if form is None else f"linnet convert {path} {last_name(path)}-{form} --to {form}"
    if model.method == "linnet":
        return Verdict(name, False, "Linnet's own layout, which it refuses", another)
    if any(scheme.weight.sparsity is not None for scheme in model.schemes.values()):
        return Verdict(name, False, NO_LONGER_READ, _with_zeros(model, path))
    return found if found.instead is None else replace(found, instead=another)


def _as_directory(model: Model, path: str) -> str | None:
    """The command that makes a directory of a GGUF file, if Linnet reads the file."""
    if model.config is None or model.damaged:
        return None
    return f"linnet convert {path} {last_name(path).removesuffix('.gguf')}-dense --to dense"


def _with_zeros(model: Model, path: str) -> str:
    """The command that puts back the zeros that were left out."""
    plain = all(scheme.weight.numbers.plain for scheme in model.schemes.values())
    form = "dense:BF16" if plain else "compressed-tensors"
    return f"linnet convert {path} {last_name(path)}-whole --to {form}"


def _gguf_reader(model: Model, path: str) -> Verdict:
    name = GGUF_READER
    if model.file is not None:
        return reads_file(model, model.file)
    if model.own_words:
        return Verdict(name, False, f"it reads GGUF files only, which have no word for {model.own_words}", AGAIN)
    if model.architecture not in WRITTEN_AS_GGUF:
        return Verdict(name, False, f"it reads GGUF files only, and Linnet writes none for {model.architecture}")
    command = f"linnet convert {path} {last_name(path)}.gguf --to gguf:Q8_0"
    return Verdict(name, False, "it reads GGUF files only", command)
