# SPDX-License-Identifier: Apache-2.0
"""What each backend is told: one frozen record per backend, made of what was asked for. ``select`` builds a backend
from its record."""

from dataclasses import dataclass
from pathlib import Path

from linnet.errors import UnsupportedError, unknown_choice
from linnet.settings import BackendSettings


@dataclass(frozen=True)
class CpuSettings:
    """The native kernels. None: what the machine suggests."""

    threads: int | None = None
    """Size of the pool; None: one per physical core that this process may use."""
    isa: str | None = None
    """Instruction-set tier (portable, neon_i8mm, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16); None: the best."""
    tile_directory: Path | None = None
    """Where weights may be kept once more in the order that the kernels read them; None: nowhere."""
    large_pages: bool = False
    """Whether stored weights that lie in small pages of memory are read from disk anew, in large ones."""


@dataclass(frozen=True)
class ReferenceSettings:
    """torch, op by op."""

    threads: int | None = None
    """torch's own; None: as torch chooses."""


OwnSettings = CpuSettings | ReferenceSettings
NAMES: dict[type[OwnSettings], str] = {CpuSettings: "cpu", ReferenceSettings: "reference"}
"""In the order in which ``auto`` tries them."""


def candidates(wanted: BackendSettings, tile_directory: Path | None = None) -> tuple[OwnSettings, ...]:
    """The records of the backends that were asked for, in order of preference; ``tile_directory``: for their tiles.

    Raises ConfigError for an unknown name, UnsupportedError for an ``isa`` where only the reference is asked for.
    """
    name, threads, isa = wanted.name, wanted.threads, wanted.isa
    cpu = CpuSettings(threads, isa, tile_directory, wanted.large_pages)
    if name == "cpu" or (name == "auto" and isa is not None):  # only the cpu backend has tiers
        return (cpu,)
    if name == "auto":
        return (cpu, ReferenceSettings(threads))
    if name != "reference":
        raise unknown_choice("backend", name, ("auto", *NAMES.values()))
    if isa is not None:
        raise UnsupportedError(f"isa is {isa!r}, which only the cpu backend has", settings=["isa"])
    return (ReferenceSettings(threads),)
