# SPDX-License-Identifier: Apache-2.0
"""Facts of this machine and of what is installed, as plain values for ``linnet env`` and reports."""

import os
import platform
from importlib import metadata

import linnet
from linnet.errors import LinnetError

PACKAGES = ("numpy", "tokenizers", "huggingface-hub", "torch", "transformers", "compressed-tensors")


def machine() -> dict[str, object]:
    """Versions, processor, kernel tier, cores and memory. Needs no torch and opens no device."""
    from linnet.api.describe import processor

    facts: dict[str, object] = {
        "linnet": linnet.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        **_kernels(),
    }
    for name in PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def _kernels() -> dict[str, object]:
    """What the native extension says of itself; without a working one, why there is none."""
    from linnet.backends.select import native_kernels

    try:
        native = native_kernels()
    except (ImportError, LinnetError) as error:
        return {"kernel_tiers": [], "kernel_build": f"none: {error}", "kernel_threads": 0}
    return {
        "kernel_tiers": list(native.available_isas()),
        "kernel_build": native.build_id,
        "kernel_threads": native.default_threads(),
    }
