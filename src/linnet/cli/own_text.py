# SPDX-License-Identifier: Apache-2.0
"""Text that a model writes for calibration and evaluation, with progress and words for when it cannot."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnet.cli.numbers import human_bytes
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
    max_memory: int | None = None,
) -> "OwnText":
    """Own text of the model in ``directory``; where it cannot write, the error names ``option``, which gives a text.

    It cannot where the whole model, which is in memory while it writes, and its KV cache need more than ``max_memory``.
    """
    from linnet.api import LLM, own_text

    def opened(path: Path, **settings: Any) -> Any:
        if max_memory is not None:
            _check_memory(path, settings["max_model_len"], settings["max_sequences"], max_memory)
        return (open_model or LLM)(path, **settings)

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
            open_model=opened,
        )
    except (UnsupportedError, CapacityError) as error:
        kind = type(error)
        raise kind(f"{error}. So it cannot write its own {purpose} text here: give one with {option} FILE") from error
    except LinnetError as error:
        if type(error) is LinnetError:  # it ran and wrote nothing of use
            raise LinnetError(f"{error}; give a {purpose} text with {option} FILE") from error
        raise


def _check_memory(directory: Path, context: int, sequences: int, max_memory: int) -> None:
    """CapacityError if the engine is predicted to need more."""
    from linnet.formats import Checkpoint
    from linnet.models import load_model
    from linnet.plan import describe

    with Checkpoint.open(directory, verify=False) as checkpoint:
        needed = describe(load_model(checkpoint), context=context, sequences=sequences)["resident_bytes"]
    if needed > max_memory:
        raise CapacityError(
            f"writing needs the whole model in memory at once, {human_bytes(needed)}, and --max-memory allows "
            f"{human_bytes(max_memory)}"
        )
