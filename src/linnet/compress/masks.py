# SPDX-License-Identifier: Apache-2.0
"""Which weights a pattern keeps, given how much each matters. Exact counts; ties go to the earlier column."""

from typing import Literal

import numpy as np
import torch

from linnet.schemes.sparsity import SparsityPattern

Among = Literal["row", "layer"]
"""What the weights of an unstructured pattern compete with: the others of their row, or all of the layer."""


def greatest(scores: torch.Tensor, pattern: SparsityPattern, among: Among = "row") -> torch.Tensor:
    """bool [rows, columns]: what is kept of fp32 ``scores`` [rows, columns], the greatest as the pattern says."""
    if pattern.kept is not None and pattern.group is not None:
        groups = scores.T.reshape(-1, pattern.group, scores.shape[0])
        return greatest_of_group(groups, pattern.kept).reshape(scores.T.shape).T.contiguous()
    if among == "layer":
        return all_but(scores.reshape(1, -1), pattern.pruned(scores.numel())).view(scores.shape)
    return all_but(scores, pattern.pruned(scores.shape[1]))


def greatest_of_group(groups: torch.Tensor, kept: int) -> torch.Tensor:
    """bool [..., group, rows]: the ``kept`` greatest along the last axis but one."""
    scores = groups.unbind(-2)
    ranks = [torch.zeros_like(score, dtype=torch.int8) for score in scores]
    for right in range(len(scores)):
        for left in range(right):
            first = scores[left] >= scores[right]
            ranks[right] += first
            ranks[left] += ~first
    return torch.stack([rank < kept for rank in ranks], dim=-2)


def all_but(scores: torch.Tensor, pruned: int) -> torch.Tensor:
    """bool [rows, columns]: of every row all but the ``pruned`` least."""
    columns = scores.shape[1]
    if pruned == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    # numpy's selection works on whole vectors: a tenth of the time of torch's kthvalue, the same values
    threshold = torch.from_numpy(np.partition(scores.numpy(), pruned - 1, axis=1)[:, pruned - 1 : pruned].copy())
    kept = scores > threshold
    for row in torch.nonzero(kept.sum(dim=1) < columns - pruned)[:, 0].tolist():  # equals at the threshold
        equals = torch.nonzero(scores[row] == threshold[row])[:, 0]
        kept[row, equals[: columns - pruned - int(kept[row].sum())]] = True
    return kept
