# SPDX-License-Identifier: Apache-2.0
"""A name from the command line -> a local directory or GGUF file: as is, or from the Hugging Face hub or its cache."""

import re
from collections.abc import Sequence
from pathlib import Path

from linnet.errors import CheckpointError
from linnet.formats.recognise import is_plainly_a_path, near_paths, no_such_path, not_a_directory
from linnet.gguf import gguf_of, split_set

PATTERNS = (
    "*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "*.tiktoken",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model",
)  # fmt: skip
IGNORED = ("consolidated*", "*/*.safetensors")
"""The same weights once more in another project's layout, or another model in a folder: never read, so not fetched."""
_GGUF_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,255}\.gguf")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


def resolve_model(name: str | Path, revision: str | None = None) -> Path:
    """A local path is returned as it is, a directory with one GGUF model and nothing else to run as that file.

    Anything that looks like a hub id is looked up there; ``owner/name:file.gguf`` is a file of a hub repository, with
    the other parts of its set. HF_HOME, HF_HUB_CACHE, HF_TOKEN and HF_HUB_OFFLINE are honoured by huggingface_hub;
    offline opens no socket. Never downloads pickle files or code. CheckpointError in a sentence if there is no such
    model, or several GGUF models in the directory.
    """
    text = str(name)
    path = _existing(text)
    if path is not None:
        file = gguf_of(path)
        if file is None and not path.is_dir():
            raise not_a_directory(path)
        if revision is not None:
            kind = "directory" if path.is_dir() else "file"
            raise CheckpointError(f"{path}: a local {kind} has no revisions, {revision!r} was asked for")
        return file or path
    hub_id, _, name_there = text.partition(":")
    if _is_hub_id(hub_id) and "/" in hub_id and _GGUF_NAME.fullmatch(name_there):
        directory = _snapshot(hub_id, revision, [part.name for part in split_set(Path(name_there))], ())
        if not (directory / name_there).is_file():
            raise CheckpointError(f"{hub_id}: this Hugging Face repository has no file {name_there}")
        return directory / name_there
    if is_plainly_a_path(text) or not _is_hub_id(text):
        raise CheckpointError(no_such_path(text))
    directory = _snapshot(text, revision, PATTERNS, IGNORED)
    return gguf_of(directory) or directory


def _snapshot(text: str, revision: str | None, patterns: Sequence[str], ignored: Sequence[str]) -> Path:
    """The hub repository's files of these patterns, in huggingface_hub's cache."""
    from huggingface_hub import constants, snapshot_download  # here: half a second that local directories do not pay
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline = constants.HF_HUB_OFFLINE
    try:
        directory = snapshot_download(
            text,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored),
            local_files_only=offline,
        )
        return Path(directory)
    except HFValidationError:
        reason = "not a valid Hugging Face model id"
    except LocalEntryNotFoundError:
        reason = "not in the local Hugging Face cache, and " + (
            "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        )
    except GatedRepoError:
        reason = "the Hugging Face hub grants access only on request; accept its terms there and set HF_TOKEN"
    except RevisionNotFoundError:
        reason = f"the Hugging Face hub has no revision {revision!r} of it"
    except RepositoryNotFoundError:
        reason = "the Hugging Face hub has no such model, or it is private and HF_TOKEN is not set"
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        reason = f"the Hugging Face hub answered with an error (HTTP {status})"
    except (OSError, ValueError) as error:  # requests' and httpx' connection errors are OSErrors or wrapped above
        reason = (
            f"the Hugging Face hub cannot be reached: {str(error).splitlines()[0][:160] if str(error) else error!r}"
        )
    raise CheckpointError(f"{text}: no such directory, and {reason}{near_paths(text)}")


def _is_hub_id(text: str) -> bool:
    return _HUB_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def _existing(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, a home that cannot be found, a NUL
        return None
