# SPDX-License-Identifier: Apache-2.0
"""Which group sizes fit a number of columns."""

from linnet.errors import ConfigError
from linnet.schemes.scheme import Scheme

SMALLEST_GROUP = 16
LARGEST_GROUP = 1024


def fitting_groups(columns: int) -> tuple[int, ...]:
    """Powers of two in [16, 1024] that divide ``columns``, ascending."""
    sizes = []
    size = SMALLEST_GROUP
    while size <= min(columns, LARGEST_GROUP) and columns % size == 0:
        sizes.append(size)
        size *= 2
    return tuple(sizes)


def largest_fitting_group(columns: int, preferred: int) -> int | None:
    """The largest fitting size not above ``preferred``; None if none fits."""
    if preferred > 0 and columns % preferred == 0:
        return preferred
    return max((size for size in fitting_groups(columns) if size <= preferred), default=None)


def check_columns(module: str, columns: int, scheme: Scheme) -> None:
    """ConfigError naming the layer, its columns and the sizes that would fit, unless the group size divides them."""
    if scheme.group_size is None or columns % scheme.group_size == 0:
        return
    sizes = fitting_groups(columns)
    fit = (
        f"group sizes that fit: {', '.join(map(str, sizes))}; give -g{sizes[-1]} or --group-size auto"
        if sizes
        else "no power of two from 16 up fits; give -channel or --group-size auto"
    )
    raise ConfigError(f"{module}: group size {scheme.group_size} does not divide its {columns} columns; {fit}")
