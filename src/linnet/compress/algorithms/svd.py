# SPDX-License-Identifier: Apache-2.0
"""Truncated SVD: two narrow matrices in a weight's place, with the least squared error of the weight itself.

Data-free; the baseline of the activation-aware ones. Eckart and Young 1936.
"""

from typing import ClassVar

from linnet.compress.low_rank import Closest, FactoriseOptions


class Svd(Closest):
    """All columns cost alike."""

    Options: ClassVar[type] = FactoriseOptions
