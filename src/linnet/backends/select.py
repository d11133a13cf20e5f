# SPDX-License-Identifier: Apache-2.0
"""Which backend executes a model: chosen once, at load. Every refusal is collected and told. Imports are lazy."""

import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from linnet.backends.interface import Backend
from linnet.backends.settings import NAMES, OwnSettings, candidates
from linnet.errors import LinnetError, UnsupportedError
from linnet.extras import install_command
from linnet.program.program import Program
from linnet.settings import BackendSettings

logger = logging.getLogger(__name__)


def choose_backend(
    wanted: str | OwnSettings | Sequence[OwnSettings] = "auto", program: Program | None = None
) -> Backend:
    """The first of the wanted backends that can execute ``program`` (after choose_numerics), if one is given.

    ``wanted`` is a name, whose backends get default settings, or the settings themselves (see ``settings``). What was
    passed over is logged as a warning, since the reference is slow.
    ConfigError for an unknown name; UnsupportedError with every backend's reason if none will do; LinnetError for
    native kernels that are there and damaged, which are not passed over.
    """
    if isinstance(wanted, str):
        wanted = candidates(BackendSettings(name=wanted))
    tried = (wanted,) if isinstance(wanted, OwnSettings) else tuple(wanted)
    refusals: list[str] = []
    for settings in tried:
        name = NAMES[type(settings)]
        try:
            backend = _BACKENDS[name](settings)
        except ImportError as error:
            refusals.append(f"{name}: {error}")
            continue
        except UnsupportedError as error:
            if error.settings:  # not the backend's limit but a setting that somebody chose
                raise
            refusals.append(f"{name}: {error}")
            continue
        reasons = refused_ops(backend, program) if program is not None else []
        if not reasons:
            if refusals:
                logger.warning("executing with the slow %s backend: %s", name, "; ".join(refusals))
            return backend
        refusals.extend(f"{name}: {reason}" for reason in reasons)
    names = [NAMES[type(settings)] for settings in tried]
    asked = f"backend {names[0]!r}" if len(names) == 1 else "no backend"
    raise UnsupportedError(f"{asked} {'cannot' if len(names) == 1 else 'can'} execute this model", refusals)


def refused_ops(backend: Backend, program: Program) -> list[str]:
    """One sentence per distinct reason, naming the first op it concerns and how many more there are."""
    first: dict[str, str] = {}
    counts: dict[str, int] = {}
    for op in program.ops:
        reason = backend.supports(op, program)
        if reason is not None:
            first.setdefault(reason, op.name)
            counts[reason] = counts.get(reason, 0) + 1
    return [
        f"{first[reason]}{f' and {count - 1} more' if count > 1 else ''}: {reason}" for reason, count in counts.items()
    ]


def native_kernels() -> ModuleType:
    """The native extension. ImportError if there is none; LinnetError if it is there and does not load."""
    name = "linnet.backends.cpu._native"
    try:
        return import_module(name)
    except ImportError as error:
        found = find_spec(name)
        if found is None:
            raise ImportError("the native kernels are not built for this Python") from error
        raise LinnetError(
            f"the native kernels {found.origin} do not load: {error}; install linnet again, or choose another backend"
        ) from error


def _cpu(settings: Any) -> Backend:
    native_kernels()
    from linnet.backends.cpu.backend import CpuBackend
    from linnet.backends.cpu.tile_cache import TileCache

    directory = settings.tile_directory
    tiles = None if directory is None else TileCache(directory)
    return CpuBackend(settings.threads, settings.isa, tiles, settings.large_pages)


def _reference(settings: Any) -> Backend:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"PyTorch is not installed: {install_command('compress')}") from error
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    from linnet.backends.reference.backend import ReferenceBackend

    return ReferenceBackend()


_BACKENDS: dict[str, Callable[[Any], Backend]] = {"cpu": _cpu, "reference": _reference}
