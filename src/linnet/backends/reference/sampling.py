# SPDX-License-Identifier: Apache-2.0
"""Sampling and scoring: the specification of every backend's ``sample`` and ``score``, in numpy.

Logits, mask, bias, penalties and the division by temperature are fp32, one operation at a time; probabilities
and their sums are float64, in token-id order (sorted order for top_p), so that an implementation with other
exponentials differs only where a uniform number falls within rounding of a boundary.
"""

import numpy as np

from linnet.backends.interface import SAMPLE_PURPOSE, SampleResult, SamplingBatch, Scores
from linnet.errors import ConfigError

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low, high = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high & _WORD, (low >> 32) ^ c3 ^ k1, low & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, position: int, purpose: int) -> float:
    """A number in [0, 1) with 53 random bits; key = seed, counter = (position low, position high, purpose, 0)."""
    words = philox4x32((position & _WORD, (position >> 32) & _WORD, purpose, 0), (seed & _WORD, (seed >> 32) & _WORD))
    return ((words[0] >> 5) * 67108864 + (words[1] >> 6)) / 9007199254740992.0


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Float64 [rows, vocabulary]."""
    wide: np.ndarray = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def sample(logits: np.ndarray, sampling: SamplingBatch) -> SampleResult:
    """One token per entry from fp32 logits [outputs, vocabulary]."""
    n, vocabulary = len(sampling.rows), logits.shape[1]
    k = sampling.top_logprobs or 0
    if not 0 <= k <= vocabulary:
        raise ConfigError(f"top_logprobs must lie in 0 .. {vocabulary}, not {k}")
    result = SampleResult(
        token_ids=np.full(n, -1, np.int32),
        logprobs=np.full(n, np.nan, np.float32),
        top_ids=np.zeros((n, k), np.int32),
        top_logprobs=np.zeros((n, k), np.float32),
    )
    for entry in range(n):
        raw = logits[sampling.rows[entry]]
        if np.isnan(raw).any():
            result.top_logprobs[entry] = np.nan
            continue
        logprobs = log_softmax(raw[None])[0]
        told = raw
        if sampling.top_allowed is not None and sampling.top_allowed[entry]:
            told = _of_allowed(raw, sampling, entry)
        order = np.argsort(-told, kind="stable")[:k]
        result.top_ids[entry] = order
        result.top_logprobs[entry] = np.where(np.isneginf(told[order]), -np.inf, logprobs[order])
        token = _draw(adjust(raw, sampling, entry), sampling, entry)
        result.token_ids[entry] = token
        if token >= 0 and sampling.top_logprobs is not None:
            result.logprobs[entry] = logprobs[token]
    return result


def adjust(raw: np.ndarray, sampling: SamplingBatch, entry: int) -> np.ndarray:
    """Mask, bias and penalties of one entry: fp32 [vocabulary]."""
    logits = _of_allowed(raw.astype(np.float32), sampling, entry)
    bias = slice(sampling.bias_offsets[entry], sampling.bias_offsets[entry + 1])
    logits[sampling.bias_ids[bias]] += sampling.bias_values[bias]
    history = sampling.history_ids[sampling.history_offsets[entry] : sampling.history_offsets[entry + 1]]
    penalty = np.float32(sampling.repetition_penalty[entry])
    if penalty != 1:
        seen = np.unique(history)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    generated = sampling.generated_ids[sampling.generated_offsets[entry] : sampling.generated_offsets[entry + 1]]
    ids, counts = np.unique(generated, return_counts=True)
    logits[ids] -= np.float32(sampling.frequency_penalty[entry]) * counts.astype(np.float32)
    logits[ids] -= np.float32(sampling.presence_penalty[entry])
    return logits


def _of_allowed(values: np.ndarray, sampling: SamplingBatch, entry: int) -> np.ndarray:
    """A copy [vocabulary] with -inf for what the entry's mask does not allow."""
    values = values.copy()
    if sampling.allowed is not None:
        bits = np.unpackbits(sampling.allowed[entry].view(np.uint8), bitorder="little")[: len(values)]
        values[bits == 0] = -np.inf
    return values


def _draw(logits: np.ndarray, sampling: SamplingBatch, entry: int) -> int:
    greatest = logits.max()
    if np.isneginf(greatest) or np.isnan(greatest):
        return -1
    temperature = np.float32(sampling.temperature[entry])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        keys = logits / temperature
    # So small a temperature that the division overflows leaves nothing to draw from but the greatest logit.
    if temperature == 0 or not np.isfinite(keys.max()):
        return int(logits.argmax())
    scaled = keys.astype(np.float64)
    mass = np.exp(scaled - scaled.max())
    kept = keep_mask(mass, int(sampling.top_k[entry]), float(sampling.top_p[entry]), float(sampling.min_p[entry]))
    cumulative = np.cumsum(np.where(kept, mass, 0.0))
    number = uniform(int(sampling.seed[entry]), int(sampling.position[entry]), SAMPLE_PURPOSE)
    token = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    return min(token, int(np.flatnonzero(kept)[-1]))


def keep_mask(mass: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Tokens that survive top_k (exactly k, ties to the lowest id), top_p and min_p. ``mass``: exp(logit - greatest).

    top_p keeps, from the most likely on, tokens as long as the mass before them is below top_p of the mass left by
    top_k; min_p keeps tokens of at least min_p times the greatest probability. The most likely token always stays.
    """
    kept = np.ones(len(mass), bool)
    if 0 < top_k < len(mass) or top_p < 1:
        order = np.argsort(-mass, kind="stable")
        if 0 < top_k < len(mass):
            kept[order[top_k:]] = False
            order = order[:top_k]
        if top_p < 1:
            cumulative = np.cumsum(mass[order])
            before = cumulative - mass[order]
            out = before >= top_p * cumulative[-1]
            out[0] = False
            kept[order[out]] = False
    if min_p > 0:
        kept &= mass >= min_p
    return kept


def score(logits: np.ndarray, rows: np.ndarray, targets: np.ndarray, other: np.ndarray | None = None) -> Scores:
    """See Executable.score; ``other`` are the other executable's logits for the same output rows."""
    own = logits[rows]
    if targets.shape != rows.shape:
        raise ConfigError(f"score needs one target per row: {rows.shape[0]} rows, {targets.shape[0]} targets")
    if targets.size and (targets.min() < 0 or targets.max() >= logits.shape[1]):
        raise ConfigError(f"score targets must lie in [0, {logits.shape[1]})")
    logprobs = log_softmax(own)
    index = np.arange(len(rows))
    chosen = own[index, targets][:, None]
    lower_id = np.arange(own.shape[1])[None] < targets[:, None]
    ranks = ((own > chosen) | ((own == chosen) & lower_id)).sum(axis=1)
    result = Scores(
        logprobs=logprobs[index, targets].astype(np.float32),
        greedy=own.argmax(axis=1).astype(np.int32),
        ranks=ranks.astype(np.int32),
    )
    if other is not None:
        if other.shape != logits.shape:
            raise ConfigError(f"the compared model's logits are {other.shape}, this one's {logits.shape}")
        theirs = log_softmax(other[rows])
        terms = np.exp(theirs) * np.where(np.isneginf(theirs), 0.0, theirs - logprobs)
        result.kl = np.maximum(terms.sum(axis=1), 0).astype(np.float32)
        result.other_greedy = other[rows].argmax(axis=1).astype(np.int32)
    return result
