# SPDX-License-Identifier: Apache-2.0
"""load_model: a checkpoint directory -> ModelSource (spec, Program, weights by reference).

Order: config -> spec; the files settle what they know better; every tensor its program reads is there with the right
shape and a type that can be read; nothing is left over that could have mattered; then the program is built. No weight
is used before all that holds.
"""

import logging
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats import Checkpoint, residency
from linnet.formats.prescription import CACHE_SCALES
from linnet.models.build import build_program
from linnet.models.families import read_spec
from linnet.models.inventory import (
    LinearInfo,
    checkpoint_tensors,
    linear_shapes,
    list_linears,
    required_tensors,
)
from linnet.models.rotations import rotations_of, stored_matrices
from linnet.models.settle import settle, some
from linnet.models.spec import ArchSpec
from linnet.program.choose_numerics import quantised_kv
from linnet.program.prescribed import COLUMN_ORDER, INPUT_SCALE, INPUT_ZERO_POINT
from linnet.program.program import Program, WeightRef
from linnet.schemes.layouts.gguf import GGUF_LAYOUTS
from linnet.schemes.packed_weight import PackedWeight
from linnet.schemes.scheme import DenseType, LinearScheme, Scheme
from linnet.schemes.terms import CALM, CHOSEN, COMPUTED, SPARSE_COLUMNS, calm_order, one_hot

logger = logging.getLogger(__name__)

DENSE_TYPES: dict[str, DenseType] = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "F32": "fp32",
    "BF16": "bf16",
    "F16": "fp16",
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
}

DERIVED = re.compile(
    r"(^|\.)(rotary_(pos_)?emb\.(\w+_)?(inv_freq|cos_cached|sin_cached)|(attention|attn)\.(masked_)?bias)$"
)
"""Tensors that old checkpoints carry although they follow from the config."""


@dataclass(frozen=True)
class ModelSource:
    """A model ready for ``backend.prepare`` and for the compression walk. Weights stay in the mapped files."""

    spec: ArchSpec
    program: Program
    checkpoint: Checkpoint
    warnings: tuple[str, ...] = ()

    def weight(self, ref: WeightRef) -> "np.ndarray[Any, Any] | PackedWeight":
        """The weight as stored: all rows or ``ref.rows`` in order; a view of the file where the rows lie together."""
        module, _, leaf = ref.checkpoint_name.rpartition(".")
        if leaf in (INPUT_SCALE, INPUT_ZERO_POINT, COLUMN_ORDER):
            packed = self.checkpoint.linear(module)
            assert isinstance(packed, PackedWeight)
            return packed.arrays[leaf]
        if ref.checkpoint_name.endswith(COMPUTED):
            return self._computed(ref.checkpoint_name)
        module = ref.checkpoint_name.removesuffix(".weight")
        if ref.checkpoint_name.endswith(".weight") and self.checkpoint.scheme_of(module) is not None:
            packed = self.checkpoint.linear(module)
            if not isinstance(packed, PackedWeight):
                raise CheckpointError(f"{module} has a scheme but is stored dense")
            if ref.transposed:
                raise UnsupportedError(f"{module} is quantised and stored transposed, which nothing here can read")
            packed = packed.as_stored() if ref.as_stored else packed
            return packed if ref.rows is None else packed.take_rows(ref.rows)
        tensor = self.checkpoint.tensor(ref.checkpoint_name)
        if module.endswith(SPARSE_COLUMNS):
            self._check_columns(module, tensor)
        if ref.rows is not None:
            parts = [tensor[start:stop] for start, stop in ref.rows]
            tensor = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return tensor.T if ref.transposed else tensor

    def _check_columns(self, module: str, columns: "np.ndarray[Any, Any]") -> None:
        """CheckpointError unless they are columns of the weight that they speak of."""
        width = self.checkpoint.shape_of(module.removesuffix(f".{SPARSE_COLUMNS}"))[1]
        if columns.min() < 0 or columns.max() >= width:
            raise CheckpointError(
                f"{self.checkpoint.path}: {module} names columns {columns.min()} to {columns.max()} of a weight that "
                f"has {width}"
            )

    def _computed(self, name: str) -> "np.ndarray[Any, Any]":
        """What follows from the places of a linear's outliers."""
        leaf = CHOSEN if name.endswith(CHOSEN) else CALM
        module = name.removesuffix(f".{leaf}")
        columns, width = self.checkpoint.quantization.terms[module].outliers, self.checkpoint.shape_of(module)[1]
        return one_hot(columns, width) if leaf == CHOSEN else calm_order(columns, width)

    @cached_property
    def by_inputs(self) -> frozenset[str]:
        """See ArchSpec.by_inputs."""
        return self.spec.by_inputs()

    def as_published(self, name: str, tensor: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """A dense tensor of the checkpoint as files of the family have it: some lie [inputs, outputs]."""
        return tensor.T if name in self.by_inputs else tensor

    def stamp(self) -> tuple[str, str]:
        """Where the checkpoint lies, and what changes when one of its files does."""
        return str(self.checkpoint.path.resolve()), self.checkpoint.state()

    def release(self) -> None:
        """Take the files' pages out of the page table; they come back when touched."""
        for file in self.checkpoint.mapped():
            residency.release(file)

    def mapped(self) -> tuple["np.ndarray[Any, Any]", ...]:
        """The bytes of every file of the checkpoint; none where most of them have been copied into another order."""
        return () if self.checkpoint.repacks else self.checkpoint.mapped()

    def read_in_large_pages(self) -> int:
        """See Checkpoint.read_in_large_pages."""
        return self.checkpoint.read_in_large_pages()

    def for_context(self, tokens: int) -> "ModelSource":
        """This model set up for contexts of ``tokens``: itself, or with the frequencies that reach that far.

        Raises ConfigError beyond ``spec.longest_positions``.
        """
        if tokens <= self.spec.max_positions:
            return self
        return load_model(self.checkpoint, max_context=tokens)

    def stored_bytes(self, ref: WeightRef) -> int:
        """Bytes a weight takes on disk; for rows of a fused tensor, their share. Scales of inputs and orders of columns
        are counted with the linear they belong to."""
        if ref.checkpoint_name.rpartition(".")[2] in (INPUT_SCALE, INPUT_ZERO_POINT, COLUMN_ORDER):
            return 0
        if ref.checkpoint_name.endswith(COMPUTED):
            return int(self._computed(ref.checkpoint_name).nbytes)
        module = ref.checkpoint_name.removesuffix(".weight")
        if ref.checkpoint_name.endswith(".weight") and self.checkpoint.scheme_of(module) is not None:
            whole = self.checkpoint.stored_bytes(module)
            rows = 0 if ref.rows is None else self.checkpoint.shape_of(module)[0]
        else:
            info = self.checkpoint.info(ref.checkpoint_name)
            whole, rows = info.nbytes, info.shape[0]
        if ref.rows is None:
            return whole
        return whole * sum(stop - start for start, stop in ref.rows) // rows

    @cached_property
    def _linears(self) -> tuple[LinearInfo, ...]:
        return list_linears(self.spec, self.program)

    def linears(self) -> tuple[LinearInfo, ...]:
        """Every linear once, in walking order, the head last."""
        return self._linears

    def scheme_targets(self) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        """What a scheme map decides about: shape and class (Linear, Embedding) of every linear, of a head of its own,
        and of the embedding."""
        spec = self.spec
        shapes = {info.module: info.shape for info in self.linears() if info.kind == "linear"}
        classes = dict.fromkeys(shapes, "Linear")
        for module, kind in ((None if spec.tied_head else spec.head, "Linear"), (spec.embedding, "Embedding")):
            if module is not None:
                shapes[module], classes[module] = (spec.vocabulary_size, spec.embedding_width), kind
        return shapes, classes

    @cached_property
    def parameters(self) -> int:
        """How many numbers the model has, whatever they are stored as; a tied head counts once."""
        return sum(math.prod(shape) for shape in checkpoint_tensors(self.program).values())


def load_model(source: "str | Path | Checkpoint", max_context: int | None = None) -> ModelSource:
    """Open a model directory (or take an open Checkpoint).

    ``max_context`` (tokens) matters only to models whose rotary frequencies depend on it (see docs/models.md). Raises
    UnsupportedError (family, option, type), CheckpointError (missing, misshapen or unexplained tensors, values that
    cannot be true) and ConfigError (context beyond the model).
    """
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(Path(source))
    spec, passed_over = read_spec(checkpoint.config, max_context)
    checkpoint = checkpoint.arranged(spec.arranged)
    names = frozenset(checkpoint.names())
    spec, settled = settle(spec, checkpoint)
    checkpoint = checkpoint.by_outputs(spec.by_inputs())
    terms = checkpoint.quantization.terms
    _check_terms(spec, checkpoint)
    required = required_tensors(spec, terms)
    checkpoint.expect(required)
    _check_present(checkpoint, names, required)
    rotations = rotations_of(spec, checkpoint)
    rest = names - stored_matrices(checkpoint, rotations)
    warnings = [*passed_over, *settled, *_explain_the_rest(spec, checkpoint, rest, required)]
    elements = [
        checkpoint.quantization.kv_element_of(spec.attention_module(layer)) for layer in range(len(spec.layers))
    ]
    kv_types: list[DenseType | Scheme] = ["fp32" if element is None else quantised_kv(element) for element in elements]
    program = build_program(spec, lambda name: stored_type(checkpoint, name), kv_types, terms, rotations)
    for warning in warnings:
        logger.warning("%s: %s", checkpoint.path, warning)
    return ModelSource(spec, program, checkpoint, tuple(warnings))


def stored_type(checkpoint: Checkpoint, name: str) -> DenseType | LinearScheme:
    """How a tensor is stored: its scheme if its module is quantised, else its dense type."""
    if name.endswith(".weight"):
        scheme = checkpoint.scheme_of(name.removesuffix(".weight"))
        if scheme is not None:
            return scheme
    dtype = checkpoint.info(name).dtype
    if name.endswith(f"{SPARSE_COLUMNS}.weight"):
        if dtype != "int32":
            raise UnsupportedError(f"{checkpoint.path}: tensor {name} is {dtype}; columns of a sparse term are int32")
        return "int32"
    if dtype not in DENSE_TYPES:
        blocks = f" and matrices of {', '.join(GGUF_LAYOUTS)}" if checkpoint.quantization.method == "gguf" else ""
        raise UnsupportedError(
            f"{checkpoint.path}: tensor {name} is {dtype}; supported are float32, bfloat16, float16{blocks}"
        )
    return DENSE_TYPES[dtype]


def _check_terms(spec: ArchSpec, checkpoint: Checkpoint) -> None:
    """CheckpointError for terms of what is no linear of a layer, and for ranks that no weight has."""
    every = checkpoint.quantization.terms
    shapes = linear_shapes(spec) if every else {}
    for module, terms in every.items():
        if module not in shapes:
            raise CheckpointError(f"{checkpoint.path}: config.json says terms of {module[:80]!r}, no linear of a layer")
        if terms.rank > min(shapes[module]):
            raise CheckpointError(
                f"{checkpoint.path}: config.json says a term of rank {terms.rank} of {module}, which is "
                f"{list(shapes[module])}"
            )
        if terms.sparse > shapes[module][1]:
            raise CheckpointError(
                f"{checkpoint.path}: config.json says a sparse term of {terms.sparse} weights in each row of {module}, "
                f"which has {shapes[module][1]} columns"
            )
        if terms.outliers and (terms.outliers[-1] >= shapes[module][1] or len(terms.outliers) == shapes[module][1]):
            raise CheckpointError(
                f"{checkpoint.path}: config.json says outliers up to column {terms.outliers[-1]} of {module}, which "
                f"has {shapes[module][1]}; some column must be none"
            )


def _check_present(checkpoint: Checkpoint, names: frozenset[str], required: dict[str, tuple[int, ...]]) -> None:
    """Every required tensor exists, dense or packed, with the required shape and a readable type."""
    faults = []
    for name, shape in required.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and checkpoint.scheme_of(module) is not None:
            found = checkpoint.shape_of(module)
        elif name in names:
            found = tuple(checkpoint.info(name).shape)
            stored_type(checkpoint, name)
        else:
            faults.append(f"{name} is missing")
            continue
        if found != shape:
            faults.append(f"{name} has shape {list(found)}; the config leads to {list(shape)}")
    if faults:
        raise CheckpointError(f"{checkpoint.path}: the tensors do not fit config.json: " + "; ".join(some(faults)))


def _explain_the_rest(
    spec: ArchSpec, checkpoint: Checkpoint, names: frozenset[str], required: dict[str, tuple[int, ...]]
) -> list[str]:
    """Tensors nobody asked for: derived ones pass, ones inside the model are an error, others a warning.

    Inside means under the model's prefix or the head: a bias, a norm or a layer that would have changed the result.
    A bias of zeros changes nothing and is a warning.
    """
    modules = {name.removesuffix(".weight") for name in required if name.endswith(".weight")}
    heads = [] if spec.head is None else [spec.head]
    packed = {module for module in (*modules, *heads) if checkpoint.scheme_of(module) is not None}
    inside: list[str] = []
    unused: list[str] = []
    scales: list[str] = []
    for name in sorted(names - required.keys()):
        module, leaf = checkpoint.module_of(name), name.rpartition(".")[2]
        if DERIVED.search(name) or (module in packed and leaf != "bias"):
            continue
        if CACHE_SCALES.search(name):
            scales.append(name)
        elif spec.tied_head and name == f"{spec.head}.weight":
            continue
        elif leaf == "bias" and not np.any(checkpoint.tensor(name)):
            unused.append(f"{name} (all zeros)")
        elif name.startswith(tuple(f"{head}." for head in heads)) or (spec.prefix and name.startswith(spec.prefix)):
            inside.append(name)
        else:
            unused.append(name)
    if inside:
        raise CheckpointError(
            f"{checkpoint.path}: tensors of the model that config.json does not account for: " + ", ".join(some(inside))
        )
    warnings = []
    if unused:
        warnings.append("tensors outside the model are ignored: " + ", ".join(some(unused)))
    element = checkpoint.quantization.kv_element
    if element is not None:
        ignored = "; the scales stored for it are ignored" if scales else ""
        layers = range(len(spec.layers))
        rounded = [checkpoint.quantization.kv_element_of(spec.attention_module(layer)) for layer in layers]
        kept = rounded.count(None)
        where = f" in {len(layers) - kept} of {len(layers)} layers" if kept else ""
        warnings.append(
            f"the KV cache is {element}{where}, as config.json prescribes, with a scale per token and head computed "
            f"when they are stored{ignored}; --kv-cache (kv_cache=) chooses another"
        )
    elif scales:
        warnings.append("scales for a quantised KV cache are ignored: " + ", ".join(some(scales)))
    return warnings
