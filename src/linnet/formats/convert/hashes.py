# SPDX-License-Identifier: Apache-2.0
"""The hash of a model's numbers, whatever form they lie in: equal for two forms of the same numbers."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

from linnet.formats.checkpoint import Checkpoint
from linnet.formats.convert.result import combined
from linnet.formats.convert.source import hashable, list_tensors, open_weight, row_slices, rows_of, values_of


def numbers_hash(checkpoint: Checkpoint, threads: int = 1) -> str:
    """SHA-256 over all tensors' fp32 numbers as ``Conversion.sha256`` counts them; minus zero counts as zero."""

    def one(name: str) -> tuple[str, str]:
        tensor = by_name[name]
        weight, digest = open_weight(checkpoint, tensor), hashlib.sha256()
        for bounds in row_slices(weight):
            digest.update(hashable(values_of(rows_of(weight, *bounds))))
        return name, digest.hexdigest()

    by_name = {tensor.name: tensor for tensor in list_tensors(checkpoint)}
    with ThreadPoolExecutor(max_workers=threads) as pool:
        return combined(pool.map(one, by_name))
