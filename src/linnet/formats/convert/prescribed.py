# SPDX-License-Identifier: Apache-2.0
"""What a source prescribes for run time and the result will not: to be said before anything is published."""

from collections.abc import Mapping, Sequence

from linnet.formats.checkpoint import Checkpoint
from linnet.formats.convert.choosing import Choice
from linnet.formats.convert.source import SourceTensor
from linnet.formats.forms import WrittenForm
from linnet.formats.quantization import record_of
from linnet.schemes import Scheme


def dropped(
    checkpoint: Checkpoint,
    tensors: Sequence[SourceTensor],
    choices: Mapping[str, Choice],
    form: WrittenForm | None = None,
) -> tuple[str, ...]:
    """Sentences about activations and the KV cache; nothing where all is carried over. ``form`` None: plain numbers."""
    lost: dict[tuple[str, str | None], int] = {}
    for tensor in tensors:
        before = None if tensor.scheme is None else tensor.scheme.input
        choice = choices.get(tensor.name)
        after = None if choice is None else choice.scheme.input
        if before is not None and (after is None or _shown(after) != _shown(before)):
            key = _shown(before), None if after is None else _shown(after)
            lost[key] = lost.get(key, 0) + 1
    said = [
        f"{count} linears prescribe {before} activations, the result "
        + ("none" if after is None else f"{after} activations")
        for (before, after), count in lost.items()
    ]
    element = checkpoint.quantization.kv_element
    if element is not None and not keeps_cache(checkpoint, choices, form):
        said.append(f"the source prescribes a KV cache of {element}, the result none")
    return tuple(said)


def _shown(scheme: Scheme) -> str:
    """``dynamic int8 per token``."""
    shared = f"group of {scheme.group_size}" if scheme.group_size else scheme.granularity
    zero = " in a narrow range" if scheme.narrow_range else "" if scheme.symmetric else " with zero points"
    return f"{'dynamic' if scheme.dynamic else 'static'} {scheme.element} per {shared}{zero}"


def keeps_cache(checkpoint: Checkpoint, choices: Mapping[str, Choice], form: WrittenForm | None) -> bool:
    """Whether the result goes on prescribing its KV cache."""
    source = record_of(checkpoint.config)
    if form is None or not isinstance(source, dict):
        return False
    modules = {name.removesuffix(".weight"): choice.scheme for name, choice in choices.items()}
    return bool(modules) and form.record(modules, (), source).get("kv_cache_scheme") is not None
