# SPDX-License-Identifier: Apache-2.0
"""Which backend executes a model: chosen once, at load. Every refusal is collected and told. Imports are lazy."""

import logging
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from linnet.backends.interface import Backend
from linnet.errors import LinnetError, UnsupportedError, unknown_choice
from linnet.extras import install_command
from linnet.program.program import Program

logger = logging.getLogger(__name__)


def choose_backend(
    name: str = "auto",
    program: Program | None = None,
    *,
    threads: int | None = None,
    isa: str | None = None,
    tile_directory: Path | None = None,
) -> Backend:
    """``auto`` is the first of cpu, reference that can execute ``program`` (after choose_numerics), if one is given.

    ``threads`` and ``isa`` (portable, neon_i8mm, avx2, avx2_vnni, avx512, avx512_vnni; None: the best this machine
    has) configure cpu, and so does ``tile_directory``: where it may keep weights in the order it reads them (None:
    nowhere). What ``auto`` passed over is logged as a warning, since the reference is slow.
    ConfigError for an unknown name; UnsupportedError with every backend's reason if none will do; LinnetError for
    native kernels that are there and damaged, which ``auto`` does not pass over.
    """
    if name != "auto" and name not in _BACKENDS:
        raise unknown_choice("backend", name, ("auto", *_BACKENDS))
    refusals: list[str] = []
    for candidate in _BACKENDS if name == "auto" else (name,):
        try:
            backend = _BACKENDS[candidate](threads, isa, tile_directory)
        except ImportError as error:
            refusals.append(f"{candidate}: {error}")
            continue
        except UnsupportedError as error:
            if error.settings:  # not the backend's limit but a setting that somebody chose
                raise
            refusals.append(f"{candidate}: {error}")
            continue
        reasons = refused_ops(backend, program) if program is not None else []
        if not reasons:
            if refusals:
                logger.warning("executing with the slow %s backend: %s", candidate, "; ".join(refusals))
            return backend
        refusals.extend(f"{candidate}: {reason}" for reason in reasons)
    asked = "no backend can execute this model" if name == "auto" else f"backend {name!r} cannot execute this model"
    raise UnsupportedError(asked, refusals)


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


def _cpu(threads: int | None, isa: str | None, tile_directory: Path | None) -> Backend:
    native_kernels()
    from linnet.backends.cpu.backend import CpuBackend
    from linnet.backends.cpu.tile_cache import TileCache

    return CpuBackend(threads, isa, None if tile_directory is None else TileCache(tile_directory))


def _reference(threads: int | None, isa: str | None, tile_directory: Path | None) -> Backend:
    if isa is not None:
        raise UnsupportedError(f"isa is {isa!r}, which only the cpu backend has", settings=["isa"])
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"PyTorch is not installed: {install_command('compress')}") from error
    if threads is not None:
        torch.set_num_threads(threads)
    from linnet.backends.reference.backend import ReferenceBackend

    return ReferenceBackend()


_BACKENDS: dict[str, Callable[[int | None, str | None, Path | None], Backend]] = {"cpu": _cpu, "reference": _reference}
