# SPDX-License-Identifier: Apache-2.0
"""One form on disk into another: exact where the other form can hold the numbers, least error where it cannot."""

from linnet.formats.convert.encoding import Converted
from linnet.formats.convert.hashes import numbers_hash
from linnet.formats.convert.result import Conversion
from linnet.formats.convert.target import ACCEPTED, Target, parse_target
from linnet.formats.convert.to_directory import to_directory
from linnet.formats.convert.to_gguf import Importance, to_gguf

__all__ = [
    "ACCEPTED",
    "Conversion",
    "Converted",
    "Importance",
    "Target",
    "numbers_hash",
    "parse_target",
    "to_directory",
    "to_gguf",
]
