# SPDX-License-Identifier: Apache-2.0
"""The algorithms by name. A new one is a file here and a line in this table."""

from linnet.compress.algorithm import Algorithm
from linnet.compress.algorithms.gptq import Gptq
from linnet.compress.algorithms.rtn import Rtn

ALGORITHMS: dict[str, type[Algorithm]] = {"rtn": Rtn, "gptq": Gptq}
