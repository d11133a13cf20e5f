# SPDX-License-Identifier: Apache-2.0
"""Sampling and scoring of a step's logits on native kernels (csrc/kernels/sampling); batches in, results out."""

from typing import Any

import numpy as np

from linnet.backends.cpu import _native
from linnet.backends.interface import SAMPLE_PURPOSE, SampleResult, SamplingBatch, Scores
from linnet.errors import ConfigError


class Sampler:
    """One tier's sampling kernels on a backend's pool. Bits depend on the tier and a row's logits alone."""

    def __init__(self, isa: str, pool: Any) -> None:
        self._native = _native.Sampler(isa, pool)

    def sample(self, logits: np.ndarray, batch: SamplingBatch) -> SampleResult:
        """See Executable.sample; ConfigError for an id or row out of range, or arrays of the wrong length or type."""
        try:
            drawn = self._native.sample(
                logits,
                batch.rows,
                batch.temperature,
                batch.top_k,
                batch.top_p,
                batch.min_p,
                batch.repetition_penalty,
                batch.presence_penalty,
                batch.frequency_penalty,
                batch.seed,
                batch.position,
                batch.history_offsets,
                batch.history_ids,
                batch.generated_offsets,
                batch.generated_ids,
                batch.bias_offsets,
                batch.bias_ids,
                batch.bias_values,
                batch.top_logprobs,
                batch.allowed,
                batch.top_allowed,
                SAMPLE_PURPOSE,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        except TypeError:
            raise ConfigError("sampling: the fields of a SamplingBatch are arrays of the types it declares") from None
        return SampleResult(*drawn)

    def score(self, logits: np.ndarray, rows: np.ndarray, targets: np.ndarray, other: np.ndarray | None) -> Scores:
        """See Executable.score; ``other`` are the compared model's logits [outputs, vocabulary]."""
        try:
            logprobs, greedy, ranks, kl, other_greedy = self._native.score(logits, rows, targets, other)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        except TypeError:
            raise ConfigError("scoring: rows and targets are int32 arrays of one length") from None
        if other is None:
            return Scores(logprobs, greedy, ranks)
        return Scores(logprobs, greedy, ranks, kl, other_greedy)
