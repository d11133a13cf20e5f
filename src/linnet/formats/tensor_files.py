# SPDX-License-Identifier: Apache-2.0
"""What lies under a Checkpoint: named tensors in mapped files, and a config. It need not know which kind of file."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.formats.gguf.files import GgufFiles
from linnet.formats.header import TensorInfo
from linnet.formats.json_file import read_json_object
from linnet.formats.mapped_file import MappedFile
from linnet.formats.quantization import undisguise, with_loose_record
from linnet.formats.recognise import no_config, no_such_path, not_a_directory
from linnet.formats.shards import open_shards
from linnet.gguf import gguf_of

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 4 << 20

Array = npt.NDArray[Any]


class TensorFiles(Protocol):
    """Tensors by name, sorted by name, under the names and in the row order of Hugging Face's files."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is."""

    @property
    def config(self) -> dict[str, Any]:
        """What a Hugging Face config.json would say; where no config prescribes how tensors lie, its
        ``quantization_config`` has the ``quant_method`` of the form that reads them."""

    @property
    def described_by(self) -> Path:
        """The file that the config comes from."""

    def view(self, name: str) -> Array:
        """The stored array: a read-only mapped view wherever the bytes lie as they are meant. A tensor of blocks is
        uint8 [rows, bytes of a row]."""

    def raw(self, name: str) -> memoryview:
        """The tensor's stored bytes."""

    def paths(self) -> tuple[Path, ...]:
        """Every file."""

    def mapped(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """The bytes of every file; while one of these arrays lives, its file stays mapped. In the order of paths."""

    def close(self) -> None:
        """Unmap; views still alive stay valid until they die."""


class FilesOverOthers:
    """Half of a ``TensorFiles`` that shows ``_files`` otherwise than they are stored: what it leaves to them."""

    _files: TensorFiles

    def paths(self) -> tuple[Path, ...]:
        """See TensorFiles."""
        return self._files.paths()

    def mapped(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """See TensorFiles: what is stored."""
        return self._files.mapped()

    def close(self) -> None:
        """See TensorFiles."""
        self._files.close()


def read_config(directory: Path) -> dict[str, Any]:
    """A directory's config.json as it is meant: undisguised, with a quantisation record that lies beside it."""
    return with_loose_record(undisguise(read_json_object(directory / CONFIG_FILE, MAX_CONFIG_BYTES)), directory)


class SafetensorsFiles:
    """config.json and the .safetensors files of a model directory. Implements ``TensorFiles``.

    Raises CheckpointError: no directory, no config; UnsupportedError: another kind of path.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise not_a_directory(directory) if directory.exists() else CheckpointError(no_such_path(str(directory)))
        self.described_by = directory / CONFIG_FILE
        if not self.described_by.exists():
            raise no_config(directory)
        self.config = read_config(directory)
        self._directory = directory

    @cached_property
    def _opened(self) -> tuple[dict[str, MappedFile], dict[str, TensorInfo]]:
        """Not before somebody asks: a config that nobody reads is said before weights are missed."""
        return open_shards(self._directory)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """See TensorFiles.tensors. Raises CheckpointError: no or damaged weights."""
        return self._opened[1]

    @property
    def _files(self) -> dict[str, MappedFile]:
        return self._opened[0]

    def view(self, name: str) -> Array:
        """See TensorFiles.view."""
        return self._file(name).view(self.tensors[name])

    def raw(self, name: str) -> memoryview:
        """See TensorFiles.raw."""
        return self._file(name).raw(self.tensors[name])

    def paths(self) -> tuple[Path, ...]:
        """See TensorFiles.paths."""
        return tuple(file.path for file in self._files.values())

    def mapped(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """See TensorFiles.mapped."""
        return tuple(file.whole() for file in self._files.values())

    def close(self) -> None:
        """See TensorFiles.close."""
        for file in self._files.values():
            file.close()

    def _file(self, name: str) -> MappedFile:
        return self._files[self.tensors[name].file]


def open_files(path: Path) -> TensorFiles:
    """The files of whatever kind of model lies at ``path``: a GGUF file (also the only one of a directory), else a
    directory."""
    file = gguf_of(path)
    return SafetensorsFiles(path) if file is None else GgufFiles(file)
