# SPDX-License-Identifier: Apache-2.0
"""Which safetensors files a model directory consists of, and which tensor is taken from which: the index decides."""

import logging
from pathlib import Path

from linnet.errors import CheckpointError
from linnet.formats.header import TensorInfo
from linnet.formats.json_file import read_json_object
from linnet.formats.mapped_file import MappedFile
from linnet.formats.recognise import no_weights

logger = logging.getLogger(__name__)

SHOWN = 3
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
OWN_SINGLE_FILE = "linnet.safetensors"
OWN_INDEX_FILE = "linnet_weights.json"
"""Names that no other loader looks for, nor finds by a pattern (accelerate takes any *.index.json): K18."""


def open_shards(directory: Path) -> tuple[dict[str, MappedFile], dict[str, TensorInfo]]:
    """Map every file of the model -> files by name, tensors by name (sorted by name).

    A tensor that the index does not list, or lists in another file, is passed over with a warning that counts them:
    tools that rewrite some shards leave old copies in the others.
    """
    own = not (directory / SINGLE_FILE).exists() and (directory / OWN_INDEX_FILE).exists()
    index_path = directory / (OWN_INDEX_FILE if own else INDEX_FILE)
    if (directory / SINGLE_FILE).exists() or not index_path.exists():
        file = MappedFile(directory / _only_file(directory))
        return {file.path.name: file}, dict(sorted(file.tensors.items()))
    weight_map = _read_weight_map(index_path)
    files: dict[str, MappedFile] = {}
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(set(weight_map.values())):
        path = directory / name
        if not path.exists():
            missing = sum(file == name for file in weight_map.values())
            raise CheckpointError(f"{path}: the shard is missing, the index needs it for {missing} tensors")
        files[name] = MappedFile(path)
    for tensor, name in weight_map.items():
        if tensor not in files[name].tensors:
            elsewhere = next((other for other, file in files.items() if tensor in file.tensors), None)
            found = f"it is in {elsewhere}" if elsewhere else "no shard has it"
            raise CheckpointError(
                f"{directory / name}: tensor {tensor!r} is not in this file as the index says, {found}"
            )
    passed_over = []
    for name, file in files.items():
        for tensor, info in file.tensors.items():
            if weight_map.get(tensor) == name:
                tensors[tensor] = info
            else:
                passed_over.append(f"{tensor} of {name}")
    if passed_over:
        logger.warning(
            "%s: %d tensors that %s does not list where they lie are passed over: %s%s",
            *(directory, len(passed_over), index_path.name, ", ".join(passed_over[:SHOWN])),
            ", ..." if len(passed_over) > SHOWN else "",
        )
    return files, dict(sorted(tensors.items()))


def _read_weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map must be an object that maps tensor names to files")
    for tensor, name in weight_map.items():
        plain = isinstance(name, str) and name.endswith(".safetensors") and "/" not in name and "\\" not in name
        if not plain or "\0" in name or name.startswith("."):
            raise CheckpointError(
                f"{path}: tensor {tensor!r} is said to be in {name!r}, a plain .safetensors name is needed"
            )
    return weight_map


def _only_file(directory: Path) -> str:
    """model.safetensors, or the one .safetensors file there is."""
    if (directory / SINGLE_FILE).exists():
        return SINGLE_FILE
    found = sorted(path.name for path in directory.glob("*.safetensors") if not path.name.startswith("."))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{directory}: {len(found)} .safetensors files but no {INDEX_FILE} that says which to use"
        )
    raise no_weights(directory)
