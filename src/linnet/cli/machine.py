# SPDX-License-Identifier: Apache-2.0
"""Facts of this machine and of what is installed, as plain values for ``linnet env`` and reports."""

import os
import platform
from importlib import metadata
from pathlib import Path

import linnet

PACKAGES = ("numpy", "tokenizers", "huggingface-hub", "torch", "transformers", "compressed-tensors")


def machine() -> dict[str, object]:
    """Versions, processor, kernel tier, cores and memory. Needs no torch and opens no device."""
    from linnet.backends.cpu import _native

    facts: dict[str, object] = {
        "linnet": linnet.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel_tiers": list(_native.available_isas()),
        "kernel_build": _native.build_id,
        "kernel_threads": _native.default_threads(),
    }
    for name in PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
