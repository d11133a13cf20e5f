# SPDX-License-Identifier: Apache-2.0
"""The loss certificate in a checkpoint's directory: replaced whole or not at all, and no measurement is ever dropped.

Text and abilities are two parts. Of the same two models each part keeps its fuller measurement; a certificate of other
models, or one that cannot be read, is moved aside and named.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from linnet.evals import Certificate, Report


def store_certificate(report: "Report", directory: Path) -> str:
    """Write the report's certificate, part by part the fuller of old and new; returns what was done, in one line.

    CheckpointError if the directory cannot be written.
    """
    from linnet import evals

    path = directory / evals.CERTIFICATE_FILE
    new, old = evals.certificate(report), _read(path)
    if old is None or _models(old) != _models(new):
        aside = _keep_aside(path)
        replace_file(path, evals.to_json(new))
        kept = "" if aside is None else f"; the one there before, of other models or unreadable, is now {aside.name}"
        return f"certificate stored in {path}{kept}"
    keep_text, keep_abilities = _tokens(old) > _tokens(new), _questions(old) > _questions(new)
    if keep_text and keep_abilities:
        return f"certificate kept: {path} was measured on {_words(old)}, this time it was {_words(new)}"
    merged = _merge(old, new, keep_text, keep_abilities)
    replace_file(path, evals.to_json(merged))
    if keep_text:
        return f"certificate stored in {path}; its text part is the earlier, fuller one ({_tokens(old):,} tokens)"
    if keep_abilities:
        return (
            f"certificate stored in {path}; its abilities are the earlier, fuller ones ({_questions(old):,} questions)"
        )
    return f"certificate stored in {path}"


def _merge(old: "Certificate", new: "Certificate", keep_text: bool, keep_abilities: bool) -> "Certificate":
    """The new certificate with parts of the old one, judged anew; ``created`` names both times where it has both."""
    from linnet.evals import judge

    changes: dict[str, object] = {}
    if keep_text:
        changes |= {"text": old.text, "perplexity": old.perplexity, "divergence": old.divergence}
    if keep_abilities:
        changes |= {"abilities": old.abilities, "verdicts": old.verdicts, "pooled": old.pooled}
        changes |= {"questions": old.questions, "questions_digest": old.questions_digest}
    if changes:
        part = "text" if keep_text else "abilities"
        changes["created"] = f"{new.created}; {part}: {old.created.split(';')[0]}"
    merged = msgspec.structs.replace(new, **changes)
    parts = (merged.text, merged.perplexity, merged.divergence, merged.abilities, merged.pooled)
    return msgspec.structs.replace(merged, judgement=judge(*parts))


def _read(path: Path) -> "Certificate | None":
    """None for a certificate that is missing or cannot be read."""
    from linnet.evals import Certificate

    try:
        return msgspec.json.decode(path.read_bytes(), type=Certificate)
    except (OSError, msgspec.DecodeError):
        return None


def _keep_aside(path: Path) -> Path | None:
    """Give what lies at ``path`` a second name, so that it is not lost -> the name; None if nothing lies there."""
    from linnet.formats.durable import os_errors

    if not os.path.lexists(path):
        return None
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.stem}.before-{number}{path.suffix}")):
        number += 1
    with os_errors(path):
        try:
            os.link(path, aside, follow_symlinks=False)
        except OSError:  # a file system without links
            os.rename(path, aside)
    return aside


def _models(certificate: "Certificate") -> tuple[str, str, str]:
    """Both models and the arithmetic: parts measured otherwise do not belong into one record."""
    return certificate.candidate.digest, certificate.reference.digest, certificate.candidate.numerics


def _tokens(certificate: "Certificate") -> int:
    return 0 if certificate.text is None else certificate.text.tokens


def _questions(certificate: "Certificate") -> int:
    return sum(ability.questions for ability in certificate.abilities)


def _words(certificate: "Certificate") -> str:
    return f"{_tokens(certificate):,} tokens and {_questions(certificate):,} questions"


def replace_file(path: Path, data: bytes) -> None:
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
