# SPDX-License-Identifier: Apache-2.0
"""Sampling and scoring on native kernels: numpy arrays in and out."""

import numpy as np

from linnet.backends.interface import SampleResult, SamplingBatch, Scores
from linnet.errors import UnsupportedError


def sample(isa: str, logits: np.ndarray, batch: SamplingBatch) -> SampleResult:
    """See Executable.sample."""
    raise UnsupportedError("native sampling is not built into this extension")


def score(isa: str, logits: np.ndarray, rows: np.ndarray, targets: np.ndarray, other: np.ndarray | None) -> Scores:
    """See Executable.score."""
    raise UnsupportedError("native scoring is not built into this extension")
