# SPDX-License-Identifier: Apache-2.0
"""What a transform is: it changes dense weights so that they are easier to compress, and leaves the function alone."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

from linnet.compress.block import Block
from linnet.compress.statistic import Statistic, StatisticKind
from linnet.models.load import ModelSource
from linnet.schemes.scheme import LinearScheme

FoldKind = Literal["columns", "keys"]


class BlockTransform(Protocol):
    """Changes one block, at one fold after another: a value that some linears read and whose columns can be scaled, or
    the keys of an attention (``folds`` says which).

    Built from its options once per run; holds no state between folds.
    """

    Options: ClassVar[type]
    folds: ClassVar[FoldKind]
    statistics: ClassVar[Mapping[str, StatisticKind]]
    """Of the folds' values, on the rows that the dense block really gets."""

    def __init__(self, options: Any) -> None: ...

    def apply(
        self, block: Block, fold: Any, schemes: Mapping[str, LinearScheme], statistics: Mapping[str, Statistic]
    ) -> Mapping[str, Any]:
        """Change the block; returns notes for the manifest. ``schemes``: what the readers of the fold become."""

    def apply_bytes(self, shape: tuple[int, int]) -> int:
        """Greatest extra memory at such a fold, statistics and the block's weights not counted."""

    def work(self, shape: tuple[int, int]) -> float:
        """Predicted seconds at a fold whose readers' rows are ``shape[0]`` in all, see units.py."""


class ModelTransform(Protocol):
    """Changes the whole model before the first block, since what it does crosses blocks.

    Made once per run, from options as every algorithm. No spool is needed where every changed tensor is a function of
    the source's own: it is computed as it is read.
    """

    def prepare(self, source: ModelSource) -> ModelSource:
        """The model with the tensors and the program that the result will have; reads no weight. UnsupportedError,
        saying why, for a model whose function it could not keep."""

    def apply(self, source: ModelSource, schemes: Mapping[str, LinearScheme], seed: int) -> ModelSource:
        """The function of a model that ``prepare`` returned, in other weights; ``source.checkpoint`` is the original's,
        opened anew. ``schemes``: of what will be packed."""
