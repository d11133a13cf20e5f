# SPDX-License-Identifier: Apache-2.0
"""bench/sizes.py: the kernels' sizes are still where it looks for them."""

from pathlib import Path

from sizes import sizes

ROOT = Path(__file__).resolve().parents[3]


def test_each_size_stands_where_it_is_changed() -> None:
    for size in sizes():
        for file, there, _ in size.edits:
            assert (ROOT / file).read_text(encoding="utf-8").count(there) == 1, (size.name, file, there)
        assert size.usual not in size.values
        assert size.cases
