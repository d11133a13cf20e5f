# SPDX-License-Identifier: Apache-2.0
"""Which scheme of the wanted form every weight gets: decided for all of them before one is read.

What a quantised model keeps as plain numbers stays plain: whoever made it left them alone on purpose. Of a plain model
the linears inside the layers are rounded, if the form rounds at all.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linnet.formats.convert.source import SourceTensor
from linnet.formats.forms.canonical_written import CANONICAL
from linnet.formats.forms.written import PlannedModule, WrittenForm
from linnet.schemes import LinearScheme


@dataclass(frozen=True)
class Choice:
    """The scheme of a form that can mean a weight's numbers, and the one that it is rounded to otherwise."""

    held: LinearScheme | None
    nearest: LinearScheme | None

    @property
    def scheme(self) -> LinearScheme:
        """What the weight gets."""
        found = self.held or self.nearest
        assert found is not None
        return found


def choose(
    tensors: Sequence[SourceTensor],
    wanted: WrittenForm | None,
    linears: Collection[str],
    config: Mapping[str, Any],
) -> tuple[WrittenForm, dict[str, Choice]]:
    """The form with its settings, and tensor name -> choice; tensors without one are written as plain numbers.

    ``wanted`` None: plain numbers throughout. UnsupportedError: linears that the form cannot hold.
    """
    if wanted is None:
        return CANONICAL, {}
    from_plain = all(tensor.scheme is None for tensor in tensors)
    taken = [tensor for tensor in tensors if _is_taken(tensor, wanted, from_plain, linears)]
    planned = {tensor.module: PlannedModule(tensor.scheme, _matrix(tensor)) for tensor in taken}
    form = wanted.settled(planned, config) if planned else wanted
    choices = {}
    for tensor in taken:
        held = None if tensor.scheme is None else form.held(tensor.scheme)
        nearest = form.nearest(tensor.scheme, _matrix(tensor))
        if held is not None or nearest is not None:
            choices[tensor.name] = Choice(held, nearest)
    return form, choices


def _is_taken(tensor: SourceTensor, form: WrittenForm, from_plain: bool, linears: Collection[str]) -> bool:
    if tensor.scheme is None and not (from_plain and tensor.module in linears):
        return False
    return tensor.name.endswith(".weight") and form.takes(tensor.module, tensor.scheme)


def _matrix(tensor: SourceTensor) -> tuple[int, int]:
    rows, columns = tensor.shape
    return rows, columns
