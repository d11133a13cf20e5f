# SPDX-License-Identifier: Apache-2.0
"""A compression that has been checked: everything that can fail before a weight is read has not failed."""

import hashlib
import logging
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import scipy
import torch

import linnet
from linnet.compress.caches import caches_of
from linnet.compress.calibration import WriteText, read_rows, row_length, without_repeats
from linnet.compress.experts import check_experts
from linnet.compress.folds import Fold, folds_of
from linnet.compress.key_folds import KeyFold, key_folds_of
from linnet.compress.memory import Prediction, predict
from linnet.compress.recipe import Recipe
from linnet.compress.resolve import leave_out_zeros, plain_without_zeros, resolve_schemes
from linnet.compress.steps import ByModule, Steps, build_steps
from linnet.compress.transform import BlockTransform, FoldKind
from linnet.errors import CapacityError, ConfigError, UnsupportedError
from linnet.formats import Checkpoint, resolve_model
from linnet.formats.prescription import Rotation
from linnet.formats.quantization import record_of
from linnet.models.inventory import LinearInfo
from linnet.models.load import ModelSource, load_model
from linnet.program.serialise import digest as program_digest
from linnet.program.traverse import declarations, tapped
from linnet.schemes.elements import ElementName
from linnet.schemes.presets import parse_scheme
from linnet.schemes.scheme import LinearScheme
from linnet.text.rows import CalibrationRows

logger = logging.getLogger(__name__)

_DECIDING = ("compress", "schemes", "formats", "text", "program", "models", "backends/reference")
"""Rooms of the package whose code decides the bytes of a result."""


@dataclass(frozen=True)
class Job:
    """``schemes``: what every compressed module becomes; modules not in it stay dense. ``rows`` None: data-free.

    ``original``: the model as stored; ``source``: as its ``steps`` for the whole model leave it.
    Those that ``steps`` prune and no scheme names stay dense, with zeros in them; ``sparse``: how those of them are
    stored that leave out their zeros.
    ``repeats``: calibration rows of one token over and over, which are no longer among ``rows``.
    ``all_folds``: see ``folds``; none without a smoothing step. ``kv``: what the result prescribes for its KV cache."""

    directory: Path
    original: ModelSource
    source: ModelSource
    recipe: Recipe
    steps: Steps
    schemes: Mapping[str, LinearScheme]
    sparse: Mapping[str, LinearScheme]
    linears: tuple[LinearInfo, ...]
    embedding: str
    rows: CalibrationRows | None
    prediction: Prediction
    all_folds: Mapping[FoldKind, Mapping[int, tuple[Fold | KeyFold, ...]]]
    repeats: int
    source_bytes: int
    kv: ElementName | None = None
    codes: str = ""
    """What the source was compressed to, whose weights are dequantised as they are read; empty for a dense source."""

    @property
    def rounded_last(self) -> frozenset[str]:
        """Modules whose dense weight is never stored, so that what changes it need not round it."""
        factorised = (module for module in self.steps.linears if self.steps.factoriser_of(module) is not None)
        return frozenset((*self.schemes, *factorised))

    @property
    def stored(self) -> dict[str, LinearScheme]:
        """Every module that is not written as a dense tensor, and how it is."""
        return {**self.schemes, **self.sparse}

    @property
    def rotations(self) -> tuple[Rotation, ...]:
        """What the result rotates at run time."""
        return self.source.checkpoint.quantization.rotations

    @property
    def sequences_per_chunk(self) -> int:
        """Calibration rows that run through a block together."""
        assert self.rows is not None
        row_tokens: int = self.rows.token_ids.shape[1]
        return max(1, self.recipe.chunk_tokens // row_tokens)

    def last_tapped_segment(self) -> int:
        """The last segment that has to be run for a statistic; -1 if none."""
        if self.rows is None:
            return -1
        fitted = (info.segment for info in self.linears if self.steps.statistics_of(info.module))
        cached = (cache.segment for cache, _ in self.steps.calibrated_caches())
        folded = (segment for folds in self.all_folds.values() for segment in folds)
        return max([*fitted, *folded, *cached], default=-1)

    def compressed_linears(self, segment: int) -> tuple[LinearInfo, ...]:
        """The linears of a segment that will be compressed: pruned, given codes, or both."""
        return tuple(info for info in self.linears if info.segment == segment and self.steps.changes(info.module))

    def tap_width(self, tap: str) -> int:
        """Columns of a value that is looked at."""
        width = declarations(self.source.program)[tapped(tap)].shape[-1]
        assert isinstance(width, int)
        return width

    def folds(self, segment: int, transform: ByModule[BlockTransform]) -> tuple[Fold | KeyFold, ...]:
        """Where a smoothing step can scale the columns of what compressed linears of a segment read, or its keys."""
        return self.all_folds[transform.default.folds].get(segment, ())

    def read_tensors(self) -> frozenset[str]:
        """The tensors that the source's ops read, before any layer was taken out; all others are copied as they are."""
        return frozenset(weight.ref.checkpoint_name for weight in self.original.program.weights)

    def is_written(self, name: str) -> bool:
        """See the function of this name."""
        return is_written(self.source, name)


def check(
    source: str | Path,
    recipe: Recipe,
    calibration_text: str | None = None,
    memory_ceiling_bytes: int | None = None,
    write_text: WriteText | None = None,
    from_compressed: bool = False,
) -> Job:
    """Everything that can be known without reading weights, in the order a user would want to hear of it.

    ConfigError (recipe, group sizes, calibration), UnsupportedError (family, already compressed), CheckpointError
    (damaged source), CapacityError (predicted memory above the ceiling).
    """
    steps = build_steps(recipe)
    kv = None if recipe.scheme is None else parse_scheme(recipe.scheme).kv
    directory = resolve_model(source)
    model = load_model(Checkpoint.open(directory, verify=False))
    stored, codes = model.checkpoint, _codes_of(model)
    if codes and from_compressed:
        model = load_model(stored.dequantised())
        logger.warning(
            "%s is already compressed (%s): what that lost stays lost, and is not measured", directory, codes
        )
    check_source(model)
    original = model
    for transform in steps.model_transforms:
        model = transform.prepare(model)
    schemes, spec = resolve_schemes(model, recipe), model.spec
    linears = tuple(info for info in model.linears() if not (info.kind == "head" and spec.tied_head))
    steps = steps.on(schemes, linears, () if kv is None else caches_of(model))
    if not schemes and not steps.prunes and not any(steps.changes(info.module) for info in linears):
        raise ConfigError("the recipe keeps every layer dense: nothing would be compressed")
    schemes = leave_out_zeros(schemes, steps.patterns())
    alone = {module: pattern for module, pattern in steps.patterns().items() if steps.repair_of(module) is None}
    sparse = plain_without_zeros(model, schemes, alone)
    steps.check_shared(linears)
    check_experts(recipe, schemes, linears)
    steps.check_tables(schemes, spec.embedding)
    wants_rows = steps.calibrated and any(steps.changes(info.module) for info in linears)
    wants_rows |= steps.shares or any(prune.reads_rows for prune in steps.prunes)
    length = row_length(recipe, spec.max_positions) if wants_rows else 0
    predicted = partial(predict, model, steps, schemes, linears, spec.embedding, length)
    prediction = predicted(recipe.chunk_tokens)
    if memory_ceiling_bytes is not None and prediction.least > memory_ceiling_bytes:
        smaller = _fitting_chunk(predicted, length, recipe.chunk_tokens, memory_ceiling_bytes)
        raise CapacityError(
            f"compression is predicted to need {prediction.total / 2**20:.0f} MiB "
            f"({prediction.describe()}), above the ceiling of {memory_ceiling_bytes / 2**20:.0f} MiB: "
            + (f"a recipe with chunk_tokens: {smaller} fits" if smaller else "no smaller chunk_tokens fits")
            + (", or shorter rows (calibration_length)" if length else ""),
            settings=["calibration_length"],
        )
    folds = _folds(model, steps, schemes, linears)
    rows, repeats = None, 0
    if wants_rows:  # last, since writing them may take minutes
        rows = read_rows(recipe, calibration_text, stored, length, spec.vocabulary_size, write_text)
        rows, repeats = without_repeats(rows)
    return Job(
        directory,
        original,
        model,
        recipe,
        steps,
        schemes,
        sparse,
        linears,
        spec.embedding,
        rows,
        prediction,
        folds,
        repeats,
        stored.nbytes,
        kv,
        codes if from_compressed else "",
    )


def _fitting_chunk(
    predicted: Callable[[int], Prediction], length: int, chunk_tokens: int, ceiling_bytes: int
) -> int | None:
    """The largest half, quarter … of ``chunk_tokens`` with which a run is predicted to fit; None: not even one row."""
    while length and chunk_tokens // 2 >= length:
        chunk_tokens //= 2
        if predicted(chunk_tokens).total <= ceiling_bytes:
            return chunk_tokens
    return None


def _folds(
    model: ModelSource, steps: Steps, schemes: Mapping[str, LinearScheme], linears: tuple[LinearInfo, ...]
) -> dict[FoldKind, Mapping[int, tuple[Fold | KeyFold, ...]]]:
    """The folds that the smoothing steps can use, by kind; ConfigError if there is such a step and no such fold."""
    found: dict[FoldKind, Mapping[int, tuple[Fold | KeyFold, ...]]] = {}
    for transform in steps.block_transforms:
        kind = transform.default.folds
        if kind not in found:
            found[kind] = key_folds_of(model.program, linears) if kind == "keys" else _columns(model, schemes, linears)
        if not found[kind]:
            where = (
                "no attention makes its keys by a linear or a norm of each head"
                if kind == "keys"
                else "no linear that is compressed reads what a norm, a gate or attention makes"
            )
            raise ConfigError(f"{transform.name} finds nothing to smooth: {where}")
    return found


def _columns(
    model: ModelSource, schemes: Mapping[str, LinearScheme], linears: tuple[LinearInfo, ...]
) -> dict[int, tuple[Fold, ...]]:
    return {
        segment: folds
        for segment, every in folds_of(model.program, linears).items()
        if (folds := tuple(fold for fold in every if any(info.module in schemes for info in fold.readers)))
    }


def _codes_of(model: ModelSource) -> str:
    """``gptq: int4 (180 weights)``; empty for a dense model."""
    found = Counter(
        weight.dtype.weight.element for weight in model.program.weights if not isinstance(weight.dtype, str)
    )
    if not found:
        return ""
    method = record_of(model.checkpoint.config)
    name = method.get("quant_method", "quantised") if isinstance(method, dict) else "quantised"
    return f"{name}: " + ", ".join(f"{element} ({count} weights)" for element, count in found.most_common())


def is_written(model: ModelSource, name: str) -> bool:
    """Whether a tensor of the source reaches the result: all but a tied head that is stored a second time, and the
    matrices of rotations.

    The loader has compared both.
    """
    spec = model.spec
    leaves = (leaf for rotation in model.checkpoint.quantization.rotations for leaf in rotation.matrices)
    if any(name.endswith(f".{leaf}") for leaf in leaves):
        return False
    return not (spec.tied_head and spec.head != spec.embedding and name == f"{spec.head}.weight")


def check_source(model: ModelSource) -> None:
    """UnsupportedError for a model that cannot be compressed, whatever the recipe."""
    compressed = [weight.ref.checkpoint_name for weight in model.program.weights if not isinstance(weight.dtype, str)]
    compressed += model.checkpoint.quantization.terms
    if compressed:
        raise UnsupportedError(
            f"{model.checkpoint.path} is already compressed ({compressed[0]} and {len(compressed) - 1} more); "
            "compress the original, or, if there is none, what is left of it: --from-compressed "
            "(from_compressed=True)"
        )
    transposed = [weight.name for weight in model.program.weights if weight.ref.transposed]
    if transposed:
        raise UnsupportedError(f"{transposed[0]} is stored transposed, which compression cannot do yet")
    for segment in model.program.segments:
        if len(segment.inputs) > 1:
            raise UnsupportedError(f"segment {segment.name} reads {len(segment.inputs)} values; one is supported")


@cache
def sources_digest() -> str:
    """SHA-256 of Linnet's own code that decides the result's bytes: a version names a release, not a working copy."""
    package = Path(linnet.__file__).parent
    found = hashlib.sha256()
    for path in sorted(path for room in _DECIDING for path in (package / room).rglob("*.py")):
        found.update(f"{path.relative_to(package).as_posix()} {path.stat().st_size}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def fingerprint(job: Job, source_digest: str) -> dict[str, str]:
    """Everything the output's bytes depend on, in words: what a resumed run must have in common with the first."""
    parts = {
        "recipe": job.recipe.digest(),
        "source": source_digest,
        "program": program_digest(job.source.program),
        "threads": str(torch.get_num_threads()),
        "cores": str(len(os.sched_getaffinity(0))),  # scipy's LAPACK shares work out to as many
        "linnet": linnet.__version__,
        "linnet sources": sources_digest(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
    if job.codes:
        parts["source is dequantised"] = job.codes
    if job.rows is not None:
        parts["calibration"] = job.rows.digest
        parts["chunk"] = f"{job.sequences_per_chunk} rows of {job.rows.token_ids.shape[1]} tokens"
    return parts
