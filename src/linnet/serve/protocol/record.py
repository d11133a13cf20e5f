# SPDX-License-Identifier: Apache-2.0
"""The base of everything that clients may send."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Frozen, strict, nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    # Parameters of OpenAI's API that cannot be honoured: name -> (values that change nothing, sentence).
    REFUSED: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {}
