# SPDX-License-Identifier: Apache-2.0
"""Writing a checkpoint: stream tensors, survive ``kill -9``, publish the whole directory by one rename.

Everything happens in ``.NAME.linnet-partial`` beside the target, under a lock. The target is touched once, at the
end; whatever fails before leaves it as it was. Final bytes depend only on what was added in which order, not on
interruptions.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from linnet.errors import ConfigError
from linnet.formats.durable import os_errors, publish_directory, sync_directory, write_durable
from linnet.formats.forms.canonical_written import CANONICAL, with_rotations, with_terms
from linnet.formats.forms.compressed_tensors import OWN_METHOD
from linnet.formats.forms.written import WrittenForm
from linnet.formats.hashing import sha256
from linnet.formats.json_file import read_bytes
from linnet.formats.manifest import MANIFEST_FILE, MAX_SMALL_FILE_BYTES, build_manifest, is_file_name
from linnet.formats.partial import PartialOutput
from linnet.formats.prescription import Rotation
from linnet.formats.quantization import disguise, record_of
from linnet.formats.shard_writer import write_shards
from linnet.formats.shards import OWN_INDEX_FILE, OWN_SINGLE_FILE, SINGLE_FILE
from linnet.formats.target import check_replaceable, real_target, remove_replaced
from linnet.formats.tensor_files import CONFIG_FILE
from linnet.formats.terms_record import read_terms, terms_to_record
from linnet.schemes import LinearScheme, PackedWeight, Scheme, Terms

DEFAULT_SHARD_BYTES = 4 << 30
_WEIGHT_NAMES = (SINGLE_FILE, OWN_SINGLE_FILE, OWN_INDEX_FILE)
logger = logging.getLogger(__name__)
_MODULE_KEY, _TERMS_KEY = "linnet_modules", "linnet_terms"


class CheckpointWriter:
    """One checkpoint being written.

    ``overwrite`` allows an existing checkpoint of Linnet's at the target to be replaced, if it holds nothing but what
    its manifest lists (see target.py). ``form``: what quantised weights are written in. ``resume`` continues what an
    interrupted writer with the same ``identity`` (a digest of everything the bytes depend on, ``form`` included)
    committed: see ``finished`` and ``notes``. Leaving the context without ``publish`` keeps the partial directory if
    ``resume`` is set, else deletes it.
    CheckpointError: target exists, another writer, disk full, no permission. ConfigError: identity differs.
    """

    def __init__(
        self,
        target: str | Path,
        overwrite: bool = False,
        shard_bytes: int = DEFAULT_SHARD_BYTES,
        resume: bool = False,
        identity: str = "",
        form: WrittenForm = CANONICAL,
    ) -> None:
        if shard_bytes < 1:
            raise ConfigError(f"shard_bytes must be positive, not {shard_bytes}")
        with os_errors(Path(target)):
            self.target = real_target(target)
        self._overwrite = overwrite
        self._shard_bytes = shard_bytes
        self._resume = resume
        self._form = form
        with os_errors(self.target):
            check_replaceable(self.target, overwrite)
        self._output = PartialOutput(self.target, lambda: check_replaceable(self.target, overwrite), resume, identity)
        self._partial, self._spool = self._output.directory, self._output.spool
        self._modules: dict[str, LinearScheme] = {}
        self._terms: dict[str, Terms] = {}
        for note in self._spool.notes:
            for module, record in note.get(_MODULE_KEY, {}).items():
                self._modules[module] = _scheme_from_json(record)
            self._terms |= read_terms(note.get(_TERMS_KEY, {}), str(self._partial))
        self._new_modules: dict[str, LinearScheme] = {}
        self._new_terms: dict[str, Terms] = {}
        self._files: dict[str, bytes] = {}

    @property
    def finished(self) -> frozenset[str]:
        """Names of all tensors that are durable: they will not have to be added again."""
        return frozenset(self._spool.finished)

    @property
    def nbytes(self) -> int:
        """Of all tensors that are durable."""
        return sum(item.info.nbytes for item in self._spool.finished.values())

    @property
    def notes(self) -> tuple[dict[str, Any], ...]:
        """The notes of all commits so far, those of interrupted runs included, in order."""
        ours = (_MODULE_KEY, _TERMS_KEY)
        return tuple({key: note[key] for key in note if key not in ours} for note in self._spool.notes)

    @property
    def scratch(self) -> Path:
        """A directory for the caller's own resume files; it lives and dies with the partial directory."""
        return self._output.scratch

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Stream one dense tensor to the disk. ConfigError if the name was already written."""
        with os_errors(self._partial):
            self._spool.add(name, array)

    def add_packed(self, module: str, packed: PackedWeight) -> int:
        """Stream a quantised weight, in a scheme of the writer's form, as that form stores it -> bytes."""
        packed.check(module)
        tensors = self._form.tensors(packed)
        for suffix, array in tensors.items():
            self.add(f"{module}.{suffix}", array)
        self._new_modules[module] = packed.scheme
        return sum(array.nbytes for array in tensors.values())

    def add_terms(self, module: str, terms: Terms, parts: Mapping[str, npt.NDArray[Any] | PackedWeight]) -> None:
        """Stream what a linear has beside its own weight, or in its place, plain or packed modules by names relative to
        it: the layout is then Linnet's own, since no other form has a word for that."""
        if self._form is not CANONICAL:
            raise ConfigError(f"{self._form.name} has no word for sums of terms, of which {module} would be one")
        for part, stored in parts.items():
            if isinstance(stored, PackedWeight):
                self.add_packed(f"{module}.{part}", stored)
            else:
                self.add(f"{module}.{part}.weight", stored)
        self._new_terms[module] = terms

    def commit(self, note: Mapping[str, Any] | None = None) -> None:
        """Make everything added so far durable: a resume point. ``note`` is the caller's, JSON."""
        record = dict(note or {})
        if self._new_modules:
            record[_MODULE_KEY] = {module: asdict(scheme) for module, scheme in self._new_modules.items()}
        if self._new_terms:
            record[_TERMS_KEY] = terms_to_record(self._new_terms)
        with os_errors(self._partial):
            self._spool.commit(record)
        self._modules |= self._new_modules
        self._terms |= self._new_terms
        self._new_modules, self._new_terms = {}, {}

    def write_json(self, filename: str, value: Mapping[str, Any]) -> None:
        """A JSON file of the checkpoint (not config.json: ``publish`` writes that)."""
        self._stage(filename, _json_bytes(value))

    def write_text(self, filename: str, text: str) -> None:
        """A text file of the checkpoint, a model card for instance."""
        self._stage(filename, text.encode())

    def write_bytes(self, filename: str, data: bytes) -> None:
        """Any other small file of the checkpoint, a picture for instance."""
        self._stage(filename, data)

    def copy_file(self, source: str | Path, name: str | None = None) -> None:
        """Carry a small file (tokenizer, generation config) over under its own name, or under ``name``, which may begin
        with a folder of ``manifest.FOLDERS``."""
        path = Path(source)
        self._stage(name or path.name, read_bytes(path, MAX_SMALL_FILE_BYTES))

    def publish(
        self,
        config: Mapping[str, Any],
        manifest_extra: Mapping[str, Any] | None = None,
        rotations: Sequence[Rotation] = (),
    ) -> dict[str, Any]:
        """Assemble files, config.json and manifest, flush, rename to the target -> the manifest.

        ``config`` is the source's; its quantization_config is replaced by the form's for the modules added as
        packed. ``rotations``: what the model rotates at run time, which Linnet's own layout alone says.
        """
        if rotations and self._form is not CANONICAL:
            raise ConfigError(f"{self._form.name} has no word for rotations at run time")
        if self._spool.pending:
            self.commit()
        if not self._spool.finished:
            raise ConfigError(f"{self.target}: no tensor was added")
        with os_errors(self._partial):
            staged = self._output.staged()
            final = self._final_config(config, rotations)
            own = final.get("quantization_config", {}).get("quant_method") == OWN_METHOD
            placed = write_shards(staged, self._spool, self._shard_bytes, own_names=own)
            files = {**self._files, CONFIG_FILE: _json_bytes(disguise(final) if own else final)}
            folders = {(staged / name).parent for name in files} - {staged}
            for folder in folders:
                folder.mkdir(exist_ok=True)  # an attempt that was killed may have made it
            for name, data in files.items():
                write_durable(staged / name, data)
            for folder in folders:
                sync_directory(folder)
            hashes = {name: item.sha256 for name, item in self._spool.finished.items()}
            small = {name: sha256(data) for name, data in files.items()}
            manifest = build_manifest(placed, hashes, small, manifest_extra or {})
            write_durable(staged / MANIFEST_FILE, _json_bytes(manifest))
            sync_directory(staged)
            replaced = check_replaceable(self.target, self._overwrite)  # again: copying may have taken minutes
            publish_directory(staged, self.target, self._overwrite)
            kept = remove_replaced(staged, replaced, self.target) if staged.exists() else None
            if kept is not None:
                logger.warning("%s appeared in the old %s meanwhile and is kept", kept, self.target)
        self._output.release(remove=True)
        return manifest

    def close(self) -> None:
        """Give the lock back and keep what was committed, for a later ``resume``."""
        self._output.release(remove=False)

    def abandon(self) -> None:
        """Delete everything written so far; the target stays as it was."""
        self._output.release(remove=True)

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._output.release(remove=not self._resume)

    def _stage(self, filename: str, data: bytes) -> None:
        reserved = (CONFIG_FILE, MANIFEST_FILE)
        if not is_file_name(filename) or filename in reserved or filename.startswith(_WEIGHT_NAMES):
            raise ConfigError(f"{filename!r} cannot be a file of the checkpoint; reserved: {', '.join(reserved)}")
        self._files[filename] = data

    def _final_config(self, config: Mapping[str, Any], rotations: Sequence[Rotation]) -> dict[str, Any]:
        final = {key: config[key] for key in config if key not in ("quantization_config", "compression_config")}
        if self._modules or self._terms or rotations:
            dense = [
                name.removesuffix(".weight")
                for name, item in self._spool.finished.items()
                if name.endswith(".weight") and len(item.info.shape) == 2
            ]
            source = record_of(config)
            known = source if isinstance(source, dict) else {}
            record = self._form.record(self._modules, dense, known)
            record = with_terms(record, self._terms) if self._terms else record
            final["quantization_config"] = with_rotations(record, rotations) if rotations else record
        return final


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _scheme_from_json(record: Mapping[str, Any]) -> LinearScheme:
    def scheme(fields: Mapping[str, Any]) -> Scheme:
        block = fields["block"]
        return Scheme(**{**fields, "block": None if block is None else (block[0], block[1])})

    inputs = None if record["input"] is None else scheme(record["input"])
    return LinearScheme(scheme(record["weight"]), inputs, record.get("sorted_columns", False))
