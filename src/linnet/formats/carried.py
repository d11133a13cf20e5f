# SPDX-License-Identifier: Apache-2.0
"""The small files of a model's directory that belong to every form of it."""

from fnmatch import fnmatchcase
from pathlib import Path

from linnet.formats.manifest import FOLDERS

_CARRIED = (
    "tokenizer*.json", "tokenizer.model*", "special_tokens_map.json", "added_tokens.json", "vocab*.json", "vocab*.txt",
    "merges*.txt", "*.model", "*.tiktoken", "tekken.json", "chat_template*", "*.jinja", "generation_config.json",
    "modules.json", "1_pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "license*", "licence*", "copying*", "notice*", "use_policy*",
)  # fmt: skip
"""In lower case. What else lies in a source directory (training state, indices of other formats, reports about the
uncompressed model) would say something untrue of the result."""


def carried_files(directory: Path) -> list[Path]:
    """Tokenizer, templates, generation settings, licences: everything small that belongs to the model."""
    folders = [directory / name for name in FOLDERS if (directory / name).is_dir()]
    return sorted(
        path
        for place in (directory, *folders)
        for path in place.iterdir()
        if not path.name.startswith(".")
        and any(_matches(path, directory, pattern) for pattern in _CARRIED)
        and path.is_file()
    )


def _matches(path: Path, directory: Path, pattern: str) -> bool:
    """By its name, or, where the pattern says a folder, by its place in the directory."""
    shown = path.relative_to(directory).as_posix() if "/" in pattern else path.name
    return fnmatchcase(shown.lower(), pattern)
