# SPDX-License-Identifier: Apache-2.0
"""The loss certificate in a checkpoint's directory: replaced whole or not at all, never by a smaller measurement."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from linnet.evals import Certificate, Report


def store_certificate(report: "Report", directory: Path) -> str:
    """Write the report's certificate unless a fuller one of the same two models is there; returns what was done.

    Fuller: more text tokens or more questions. CheckpointError if the directory cannot be written.
    """
    from linnet import evals

    path = directory / evals.CERTIFICATE_FILE
    new, old = evals.certificate(report), _read(path)
    if old is not None and _models(old) == _models(new) and any(map(int.__gt__, _extent(old), _extent(new))):
        return f"certificate kept: {path} was measured on {_words(old)}, this time it was {_words(new)}"
    _replace(path, evals.to_json(new))
    return f"certificate stored in {path}"


def _read(path: Path) -> "Certificate | None":
    """None for a certificate that is missing or cannot be read: nothing worth keeping."""
    from linnet.evals import Certificate

    try:
        return msgspec.json.decode(path.read_bytes(), type=Certificate)
    except (OSError, msgspec.DecodeError):
        return None


def _models(certificate: "Certificate") -> tuple[str, str]:
    return certificate.candidate.digest, certificate.reference.digest


def _extent(certificate: "Certificate") -> tuple[int, int]:
    """Text tokens and questions."""
    tokens = 0 if certificate.text is None else certificate.text.tokens
    return tokens, sum(ability.questions for ability in certificate.abilities)


def _words(certificate: "Certificate") -> str:
    tokens, questions = _extent(certificate)
    return f"{tokens:,} tokens and {questions:,} questions"


def _replace(path: Path, data: bytes) -> None:
    """A crash at any moment leaves the old file or the new one."""
    from linnet.formats.durable import os_errors, sync_directory, write_durable

    with os_errors(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            write_durable(temporary, data)
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
