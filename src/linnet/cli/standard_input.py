# SPDX-License-Identifier: Apache-2.0
"""What is piped into a command, apart from terminal.py: generating needs none of its progress bars."""

import sys
from collections.abc import Iterator

from linnet.errors import ConfigError


def standard_input() -> Iterator[str]:
    """The lines of standard input, with their ends. ConfigError where they are not text."""
    try:
        yield from sys.stdin
    except UnicodeDecodeError:
        raise ConfigError("standard input is not UTF-8 text") from None
