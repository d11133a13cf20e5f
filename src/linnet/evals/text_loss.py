# SPDX-License-Identifier: Apache-2.0
"""Perplexity and divergence on running text, both from one pass of the two models in lockstep.

Documents are cut apart. Stride: a window holds at most ``context`` tokens and advances by ``stride``, but always keeps
one token of the window before, which its first scored token needs to be predicted from. Only tokens no earlier window
has scored count, so every token after a document's first is scored once, and all but its first window's see at least
``context - stride`` tokens before them. Smaller strides give lower perplexities; numbers compare only at equal context,
stride and tokeniser.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from linnet.api import LLM
from linnet.errors import ConfigError
from linnet.evals.abilities import Progress
from linnet.evals.statistics import Interval, mean_interval

ENOUGH_DOCUMENTS = 8


@dataclass(frozen=True)
class Windows:
    """Token rows and, for each, the first position whose token is scored."""

    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    context: int
    stride: int
    documents: tuple[int, ...] = ()
    """For each row the number of its document; empty: all rows are of one."""

    @property
    def document_count(self) -> int:
        """Documents that are scored."""
        return max(len(set(self.documents)), 1)

    @property
    def enough_documents(self) -> bool:
        """Whether intervals can be resampled over documents."""
        return self.document_count >= ENOUGH_DOCUMENTS

    def first(self, count: int) -> "Windows":
        """The first windows alone."""
        return Windows(self.rows[:count], self.starts[:count], self.context, self.stride, self.documents[:count])

    @property
    def clusters(self) -> tuple[int, ...]:
        """For each row its cluster, what intervals are resampled over: the document; the window where documents are
        fewer than ENOUGH_DOCUMENTS, and then an interval speaks of these documents only."""
        if self.enough_documents:
            return self.documents
        return tuple(range(len(self.rows)))

    @property
    def scored_tokens(self) -> int:
        """Tokens that count, over all windows."""
        return sum(len(row) - start for row, start in zip(self.rows, self.starts, strict=True))


@dataclass(frozen=True)
class TextLoss:
    """What a candidate loses on text. Perplexities are exp(mean negative log-likelihood per token)."""

    reference_perplexity: Interval
    candidate_perplexity: Interval
    perplexity_ratio: Interval
    kl_mean: Interval
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: Interval
    tokens: int


def document_windows(
    documents: Sequence[Sequence[int]],
    context: int,
    stride: int,
    max_tokens: int | None = None,
    given: Sequence[int] | None = None,
) -> Windows:
    """Cut every document on its own, so that no window reads one through another.

    ``given``: how many tokens at the start of each are only read, never scored (at least one; documents of no more
    have nothing to score). ``max_tokens`` bounds the scored tokens of all together. ConfigError if nothing is left.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}; accepted is 1 or more", settings=["max_tokens"])
    rows: list[tuple[int, ...]] = []
    starts: list[int] = []
    owners: list[int] = []
    left = max_tokens
    firsts = given or [1] * len(documents)
    for number, (tokens, first) in enumerate(zip(documents, firsts, strict=True)):
        if len(tokens) <= first or left == 0:
            continue
        cut = windows(tokens, context, stride, left, first)
        rows += cut.rows
        starts += cut.starts
        owners += [number] * len(cut.rows)
        left = None if left is None else left - cut.scored_tokens
    if not rows:
        raise ConfigError("the evaluation text is too short; 2 tokens or more are needed, one to read, one to score")
    return Windows(tuple(rows), tuple(starts), context, stride, tuple(owners))


def windows(
    token_ids: Sequence[int], context: int, stride: int, max_tokens: int | None = None, first: int = 1
) -> Windows:
    """Cut a token stream, whose token ``first`` is the first to be scored.

    ConfigError if nothing could be scored or the stride leaves tokens out.
    """
    if context < 2:
        raise ConfigError(f"context is {context}; accepted is 2 tokens or more", settings=["context"])
    if not 0 < stride <= context:
        raise ConfigError(f"stride is {stride}; accepted is 1 to the context, {context} tokens", settings=["stride"])
    tokens = tuple(token_ids[: None if max_tokens is None else max_tokens + first])
    if len(tokens) < 2:
        raise ConfigError(f"the evaluation text has {len(tokens)} token(s); at least 2 are needed")
    rows, starts, scored = [], [], first
    for begin in range(0, len(tokens), min(stride, context - 1)):
        end = min(begin + context, len(tokens))
        if end <= scored:
            continue
        rows.append(tokens[begin:end])
        starts.append(max(scored - begin, 1))
        scored = end
    return Windows(tuple(rows), tuple(starts), context, stride)


def perplexity(llm: LLM, text: Windows, progress: Progress) -> Interval:
    """Perplexity with an interval over documents or windows."""
    scores = llm.score(text.rows, starts=text.starts, progress=lambda done, total: progress("text", done, total))
    return _perplexity(_by_cluster(text, scores))


def compare(candidate: LLM, reference: LLM, text: Windows, progress: Progress) -> TextLoss:
    """Both models read the same windows in lockstep; KL is KL(reference || candidate), summed over the vocabulary."""
    result = candidate.compare(
        reference, text.rows, starts=text.starts, progress=lambda done, total: progress("text", done, total)
    )
    kl = np.concatenate([window.kl for window in result]).astype(np.float64)
    ours = _by_cluster(text, [window.logprobs for window in result])
    theirs = _by_cluster(text, [window.reference_logprobs for window in result])
    difference = [mine - yours for mine, yours in zip(ours, theirs, strict=True)]
    return TextLoss(
        reference_perplexity=_perplexity(theirs),
        candidate_perplexity=_perplexity(ours),
        perplexity_ratio=_perplexity(difference),
        kl_mean=mean_interval(_by_cluster(text, [window.kl for window in result])).within(0, math.inf),
        kl_median=float(np.median(kl)),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        top1_agreement=mean_interval(_by_cluster(text, [window.agree for window in result])).within(0, 1),
        tokens=len(kl),
    )


def _perplexity(logprobs: Sequence[np.ndarray]) -> Interval:
    """exp of the mean negative log-probability; of differences, the ratio of two perplexities."""
    return mean_interval([-cluster for cluster in logprobs]).map(lambda loss: math.exp(min(loss, 700.0)))


def _by_cluster(text: Windows, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The numbers of every cluster's windows together, one array a cluster."""
    together: dict[int, list[np.ndarray]] = {}
    for cluster, sample in zip(text.clusters, samples, strict=True):
        together.setdefault(cluster, []).append(np.asarray(sample, dtype=np.float64))
    return [np.concatenate(parts) for parts in together.values()]
