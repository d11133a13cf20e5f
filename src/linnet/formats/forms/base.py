# SPDX-License-Identifier: Apache-2.0
"""What a form in which quantised models are published must be able to say of a config and of a module's tensors."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.formats.header import TensorInfo
from linnet.formats.prescription import Quantization
from linnet.schemes import LinearScheme, PackedWeight

Tensors = Mapping[str, TensorInfo]
ReadTensor = Callable[[str], npt.NDArray[Any]]
"""Tensor name -> the stored array, usually a mapped view."""


SCALE_TYPES = ("fp32", "bf16", "fp16")


def scale_type(module: str, leaf: str, tensors: Tensors, where: str) -> Any:
    """The type in which a module's scales lie. CheckpointError if there are none, or of another type."""
    info = tensors.get(f"{module}.{leaf}")
    if info is None:
        raise CheckpointError(f"{where}: {module}.{leaf} is missing, the codes of {module} mean nothing without it")
    if info.dtype not in SCALE_TYPES:
        raise CheckpointError(f"{where}: {module}.{leaf} is {info.dtype}; scales are fp32, bf16 or fp16")
    return info.dtype


class Form(Protocol):
    """One published form. ``where`` names a file, and a module, in errors. Stateless."""

    methods: tuple[str, ...]
    """The values of ``quant_method`` that it answers to."""
    suffixes: tuple[str, ...]
    """Names, relative to the module, one of which holds the codes."""
    repacks: bool
    """Whether ``read`` makes new arrays: the files' own pages are wanted no more after it."""

    def for_record(self, record: Mapping[str, Any], where: str) -> "Form":
        """The form with the conventions that this ``quantization_config`` names; itself where there is one alone."""

    def read_config(self, record: Mapping[str, Any], where: str) -> Quantization:
        """The ``quantization_config`` record. CheckpointError: malformed; UnsupportedError: nothing here reads it."""

    def module_of(self, name: str) -> str:
        """The module that a tensor of this name belongs to."""

    def claims(self, module: str, tensors: Tensors) -> bool:
        """Whether this module's weight lies quantised in this form, by its tensors alone."""

    def scheme(self, module: str, prescribed: LinearScheme | None, tensors: Tensors, where: str) -> LinearScheme:
        """How a claimed module is stored: what the config prescribes, with the types that lie on disk."""

    def shape(
        self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str
    ) -> tuple[int, int] | None:
        """Logical [rows, columns] of a claimed module from headers and small tensors; None: reading it is as cheap."""

    def read(self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str) -> PackedWeight:
        """A claimed module, assembled and checked; ``scheme`` comes from ``scheme``."""


@runtime_checkable
class Shapeless(Protocol):
    """What a Form also says whose files do not tell what shape a weight has: the model's config must."""

    def with_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> Form:
        """The form knowing what shape the dense tensors (``module.weight``) have."""


@runtime_checkable
class Spread(Protocol):
    """What a Form also says that has weights which no scheme holds: they are shown dense, computed when read."""

    suffixes: tuple[str, ...]
    """See Form.suffixes."""

    def plain_modules(self, tensors: Tensors, tensor: ReadTensor, where: str) -> Mapping[str, tuple[int, int]]:
        """Such modules -> their logical [rows, columns]. CheckpointError for sizes that cannot be."""

    def plain_values(self, module: str, tensors: Tensors, tensor: ReadTensor, where: str) -> npt.NDArray[Any]:
        """fp32 [rows, columns] of one of them, checked."""
