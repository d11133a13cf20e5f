# SPDX-License-Identifier: Apache-2.0
"""A compression that has been checked: everything that can fail before a weight is read has not failed."""

import hashlib
import logging
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

import linnet
from linnet.compress.algorithm import Algorithm, make_algorithm
from linnet.compress.algorithms import ALGORITHMS
from linnet.compress.calibration import WriteText, read_rows, row_length
from linnet.compress.memory import Prediction, predict
from linnet.compress.recipe import DENSE, Recipe
from linnet.compress.stages import carried_bytes
from linnet.errors import CapacityError, ConfigError, UnsupportedError
from linnet.formats import Checkpoint, resolve_model
from linnet.models.inventory import LinearInfo
from linnet.models.load import ModelSource, load_model
from linnet.program.serialise import digest as program_digest
from linnet.schemes.groups import check_columns
from linnet.schemes.layouts import stored_bytes
from linnet.schemes.presets import SchemePreset, parse_scheme
from linnet.schemes.scheme import LinearScheme
from linnet.schemes.scheme_map import SchemeMap, check_shapes, fit_groups
from linnet.text.rows import CalibrationRows

logger = logging.getLogger(__name__)

_DECIDING = ("compress", "schemes", "formats", "text", "program", "models", "backends/reference")
"""Rooms of the package whose code decides the bytes of a result."""


@dataclass(frozen=True)
class Job:
    """``schemes``: what every compressed module becomes; modules not in it stay dense. ``rows`` None: data-free."""

    directory: Path
    source: ModelSource
    recipe: Recipe
    algorithm: Algorithm
    schemes: Mapping[str, LinearScheme]
    linears: tuple[LinearInfo, ...]
    embedding: str
    rows: CalibrationRows | None
    prediction: Prediction

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
        return max((info.segment for info in self.linears if info.module in self.schemes), default=-1)

    def is_written(self, name: str) -> bool:
        """Whether a tensor of the source reaches the result: all but a tied head that is stored a second time.

        The loader has compared both.
        """
        spec = self.source.spec
        return not (spec.tied_head and spec.head != spec.embedding and name == f"{spec.head}.weight")


def check(
    source: str | Path,
    recipe: Recipe,
    calibration_text: str | None = None,
    memory_ceiling_bytes: int | None = None,
    write_text: WriteText | None = None,
) -> Job:
    """Everything that can be known without reading weights, in the order a user would want to hear of it.

    ConfigError (recipe, group sizes, calibration), UnsupportedError (family, already compressed), CheckpointError
    (damaged source), CapacityError (predicted memory above the ceiling).
    """
    algorithm = make_algorithm(recipe.algorithm, recipe.options, ALGORITHMS)
    parse_scheme(recipe.scheme)
    directory = resolve_model(source)
    model = load_model(Checkpoint.open(directory, verify=False))
    _check_source(model)
    schemes = resolve_schemes(model, recipe)
    if not schemes:
        raise ConfigError("the recipe keeps every layer dense: nothing would be compressed")
    linears = tuple(info for info in model.linears() if not (info.kind == "head" and model.spec.tied_head))
    wants_rows = bool(algorithm.statistics) and any(info.module in schemes for info in linears)
    spec = model.spec
    length = row_length(recipe, spec.max_positions) if wants_rows else 0
    prediction = predict(model, algorithm, schemes, linears, spec.embedding, length, recipe.chunk_tokens)
    if memory_ceiling_bytes is not None and prediction.total > memory_ceiling_bytes:
        raise CapacityError(
            f"compression is predicted to need {prediction.total / 2**20:.0f} MiB "
            f"({prediction.describe()}), above the ceiling of {memory_ceiling_bytes / 2**20:.0f} MiB: "
            f"a recipe with a smaller chunk_tokens than {recipe.chunk_tokens}, or shorter rows (calibration_length), "
            "need less",
            settings=["calibration_length"],
        )
    rows = None
    if wants_rows:  # last, since writing them may take minutes
        rows = read_rows(recipe, calibration_text, model.checkpoint, length, spec.vocabulary_size, write_text)
    return Job(directory, model, recipe, algorithm, schemes, linears, spec.embedding, rows, prediction)


def resolve_schemes(model: ModelSource, recipe: Recipe) -> dict[str, LinearScheme]:
    """Module -> scheme of everything that will be compressed, group sizes checked or fitted."""
    spec = model.spec
    preset = parse_scheme(recipe.scheme)
    linear, head = preset.linear, preset.head
    if isinstance(recipe.group_size, int):
        weight = replace(linear.weight, granularity="group", group_size=recipe.group_size, block=None)
        linear = replace(linear, weight=weight)
        if head is not None and head.weight.group_size is not None:
            head = replace(head, weight=replace(head.weight, group_size=recipe.group_size))
    shapes, classes = model.scheme_targets()
    rules = [
        (rule.match, *((None, True) if rule.scheme == DENSE else _linear_of(parse_scheme(rule.scheme))))
        for rule in recipe.rules
    ]
    fixed_group = preset.fixed_group or isinstance(recipe.group_size, int)
    preset_rules = replace(preset, linear=linear, head=head).scheme_map(
        head=None if spec.tied_head else spec.head, embedding=spec.embedding
    )
    rules += [(pattern, scheme, fixed_group) for pattern, scheme in preset_rules.rules]
    resolved = SchemeMap(tuple((pattern, scheme) for pattern, scheme, _ in rules)).resolve(classes)
    fixed = SchemeMap(tuple((pattern, scheme if kept else None) for pattern, scheme, kept in rules)).resolve(classes)
    wished = {name: scheme for name, scheme in resolved.items() if recipe.group_size == "auto" or fixed[name] is None}
    fitted = fit_groups(wished, shapes)
    _tell_groups(recipe.scheme, wished, fitted, shapes)
    resolved |= fitted
    check_shapes(resolved, shapes)
    chosen = {module: scheme for module, scheme in resolved.items() if scheme is not None}
    for module, scheme in chosen.items():
        check_columns(module, shapes[module][1], scheme.weight)
        stored_bytes(scheme, shapes[module])  # refuses what no layout can hold
    return chosen


def _linear_of(preset: SchemePreset) -> tuple[LinearScheme, bool]:
    return preset.linear, preset.fixed_group


def _tell_groups(
    name: str,
    wished: Mapping[str, LinearScheme | None],
    fitted: Mapping[str, LinearScheme | None],
    shapes: Mapping[str, tuple[int, int]],
) -> None:
    """One line about the modules that get smaller groups than their scheme's."""
    changed: dict[tuple[int | None, int | None, int], list[str]] = {}
    for module, scheme in fitted.items():
        before = wished[module]
        if scheme is not None and before is not None and scheme != before:
            key = (before.weight.group_size, scheme.weight.group_size, shapes[module][1])
            changed.setdefault(key, []).append(module)
    total = sum(scheme is not None for scheme in fitted.values())
    parts = [
        f"{f'groups of {size}' if size else 'one scale per row'} instead of groups of {wish} in {len(modules)} of "
        f"{total} modules with {columns} columns ({modules[0]} …)"
        for (wish, size, columns), modules in changed.items()
    ]
    if parts:
        logger.warning("%s: %s", name, "; ".join(parts))


def _check_source(model: ModelSource) -> None:
    compressed = [weight.ref.checkpoint_name for weight in model.program.weights if not isinstance(weight.dtype, str)]
    if compressed:
        raise UnsupportedError(
            f"{model.checkpoint.path} is already compressed ({compressed[0]} and {len(compressed) - 1} more); "
            "compress the original"
        )
    transposed = [weight.name for weight in model.program.weights if weight.ref.transposed]
    if transposed:
        raise UnsupportedError(f"{transposed[0]} is stored transposed, which compression cannot do yet")
    for segment in model.program.segments:
        if len(segment.inputs) > 1:
            raise UnsupportedError(f"segment {segment.name} reads {len(segment.inputs)} values; one is supported")


def check_place(target: Path) -> Path:
    """The existing directory in which ``target`` will be made; ConfigError unless that is one and writable."""
    place = target.parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{place} is not a directory, so {target} cannot be made there")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{place} is not writable, so {target} cannot be made there")
    return place


def check_disk(job: Job, target: Path) -> None:
    """CapacityError unless the spool, the published files and the row files of a run fit on the target's disk."""
    place = check_place(target)
    output = output_bytes(job)
    rows = 0 if job.rows is None else 2 * job.rows.token_ids.size * job.source.spec.hidden_size * 4 + _carried(job)
    needed, free = 2 * output + rows, shutil.disk_usage(place).free
    if needed > free:
        raise CapacityError(
            f"compressing into {target} needs {needed / 2**20:.0f} MiB on disk (output {output / 2**20:.0f}, twice; "
            f"calibration rows {rows / 2**20:.0f}); {free / 2**20:.0f} MiB are free"
        )


def _carried(job: Job) -> int:
    """What the files between two stages of a block grow to."""
    program = job.source.program
    taps: dict[int, set[str]] = {}
    for info in job.linears:
        if info.module in job.schemes and 0 < info.segment < job.last_tapped_segment():
            taps.setdefault(info.segment, set()).add(info.tap)
    tokens = 0 if job.rows is None else int(job.rows.token_ids.size)
    return max((carried_bytes(program, program.segments[at], names, tokens) for at, names in taps.items()), default=0)


def output_bytes(job: Job) -> int:
    """Bytes of all tensors of the result."""
    checkpoint = job.source.checkpoint
    total = sum(checkpoint.info(name).nbytes for name in checkpoint.names() if job.is_written(name))
    for module, scheme in job.schemes.items():
        info = checkpoint.info(f"{module}.weight")
        rows, columns = info.shape
        total += stored_bytes(scheme, (rows, columns)) - info.nbytes
    return total


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
        "linnet": linnet.__version__,
        "linnet sources": sources_digest(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
    if job.rows is not None:
        parts["calibration"] = job.rows.digest
        parts["chunk"] = f"{job.sequences_per_chunk} rows of {job.rows.token_ids.shape[1]} tokens"
    return parts
