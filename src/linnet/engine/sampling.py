# SPDX-License-Identifier: Apache-2.0
"""Builds the SamplingBatch of a step from the parameters and the tokens so far of the requests that sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from linnet.backends.interface import SamplingBatch
from linnet.engine.sampling_params import SamplingParams

LEAST_TEMPERATURE = 1e-5
"""Below it sampling is greedy: the draw would be, but logits divided by so little leave the range of fp32."""


@dataclass(frozen=True, slots=True)
class SamplingEntry:
    """One row to sample. ``known`` is prompt and generated tokens; ``allowed`` the matcher's words or None;
    ``alternatives``: how many of the likeliest tokens are to be told beside the drawn one; None: no log-probability.
    ``of_allowed``: of those that are allowed."""

    row: int
    params: SamplingParams
    seed: int
    known: Sequence[int]
    prompt_tokens: int
    stop_token_ids: frozenset[int]
    allowed: np.ndarray | None = None
    alternatives: int | None = None
    of_allowed: bool = False

    @property
    def position(self) -> int:
        """The output position, first generated token = 0: it, the seed and the logits decide the token."""
        return len(self.known) - self.prompt_tokens

    @property
    def plain(self) -> bool:
        """Whether nothing but row, position and mask changes from one of its steps to the next."""
        params = self.params
        neutral = params.repetition_penalty == 1.0 and params.presence_penalty == 0.0 == params.frequency_penalty
        return neutral and not params.logit_bias and not params.min_tokens

    def biases(self) -> dict[int, float]:
        """logit_bias, and -inf for what would end the request before min_tokens."""
        if self.position >= self.params.min_tokens or not self.stop_token_ids:
            return dict(self.params.logit_bias)
        return {**self.params.logit_bias, **dict.fromkeys(self.stop_token_ids, -np.inf)}


class SamplingBatches:
    """The SamplingBatch of every step. Most steps sample whom the one before sampled: what stays is built once."""

    def __init__(self, words: int) -> None:
        """``words``: see ``sampling_batch``."""
        self._words = words
        self._known: list[tuple[SamplingParams, int]] = []
        self._batch: SamplingBatch | None = None

    def of(self, entries: Sequence[SamplingEntry]) -> SamplingBatch:
        """Valid until the next call."""
        if self._batch is None or not self._stays(entries):
            batch = sampling_batch(entries, self._words)
            lasting = all(entry.plain for entry in entries)
            self._batch = batch if lasting else None
            self._known = [(entry.params, entry.seed) for entry in entries]
            return batch
        self._batch.rows = np.array([entry.row for entry in entries], np.int32)
        self._batch.position = np.array([entry.position for entry in entries], np.int64)
        self._batch.allowed = _allowed(entries, self._words)
        self._batch.top_allowed = _top_allowed(entries)
        return self._batch

    def _stays(self, entries: Sequence[SamplingEntry]) -> bool:
        return len(entries) == len(self._known) and all(
            entry.params is params and entry.seed == seed
            for entry, (params, seed) in zip(entries, self._known, strict=True)
        )


def sampling_batch(entries: Sequence[SamplingEntry], words: int) -> SamplingBatch:
    """``words``: uint32 words of an allowed mask, used when any entry has one."""
    history: list[int] = []
    generated: list[int] = []
    history_sizes, generated_sizes, bias_sizes = [0], [0], [0]
    bias_ids: list[int] = []
    bias_values: list[float] = []
    for entry in entries:
        params = entry.params
        if params.repetition_penalty != 1.0:
            history += entry.known
        if params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
            generated += entry.known[entry.prompt_tokens :]
        if params.logit_bias or params.min_tokens:
            biases = entry.biases()
            bias_ids += biases.keys()
            bias_values += biases.values()
        history_sizes.append(len(history))
        generated_sizes.append(len(generated))
        bias_sizes.append(len(bias_ids))
    return SamplingBatch(
        rows=np.array([entry.row for entry in entries], np.int32),
        temperature=np.array([_temperature(entry.params) for entry in entries], np.float32),
        top_k=np.array([max(entry.params.top_k, 0) for entry in entries], np.int32),
        top_p=np.array([entry.params.top_p for entry in entries], np.float32),
        min_p=np.array([entry.params.min_p for entry in entries], np.float32),
        repetition_penalty=np.array([entry.params.repetition_penalty for entry in entries], np.float32),
        presence_penalty=np.array([entry.params.presence_penalty for entry in entries], np.float32),
        frequency_penalty=np.array([entry.params.frequency_penalty for entry in entries], np.float32),
        seed=np.array([entry.seed for entry in entries], np.uint64),
        position=np.array([entry.position for entry in entries], np.int64),
        history_offsets=np.array(history_sizes, np.int64),
        history_ids=np.array(history, np.int32),
        generated_offsets=np.array(generated_sizes, np.int64),
        generated_ids=np.array(generated, np.int32),
        bias_offsets=np.array(bias_sizes, np.int64),
        bias_ids=np.array(bias_ids, np.int32),
        bias_values=np.array(bias_values, np.float32),
        top_logprobs=max((entry.alternatives for entry in entries if entry.alternatives is not None), default=None),
        allowed=_allowed(entries, words),
        top_allowed=_top_allowed(entries),
    )


def _temperature(params: SamplingParams) -> float:
    return params.temperature if params.temperature >= LEAST_TEMPERATURE else 0.0


def _top_allowed(entries: Sequence[SamplingEntry]) -> np.ndarray | None:
    if not any(entry.of_allowed for entry in entries):
        return None
    return np.array([entry.of_allowed for entry in entries])


def _allowed(entries: Sequence[SamplingEntry], words: int) -> np.ndarray | None:
    if all(entry.allowed is None for entry in entries):
        return None
    if len(entries) == 1:
        return entries[0].allowed[None]  # type: ignore[index]
    mask = np.full((len(entries), words), 0xFFFFFFFF, np.uint32)
    for row, entry in enumerate(entries):
        if entry.allowed is not None:
            mask[row] = entry.allowed
    return mask
