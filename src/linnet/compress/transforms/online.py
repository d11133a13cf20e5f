# SPDX-License-Identifier: Apache-2.0
"""What QuaRot rotates at run time, since no neighbour can take the rotation: the input of down_proj, behind the product
of the gate, and keys and queries, behind their positions (section 4, stages 1b and 1d; SpinQuant's R4 and R3).

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


def attentions(source: ModelSource) -> dict[str, int]:
    """The attention of each layer -> channels of its heads' runs. UnsupportedError if heads are odd."""
    mixers = source.spec.attentions
    found = {mixer.module(layer): runs_of(mixer.head_size) for layer, mixer in mixers.items()}
    for module, size in found.items():
        if size < 2:
            raise UnsupportedError(f"{module} has heads of an odd size, which cannot be rotated")
    return found


def as_rotations(source: ModelSource, downs: dict[str, int], heads: dict[str, int]) -> tuple[Rotation, ...]:
    """By size and kind. UnsupportedError for what the source rotates already."""
    before = rotations_of(source.spec, source.checkpoint)
    twice = next((module for module in (*downs, *heads) if module in before), None)
    if twice is not None:
        raise UnsupportedError(f"{source.checkpoint.path}: {twice} is rotated at run time already")
    found: list[Rotation] = []
    for size in sorted(set(downs.values())):
        found.append(Rotation(tuple(name for name in downs if downs[name] == size), size=size))
    for size in sorted(set(heads.values())):
        found.append(Rotation(tuple(name for name in heads if heads[name] == size), size=size, of="attention"))
    return tuple(found)
