# SPDX-License-Identifier: Apache-2.0
"""Which linears are sums of terms, as ``quantization_config`` of Linnet's own layout says it (docs/FORMAT.md)."""

from collections.abc import Mapping
from typing import Any

from linnet.errors import CheckpointError
from linnet.schemes import Terms

TERMS_KEY = "terms"
_KNOWN = {"whole", "rank", "outliers", "sparse"}


def terms_to_record(terms: Mapping[str, Terms]) -> dict[str, Any]:
    """Module -> what it is the sum of."""
    return {
        module: {"whole": item.whole, "rank": item.rank}
        | ({"outliers": list(item.outliers)} if item.outliers else {})
        | ({"sparse": item.sparse} if item.sparse else {})
        for module, item in sorted(terms.items())
    }


def read_terms(record: Any, where: str) -> dict[str, Terms]:
    """The inverse, for anything found on disk. CheckpointError names the module whose entry makes no sense."""
    if not isinstance(record, dict):
        raise CheckpointError(f"{where} must be an object, not {record!r:.80}")
    return {module: _read(item, f"{where}[{module[:80]!r}]") for module, item in record.items()}


def _read(item: Any, where: str) -> Terms:
    if not isinstance(item, dict) or not item.keys() <= _KNOWN:
        raise CheckpointError(f"{where} must be an object with {', '.join(sorted(_KNOWN))}, not {item!r:.80}")
    whole, rank, outliers = item.get("whole", True), item.get("rank", 0), item.get("outliers", [])
    numbers = isinstance(outliers, list) and all(type(column) is int for column in outliers)
    sparse = item.get("sparse", 0)
    if not isinstance(whole, bool) or type(rank) is not int or type(sparse) is not int or not numbers:
        raise CheckpointError(
            f"{where}: whole is true or false, rank and sparse are whole numbers and outliers a list of such, not "
            f"{item!r:.80}"
        )
    try:
        return Terms(whole, rank, tuple(outliers), sparse)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
