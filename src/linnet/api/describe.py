# SPDX-License-Identifier: Apache-2.0
"""Words for reports and logs: how a linear is stored, what machine this is, what a tokenizer cannot do."""

import logging
import platform
from pathlib import Path

from linnet.schemes.scheme import LinearScheme
from linnet.text import Tokenizer

logger = logging.getLogger(__name__)


def scheme_name(scheme: LinearScheme | None) -> str:
    """``dense``, ``int4 group 32``, ``int8 channel, int8 activations``."""
    if scheme is None:
        return "dense"
    weight = scheme.weight
    shared = f" group {weight.group_size}" if weight.group_size else f" {weight.granularity}"
    name = weight.element + ("" if weight.numbers.plain else shared) + ("" if weight.symmetric else " asymmetric")
    name += "" if weight.sparsity is None else f" {weight.sparsity}"
    return name if scheme.input is None else f"{name}, {scheme.input.element} activations"


def machine_record() -> dict[str, str]:
    """System, processor and Python: what a reader needs to judge a number."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor(),
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's model name, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def warn_of_tokenizer(path: Path, tokenizer: Tokenizer, vocabulary_size: int) -> None:
    """Log what a model's tokenizer has that its model cannot take, and which chat templates do not work."""
    if tokenizer.vocabulary_size > vocabulary_size:
        logger.warning(
            "%s: the tokenizer knows %d ids, the model %d; prompts that use the others are refused",
            path,
            tokenizer.vocabulary_size,
            vocabulary_size,
        )
    for defect in tokenizer.templates.defects():
        logger.warning("%s: %s; conversations that need it are refused", path.resolve().name, defect.sentence)
