# SPDX-License-Identifier: Apache-2.0
"""A model of one GGUF file or of a split set (``name-00001-of-00003.gguf``): its metadata and all its tensors.

Any file of the set opens the whole set; what the model is stands in the first (llama.cpp's ``gguf-split``).
"""

import re
from pathlib import Path
from types import TracebackType

from linnet.errors import CheckpointError
from linnet.gguf.container import Array, GgufPart, is_gguf
from linnet.gguf.metadata import Metadata
from linnet.gguf.table import GgufTensor

MOST_PARTS = 9999
_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class GgufModel:
    """Opened by its path; usable as a context manager. Arrays are views of the mapped files, never copies."""

    def __init__(self, path: str | Path) -> None:
        """Raises CheckpointError: a damaged file, a missing or foreign part; UnsupportedError: an unknown version or
        tensor type."""
        self.path = Path(path)
        self.parts = _open_parts(self.path)
        self.metadata: Metadata = self.parts[0].metadata
        self.tensors: dict[str, GgufTensor] = {}
        self._part_of: dict[str, GgufPart] = {}
        for part in self.parts:
            for name, tensor in part.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(f"{part.path}: tensor {name!r} is in {self.tensors[name].file} too")
                self.tensors[name] = tensor
                self._part_of[name] = part
        _check_count(self)

    def view(self, name: str) -> Array:
        """A tensor's array: numbers for a plain type, else uint8 rows (``GgufPart.view``)."""
        return self._part_of[name].view(self.tensors[name])

    def raw(self, name: str) -> memoryview:
        """A tensor's bytes."""
        return self._part_of[name].raw(self.tensors[name])

    def close(self) -> None:
        """Unmap; views still alive stay valid until they die."""
        for part in self.parts:
            part.close()

    def __enter__(self) -> "GgufModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def split_set(path: Path) -> list[Path]:
    """The files of the set that a file's name says it belongs to, in order; the file alone for any other name."""
    match = _SPLIT_NAME.fullmatch(path.name)
    count = int(match["count"]) if match else 0
    if match is None or not 1 <= count <= MOST_PARTS:
        return [path]
    return [path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]


def gguf_of(path: Path) -> Path | None:
    """The GGUF file that ``path`` means: itself (by its bytes or its name), or the only model in a directory that has
    no .safetensors files.

    None for any other path. Of a split set the first file counts; projectors of images (mmproj) do not. Raises
    CheckpointError for a directory with several models.
    """
    if not path.is_dir():
        return path if is_gguf(path) or (path.suffix == ".gguf" and path.is_file()) else None
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError:
        return None
    if any(name.endswith(".safetensors") for name in names):
        return None
    found = [path / name for name in names if name.endswith(".gguf") and not name.lower().startswith("mmproj")]
    models = list(dict.fromkeys(split_set(file)[0] for file in found))
    if len(models) > 1:
        raise CheckpointError(
            f"{path}: {len(models)} GGUF models; give one of them: {', '.join(model.name for model in models[:8])}"
            + (", …" if len(models) > 8 else "")
        )
    return models[0] if models else None


def _open_parts(path: Path) -> tuple[GgufPart, ...]:
    given = GgufPart(path)
    count = given.metadata.integer("split.count", 0) or 0
    if count <= 1:
        return (given,)
    paths = split_set(path)
    if len(paths) != count:
        raise CheckpointError(
            f"{path}: one of {count} parts of a model (split.count), whose name must end in "
            f"-00001-of-{min(count, MOST_PARTS):05d}.gguf so that the others are found"
        )
    missing = [other.name for other in paths if not other.exists()]
    if missing:
        raise CheckpointError(
            f"{path}: one of {count} parts of a model, of which {len(missing)} are missing here: "
            + ", ".join(missing[:3])
            + (", …" if len(missing) > 3 else "")
        )
    parts = tuple(given if other == path else GgufPart(other) for other in paths)
    for number, part in enumerate(parts):
        said = part.metadata.integer("split.no"), part.metadata.integer("split.count")
        if said != (number, count):
            raise CheckpointError(
                f"{part.path}: split.no and split.count are {said[0]} and {said[1]}, its name says {number} and {count}"
            )
    return parts


def _check_count(model: GgufModel) -> None:
    said = model.metadata.integer("split.tensors.count")
    if len(model.parts) > 1 and said is not None and said != len(model.tensors):
        raise CheckpointError(
            f"{model.parts[0].path}: the set should have {said} tensors (split.tensors.count), its "
            f"{len(model.parts)} files have {len(model.tensors)}"
        )
