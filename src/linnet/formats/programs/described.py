# SPDX-License-Identifier: Apache-2.0
"""What is looked at to say which programs read a model, and what is said of each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from linnet.errors import CheckpointError
from linnet.formats.tensor_files import read_config
from linnet.formats.terms_record import TERMS_KEY
from linnet.formats.transform_record import TRANSFORMS_KEY, rotates
from linnet.gguf import GgufModel, gguf_of
from linnet.schemes import LinearScheme

Kind = Literal["directory", "gguf"]

AGAIN = "linnet compress ORIGINAL -o OUTPUT --scheme W4A16"
"""What makes a form that every reader of directories has."""


APART = re.compile(r"_[a-z_]+_apart")
"""Keys of a config that was made of a GGUF file's metadata (formats/gguf)."""


@dataclass(frozen=True)
class GgufFacts:
    """What a GGUF file says of itself. ``parts``: files of its set; ``first``: that which has to be named, where it is
    another; ``tokenizer`` and ``cut``: ``tokenizer.ggml.model`` and ``.pre``; ``vocabulary``: the size that the
    metadata has, as a number or a list of tokens; ``types``: of its matrices; ``shapes``: of its embedding and of the
    first layer's tensors, rows first, by ggml's names; ``kinds``: the types of the same; ``keys``: of its metadata;
    ``layers``: how many it says it has, if it does."""

    parts: int = 1
    first: str | None = None
    tokenizer: str | None = None
    tokens: bool = False
    merges: bool = False
    cut: str | None = None
    vocabulary: int | None = None
    types: frozenset[str] = frozenset()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    layers: int | None = None


@dataclass(frozen=True)
class Model:
    """What the rules look at. ``method``: a config's ``quant_method``, or ``dense``; ``schemes``: of its modules, where
    Linnet reads them; ``architecture``: as the file calls it; ``record``: the config's ``quantization_config``;
    ``config``: what a GGUF file means as a config, where Linnet could open it."""

    kind: Kind
    method: str
    architecture: str
    schemes: Mapping[str, LinearScheme]
    own_words: str = ""
    """What it has that Linnet's own layout alone has a word for: sums of terms, rotations at run time; or empty."""
    record: Mapping[str, Any] = field(default_factory=dict)
    file: GgufFacts | None = None
    config: Mapping[str, Any] | None = None
    apart: str = ""
    """The key of its config by which tensors lie apart as a GGUF file had them, which Linnet alone has, or empty."""
    damaged: bool = False
    """Whether Linnet misses something in it, or found it lying; what others look at is another matter."""


@dataclass(frozen=True)
class Verdict:
    """``loads``: None where that was not checked. ``instead``: what to type for a form that the program reads, or reads
    on more machines; None where nothing is to be gained or nothing helps."""

    program: str
    loads: bool | None
    why: str
    instead: str | None = None


def identify(
    path: Path,
    schemes: Mapping[str, LinearScheme],
    opened: Mapping[str, Any] | None = None,
    *,
    damaged: bool = False,
) -> Model | None:
    """What a path says it is, whoever can read it; None where nothing says so. ``opened``: its config, where Linnet
    could open it, which says more than the file does. ``damaged``: whether it was refused for what it is.

    Raises LinnetError: a GGUF file that cannot be read as far as that.
    """
    file = gguf_of(path)
    if file is not None:
        with GgufModel(file) as model:
            architecture = model.metadata.text("general.architecture") or "unnamed"
            return Model("gguf", "gguf", architecture, schemes, file=_facts(model), config=opened, damaged=damaged)
    try:
        config = read_config(path) if opened is None else opened
    except (CheckpointError, OSError):
        return None
    found = config.get("quantization_config", config.get("compression_config"))
    record = found if isinstance(found, dict) else {}
    method = record.get("quant_method", "compressed-tensors") if isinstance(found, dict) else "dense"
    kinds = {
        "sums of terms": bool(record.get(TERMS_KEY)),
        "rotations at run time": rotates(record.get(TRANSFORMS_KEY)),
    }
    own_words = " and ".join(kind for kind, there in kinds.items() if there)
    apart = next((key for key, value in config.items() if APART.fullmatch(key) and value is True), "")
    architecture = str(config.get("model_type", "unnamed"))
    return Model("directory", str(method), architecture, schemes, own_words, record, apart=apart)


def _facts(model: GgufModel) -> GgufFacts:
    """Raises CheckpointError for keys of another type."""
    first, said = model.parts[0].path, model.metadata
    name, tokens = said.text("general.architecture"), said.get("tokenizer.ggml.tokens")
    shown = {name: one for name, one in model.tensors.items() if name.startswith(("token_embd.", "blk.0."))}
    return GgufFacts(
        parts=len(model.parts),
        first=first.name if first.name != model.path.name else None,
        tokenizer=said.text("tokenizer.ggml.model"),
        tokens=tokens is not None,
        merges="tokenizer.ggml.merges" in said,
        cut=said.text("tokenizer.ggml.pre"),
        vocabulary=said.integer(f"{name}.vocab_size", None if tokens is None else len(tokens)),
        types=frozenset(tensor.type.name for tensor in model.tensors.values() if len(tensor.shape) > 1),
        shapes={name: one.shape for name, one in shown.items()},
        kinds={name: one.type.name for name, one in shown.items()},
        keys=frozenset(said),
        layers=said.integer(f"{name}.block_count"),
    )


def last_name(path: str) -> str:
    """What a command that is proposed calls its result after."""
    return path.rstrip("/").rsplit("/", 1)[-1] or "model"
