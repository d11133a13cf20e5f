# SPDX-License-Identifier: Apache-2.0
"""What tokens stand for, as plain values: what a grammar needs of a tokenizer, in whatever process it is matched."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """``text``: the bytes of all tokens, one after the other, each as long as ``lengths`` says (int32 [vocabulary]).

    Ids without a token have none. ``special_ids`` stand for no text; ``eos_ids`` are those that end a sequence.
    """

    text: bytes
    lengths: np.ndarray
    special_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]

    @property
    def size(self) -> int:
        """Of the model's logits."""
        return len(self.lengths)

    def tokens(self) -> list[bytes]:
        """The bytes of each token."""
        ends = np.cumsum(self.lengths).tolist()
        return [self.text[end - length : end] for end, length in zip(ends, self.lengths.tolist(), strict=True)]
