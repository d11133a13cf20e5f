# SPDX-License-Identifier: Apache-2.0
"""A model directory, opened: lazy, mapped, checked. Reading order: config, files' headers, manifest, hashes."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.formats import residency
from linnet.formats.dequantised import DequantisedFiles
from linnet.formats.dtypes import NAME_TO_NUMPY
from linnet.formats.finite import check_finite
from linnet.formats.forms import Form, Shapeless
from linnet.formats.hashing import Seen, combined_digest, pieces, sha256_all
from linnet.formats.header import TensorInfo
from linnet.formats.joined import Joined, JoinedFiles
from linnet.formats.large_pages import read_in_large_pages
from linnet.formats.manifest import MANIFEST_FILE, check_structure, lost_manifest, read_manifest, verify
from linnet.formats.prescription import Quantization
from linnet.formats.quantization import form_of, read_quantization, with_telltale
from linnet.formats.rewritten import Rewrite, Rewritten, RewrittenFiles
from linnet.formats.spread import spread
from linnet.formats.stacked import ApartFiles, Stacked
from linnet.formats.tensor_files import TensorFiles, open_files
from linnet.formats.verified import file_facts, identity, is_remembered, remember
from linnet.schemes import LinearScheme, PackedWeight

logger = logging.getLogger(__name__)

VERIFY_BELOW_BYTES = 512 << 20

Array = npt.NDArray[Any]


class Checkpoint:
    """Made by ``open``; usable as a context manager. Arrays are read-only views of the mapped files, never copies."""

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        files: TensorFiles,
        manifest: dict[str, Any] | None,
        quantization: Quantization,
        form: Form,
        by_outputs: frozenset[str] = frozenset(),
    ) -> None:
        """``by_outputs``: dense matrices that are shown [outputs, inputs], whatever the files have."""
        self.path = path
        self._by_outputs = by_outputs
        self.config = config
        self.manifest = manifest
        self.quantization = quantization
        self._files, self._tensors = files, files.tensors
        self._form = form
        self._schemes: dict[str, LinearScheme | None] = {}
        self._read: tuple[str, PackedWeight] | None = None
        self._stored_bytes: Counter[str] | None = None

    @classmethod
    def open(cls, path: str | Path, verify: bool | None = None) -> "Checkpoint":
        """Open a Hugging Face model directory.

        ``verify`` True hashes every tensor against the manifest, False does not, None does up to 512 MiB unless the
        very same files were verified before (see verified.py).
        CheckpointError: missing, damaged or lying files (verify=True without a manifest too).
        UnsupportedError: a quantisation nothing here can read.
        """
        directory = Path(path)
        try:
            checkpoint = cls._open(directory)
        except OSError as error:  # a directory that may not be searched, a name too long
            raise CheckpointError(f"{directory}: cannot be read: {error.strerror}") from None
        if verify:
            checkpoint.verify()
        elif verify is None and checkpoint.manifest is not None and checkpoint.nbytes <= VERIFY_BELOW_BYTES:
            checkpoint._verify_once(checkpoint.manifest)
        return checkpoint

    @classmethod
    def _open(cls, directory: Path) -> "Checkpoint":
        files = open_files(directory)
        config, where = with_telltale(files.config, lambda: files.tensors), str(files.described_by)
        quantization, form = read_quantization(config, where), form_of(config, where)
        if not files.tensors:
            raise CheckpointError(f"{directory}: the model has no tensors")
        files = spread(files, form)
        tensors = files.tensors
        manifest = read_manifest(directory) if directory.is_dir() else None
        if manifest is not None:
            check_structure(directory, manifest, tensors)
        elif directory.is_dir() and lost_manifest(directory):
            logger.warning(
                "%s: its %s is gone, so whether its %d tensors and its other files are as they were published is not "
                "verified",
                *(directory, MANIFEST_FILE, len(tensors)),
            )
        return cls(directory, config, files, manifest, quantization, form)

    def rewritten(self, rewrite: Rewrite, other: Rewritten | None = None) -> "Checkpoint":
        """This checkpoint with some dense tensors computed from what is stored, or new, see RewrittenFiles; it shares
        the files."""
        other = other or Rewritten()
        files, before = RewrittenFiles(self._files, rewrite, other), self.quantization
        quantization = replace(before, rotations=(*before.rotations, *other.rotations))
        return Checkpoint(self.path, files.config, files, self.manifest, quantization, self._form, self._by_outputs)

    def by_outputs(self, names: Collection[str]) -> "Checkpoint":
        """This checkpoint with these dense matrices, published [inputs, outputs], shown [outputs, inputs] as packed
        ones are; those that are shown so already stay so. It shares the files."""
        dense = {
            name for name in names if name in self._tensors and self.scheme_of(name.removesuffix(".weight")) is None
        }
        turned = {name for name in dense if len(self._tensors[name].shape) == 2} - self._by_outputs
        if not turned:
            return self

        def turn(name: str, stored: Callable[[str], Array]) -> Array | None:
            return np.ascontiguousarray(stored(name).T) if name in turned else None

        shapes = {name: self._tensors[name].shape[::-1] for name in turned}
        found = self.rewritten(turn, Rewritten(shapes=shapes))
        found._by_outputs = self._by_outputs | turned
        return found

    def arranged(self, rules: tuple[Stacked | Joined, ...]) -> "Checkpoint":
        """This checkpoint with tensors that hold all experts' shown as one for each, and parts as what they are parts
        of. It shares the files."""
        stacked = tuple(rule for rule in rules if isinstance(rule, Stacked))
        joined = tuple(rule for rule in rules if isinstance(rule, Joined))
        files, by_outputs = self._files, self._by_outputs
        if stacked:
            files = taken = ApartFiles(files, stacked)
            by_outputs |= taken.turned
        if joined:
            files = JoinedFiles(files, joined)
        if files.tensors.keys() == self._files.tensors.keys():
            return self
        return Checkpoint(self.path, self.config, files, self.manifest, self.quantization, self._form, by_outputs)

    def dequantised(self) -> "Checkpoint":
        """This checkpoint as if it were dense: weights are dequantised when they are read, and rounded to the type of
        the config; static scales of activations are forgotten, what is rotated stays so. It shares the files."""
        files = DequantisedFiles(self, self.config)
        where = str(files.described_by)
        quantization, form = read_quantization(files.config, where), form_of(files.config, where)
        quantization = replace(quantization, rotations=self.quantization.rotations)
        by_outputs = self._by_outputs | {f"{module}.weight" for module in self.schemes()}
        return Checkpoint(self.path, files.config, files, None, quantization, form, by_outputs)

    @property
    def files(self) -> TensorFiles:
        """What lies under it."""
        return self._files

    def verify(self) -> None:
        """Hash every tensor and small file against the manifest; CheckpointError names what changed."""
        if self.manifest is None:
            raise CheckpointError(
                f"{self.path}: nothing to verify against: it has no {MANIFEST_FILE}, which only Linnet's own output has"
            )
        verify(self.path, self.manifest, self._tensors, self._raw)

    def _verify_once(self, manifest: dict[str, Any]) -> None:
        paths = [*(self.path / name for name in (MANIFEST_FILE, *manifest["files"])), *self._files.paths()]
        before = identity(paths)
        if is_remembered(self.path, before):
            return
        self.verify()
        if identity(paths) == before:
            remember(self.path, before)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self._tensors.values())

    def names(self) -> tuple[str, ...]:
        """All tensor names, sorted."""
        return tuple(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def info(self, name: str) -> TensorInfo:
        """dtype, shape, bytes and file of a tensor; CheckpointError if there is none of that name."""
        info = self._tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.path}: there is no tensor {name!r}")
        return info

    def tensor(self, name: str) -> Array:
        """The stored array: a read-only mapped view (ml_dtypes for bf16 and fp8)."""
        self.info(name)
        return self._files.view(name)

    def linear(self, module: str) -> Array | PackedWeight:
        """A module's weight (``module`` without ``.weight``): the dense array, or the checked quantised weight.

        CheckpointError: parts missing, of the wrong type or shape, NaN or infinite scales, zero points out of range.
        """
        scheme = self.scheme_of(module)
        if scheme is None:
            return self.tensor(f"{module}.weight")
        if self._read is None or self._read[0] != module:  # what is fused on disk is asked for part by part
            self._read = None
            self._read = module, self._form.read(module, scheme, self._tensors, self.tensor, self._where(module))
        return self._read[1]

    def shape_of(self, module: str) -> tuple[int, ...]:
        """Logical shape of a module's weight, whatever form it lies in."""
        scheme = self.scheme_of(module)
        if scheme is None:
            return tuple(self.info(f"{module}.weight").shape)
        found = self._form.shape(module, scheme, self._tensors, self.tensor, self._where(module))
        return tuple(self.linear(module).shape) if found is None else found

    @property
    def lacks_shapes(self) -> bool:
        """Whether the files leave open what shape a weight has: ``expect`` says it."""
        return isinstance(self._form, Shapeless)

    def expect(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """What the model's config leads to, by the names of dense tensors; believed where files leave it open."""
        if isinstance(self._form, Shapeless):
            self._form = self._form.with_shapes(shapes)

    def stored_bytes(self, module: str) -> int:
        """Bytes that a quantised module's weight takes on disk, scales and all."""
        if self._stored_bytes is None:
            self._stored_bytes = Counter()
            for name, info in self._tensors.items():
                self._stored_bytes[self._form.module_of(name)] += 0 if name.endswith(".bias") else info.nbytes
        return self._stored_bytes[module]

    def module_of(self, name: str) -> str:
        """The module that a tensor belongs to."""
        return self._form.module_of(name)

    @property
    def repacks(self) -> bool:
        """Whether weights are copied into another order when they are read."""
        return self._form.repacks or bool(self._by_outputs)

    def scheme_of(self, module: str) -> LinearScheme | None:
        """How a module's weight is stored; None = dense. Tensors decide whether, config.json decides how."""
        if module not in self._schemes:  # asked for several times per module while a model is opened
            self._schemes[module] = self._find_scheme(module)
        return self._schemes[module]

    def _find_scheme(self, module: str) -> LinearScheme | None:
        if not self._form.claims(module, self._tensors):
            return None
        return self._form.scheme(module, self.quantization.scheme_of(module), self._tensors, self._where(module))

    def schemes(self) -> dict[str, LinearScheme]:
        """How every quantised module is stored, by module."""
        modules = {self.module_of(name) for name in self._tensors}
        found = {module: self.scheme_of(module) for module in sorted(modules)}
        return {module: scheme for module, scheme in found.items() if scheme is not None}

    def holds(self, module: str) -> bool:
        """Whether a module's weight is there, dense or quantised."""
        return f"{module}.weight" in self._tensors or self.scheme_of(module) is not None

    def digest(self, finite: Collection[str] = ()) -> str:
        """SHA-256 over the sorted tensor hashes: the manifest's, or computed now by reading everything.

        The tensors that ``finite`` names are read in any case: CheckpointError if one holds NaN or infinity. No page
        that was read for this stays resident.
        """

        def look(name: str) -> Seen:
            info, where = self._tensors[name], f"{self.path / self._tensors[name].file}: {name}"
            plain = name in finite and info.dtype in NAME_TO_NUMPY  # blocks are looked at when they are read
            as_stored = self._raw(name).nbytes == info.nbytes
            if plain and not as_stored:
                check_finite(self.tensor(name).tobytes(), 0, info, where)

            def seen(start: int, piece: memoryview) -> None:
                if plain and as_stored:
                    check_finite(piece, start, info, where)
                residency.release(np.frombuffer(piece, np.uint8))

            return seen

        if self.manifest is None:
            return combined_digest(self._tensors, sha256_all(((name, self._raw(name)) for name in self._tensors), look))
        for name in self._tensors:
            if name in finite:
                for start, piece in pieces(self._raw(name)):
                    look(name)(start, piece)
        return str(self.manifest["digest"])

    def state(self) -> str:
        """Changes when a file is replaced or written: SHA-256 over what the system says of config and shards.

        Unlike ``digest`` it reads no tensor.
        """
        seen = hashlib.sha256()
        for path in sorted({self._files.described_by, *self._files.paths()}):
            seen.update(file_facts(path, path.stat()))
        return seen.hexdigest()

    def mapped(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """The bytes of every file; while one of these arrays lives, its file stays mapped."""
        return self._files.mapped()

    def read_in_large_pages(self) -> int:
        """Have the page cache read files anew that lie there in small pages and need not -> how many."""
        return sum(map(read_in_large_pages, self._files.mapped(), self._files.paths()))

    def close(self) -> None:
        """Unmap; views still alive stay valid until they die."""
        self._read = None
        self._files.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _raw(self, name: str) -> memoryview:
        return self._files.raw(name)

    def _where(self, module: str) -> str:
        for suffix in self._form.suffixes:
            info = self._tensors.get(f"{module}.{suffix}")
            if info is not None:
                return str(self.path / info.file)
        return str(self.path)
