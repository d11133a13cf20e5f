# SPDX-License-Identifier: Apache-2.0
"""What QuaRot rotates at run time, since no neighbour can take the rotation: the input of down_proj, behind the product
of the gate, what attention mixed, across heads, in front of o_proj, and keys and queries, behind their positions
(section 4, stages 1b, 1c and 1d; SpinQuant's R4 and R3). Heads lie one behind the other, so that a run of several is
Hadamard's matrix of heads times that of their channels.

Where a width is no power of two, QuaRot multiplies by a Hadamard matrix of order 12, 20, 28 ... as well. Here the runs
are as long as the greatest power of two that divides it: that is all additions, and it is what compressed-tensors has a
word for (a ``hadamard`` with ``head_dim``), so that the record means the same to whoever reads it.
"""

from linnet.errors import UnsupportedError
from linnet.formats.prescription import Rotation
from linnet.models.load import ModelSource
from linnet.models.rotations import rotations_of
from linnet.models.spec import ExpertsSpec, MlpSpec


def runs_of(width: int) -> int:
    """Channels of a run: the greatest power of two that divides the width."""
    return width & -width


def down_projections(source: ModelSource) -> dict[str, int]:
    """What reads the product of each layer's feed-forward -> channels of its runs. UnsupportedError if one is odd."""
    halves = {layer: block.feed_forward for layer, block in enumerate(source.spec.layers)}
    for layer, half in halves.items():
        if isinstance(half, ExpertsSpec):
            raise UnsupportedError(f"layer {layer} is a mixture of experts, whose inputs are not rotated")
    downs = ((layer, half.down) for layer, half in halves.items() if isinstance(half, MlpSpec))
    found = {down.module.format(layer=layer): runs_of(down.columns) for layer, down in downs}
    for module, size in found.items():
        if size < 2:
            raise UnsupportedError(f"{module} has an odd number of columns, so that its input cannot be rotated")
    return found


def output_projections(source: ModelSource) -> dict[str, int]:
    """What reads the heads of each layer's attention -> channels of its runs. UnsupportedError if no run spans two."""
    found: dict[str, int] = {}
    for layer, mixer in source.spec.attentions.items():
        module = mixer.output.module.format(layer=layer)
        found[module] = runs_of(mixer.output.columns)
        if found[module] <= mixer.value_size:
            raise UnsupportedError(
                f"{module} reads {mixer.heads} heads of {mixer.value_size} channels, so that runs of {found[module]}, "
                "the greatest power of two that divides them, span no two heads; values: true turns each by itself"
            )
    return found


def attentions(source: ModelSource) -> dict[str, int]:
    """The attention of each layer -> channels of its heads' runs. UnsupportedError if heads are odd."""
    mixers = source.spec.attentions
    found = {mixer.module(layer): runs_of(mixer.head_size) for layer, mixer in mixers.items()}
    for module, size in found.items():
        if size < 2:
            raise UnsupportedError(f"{module} has heads of an odd size, which cannot be rotated")
    return found


def as_rotations(source: ModelSource, inputs: dict[str, int], keys: dict[str, int]) -> tuple[Rotation, ...]:
    """Inputs of linears, and attentions whose queries and keys turn, by size and kind. UnsupportedError for what the
    source rotates already."""
    before = rotations_of(source.spec, source.checkpoint)
    twice = next((module for module in (*inputs, *keys) if module in before), None)
    if twice is not None:
        raise UnsupportedError(f"{source.checkpoint.path}: {twice} is rotated at run time already")
    found: list[Rotation] = []
    for size in sorted(set(inputs.values())):
        found.append(Rotation(tuple(name for name in inputs if inputs[name] == size), size=size))
    for size in sorted(set(keys.values())):
        found.append(Rotation(tuple(name for name in keys if keys[name] == size), size=size, of="attention"))
    return tuple(found)
