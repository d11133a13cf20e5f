# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of given tokens, under one model or two in lockstep."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from linnet.api.generation import Dispatcher, Progress, Sample
from linnet.engine import PromptScores
from linnet.errors import LinnetError


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row under two models, from position ``start`` on. KL is KL(reference || this), in nats, whole vocabulary."""

    kl: np.ndarray  # float32
    logprobs: np.ndarray  # float32: of the row's own tokens under this model
    reference_logprobs: np.ndarray  # float32
    greedy: np.ndarray  # int32: most likely token under this model
    reference_greedy: np.ndarray  # int32

    @property
    def agree(self) -> np.ndarray:
        """Bool: both models rank the same token first."""
        agree: np.ndarray = np.equal(self.greedy, self.reference_greedy)
        return agree

    @staticmethod
    def of(scores: PromptScores) -> "Comparison":
        """From the scores of an engine in lockstep."""
        kl, theirs, greedy = scores.kl, scores.other_logprobs, scores.other_greedy
        assert kl is not None and theirs is not None and greedy is not None, "the engine ran in lockstep"  # noqa: PT018
        return Comparison(kl, scores.logprobs, theirs, scores.greedy, greedy)


def score_rows(
    dispatcher: Dispatcher, samples: Sequence[Sample], progress: Progress | None = None
) -> list[PromptScores]:
    """Compute samples of ``RequestBuilder.scoring``; scores in their order. Raises LinnetError."""
    dispatcher.run([[sample] for sample in samples], progress)
    return [_scores(sample) for sample in samples]


def _scores(sample: Sample) -> PromptScores:
    sample.raise_error()
    scores = sample.stream.prompt_scores
    if scores is None:
        raise LinnetError(f"scoring ended with {sample.stream.finish_reason}")
    return scores
