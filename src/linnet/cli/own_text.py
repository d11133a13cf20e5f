# SPDX-License-Identifier: Apache-2.0
"""Text that a model writes for calibration and evaluation, with progress and words for when it cannot."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnet.errors import CapacityError, LinnetError, UnsupportedError

if TYPE_CHECKING:
    from linnet.api.writing import Purpose
    from linnet.cli.terminal import Stages
    from linnet.text import OwnText


def write_text(
    directory: Path,
    rows: int,
    length: int,
    seed: int,
    *,
    purpose: "Purpose",
    option: str,
    progress: "Stages",
    open_model: "Callable[..., Any] | None" = None,
) -> "OwnText":
    """Own text of the model in ``directory``; where it cannot write, the error names ``option``, which gives a text."""
    from linnet.api import LLM, own_text

    def update(stage: str, done: int, total: int) -> None:
        progress.update(f"{stage} {purpose} text", done, total, "the model's own")

    try:
        return own_text(
            directory,
            rows=rows,
            length=length,
            seed=seed,
            purpose=purpose,
            progress=update,
            open_model=open_model or LLM,
        )
    except (UnsupportedError, CapacityError) as error:
        kind = type(error)
        raise kind(f"{error}. So it cannot write its own {purpose} text here: give one with {option} FILE") from error
    except LinnetError as error:
        if type(error) is LinnetError:  # it ran and wrote nothing of use
            raise LinnetError(f"{error}; give a {purpose} text with {option} FILE") from error
        raise
