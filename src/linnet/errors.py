# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, as types; each knows its process exit code and its HTTP status.

A message is one sentence for the person at the terminal: what, where, the value, what would be accepted.
"""

from collections.abc import Iterable, Sequence


class LinnetError(Exception):
    """Base of every error a user can cause or act on; ``code`` is stable and appears in JSON.

    ``settings``: the parameters that the message names, as Python spells them (``max_model_len``); whoever speaks to
    somebody who typed something else (``--max-model-len``) says that instead.
    """

    code = "linnet_error"
    exit_status = 1
    http_status = 500

    def __init__(self, message: str = "", *, settings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.settings = tuple(settings)


class ConfigError(LinnetError):
    """A setting, argument or recipe is wrong."""

    code = "config_error"
    exit_status = 2
    http_status = 400


class CheckpointError(LinnetError):
    """A model directory or one of its files is missing, damaged or lying."""

    code = "checkpoint_error"
    exit_status = 3
    http_status = 500


class UnsupportedError(LinnetError):
    """The input is valid but nothing here can do it; ``reasons`` lists every refusal."""

    code = "unsupported"
    exit_status = 4
    http_status = 400

    def __init__(self, message: str, reasons: Sequence[str] = (), *, settings: Sequence[str] = ()) -> None:
        self.reasons = tuple(reasons)
        detail = "".join(f"\n  - {reason}" for reason in self.reasons)
        super().__init__(message + detail, settings=settings)


class CapacityError(LinnetError):
    """The request is valid but does not fit now: queue full, pool too small, memory ceiling."""

    code = "capacity_error"
    exit_status = 5
    http_status = 429


def machine_sentence(error: OSError | MemoryError) -> str:
    """What the machine refused, in words: which file and why, or that memory ran out."""
    if isinstance(error, MemoryError):
        return "this machine has not enough memory for that"
    where = "" if error.filename is None else f"{error.filename}: "
    return f"{where}{error.strerror or error}"


_KINDS = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "object": "a mapping"}


def record_error(message: str) -> str:
    """What msgspec says of a record that does not fit, in words: ``damping: a number is needed, not a text``."""
    import re

    sentence, _, place = message.partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    kinds = re.fullmatch(r"Expected `([^`]+)`, got `([^`]+)`", sentence)
    if kinds:
        wanted, got = (
            " or ".join(_KINDS.get(kind, kind) for kind in text.removesuffix(" | null").split(" | "))
            for text in kinds.groups()
        )
        sentence = f"{wanted} is needed, not {got}"
    sentence = re.sub(r"^Object contains unknown field `([^`]*)`", r"there is no key '\1'", sentence)
    sentence = re.sub(r"^Object missing required field `([^`]*)`", r"the key '\1' is missing", sentence)
    return f"{place}: {sentence}" if place else sentence


def defect(error: BaseException) -> str:
    """Type and places of an exception that is our defect, innermost first; never values, which may hold a prompt."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.name} ({frame.filename.rpartition('/')[2]}:{frame.lineno})" for frame in frames[::-1])
    return f"{type(error).__name__} in {places}"


def unknown_choice(setting: str, value: object, accepted: Iterable[str]) -> ConfigError:
    """The error for a word that is none of ``accepted``, with the nearest of them where one is near."""
    from difflib import get_close_matches

    words = list(accepted)
    near = get_close_matches(str(value).lower(), [word.lower() for word in words], n=1, cutoff=0.6)
    meant = next((word for word in words if near and word.lower() == near[0]), None)
    hint = f"; did you mean {meant}?" if meant else ""
    return ConfigError(f"{setting} is {str(value)[:80]!r}; accepted: {', '.join(words)}{hint}", settings=[setting])
