# SPDX-License-Identifier: Apache-2.0
"""One JSON object a line, printed and kept: what the small benches end with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def note(found: Mapping[str, Any], file: Path | None) -> None:
    """Print ``found`` as one line, and append the line to ``file`` if there is one."""
    line = json.dumps(found)
    print(line, flush=True)
    if file is not None:
        with file.open("a", encoding="utf-8") as target:
            target.write(line + "\n")
