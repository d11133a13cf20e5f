# SPDX-License-Identifier: Apache-2.0
"""What processes take of memory: as predicted, in parts, and as the system says. Standard library only.

Pages of mapped files count as the process's, as the system counts them: it may take them back, at the price of reading
them again with every step.
"""

import resource
from dataclasses import dataclass
from pathlib import Path

_UNKNOWN = 0


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a served model takes at the most: every block of the KV cache written, the largest step made.

    weight_bytes:  of the weights, most of them pages of mapped files.
    step_bytes:    values of the largest step, logits of scored prompt rows among them.
    kv_bytes:      the whole KV cache; it is touched only as it fills.
    engine_bytes:  the interpreter, its libraries and the model as Python sees it, where the engine runs.
    swap_bytes:    of the store behind the KV cache, in memory or pages of a mapped file; touched as it fills.
    server_bytes:  of a process of its own around the engine, or of the tokenizer where there is one process.
    """

    weight_bytes: int
    step_bytes: int
    kv_bytes: int
    engine_bytes: int
    server_bytes: int = 0
    swap_bytes: int = 0

    @property
    def beside_kv_bytes(self) -> int:
        """All but the KV cache and what lies behind it."""
        return self.weight_bytes + self.step_bytes + self.engine_bytes + self.server_bytes

    @property
    def total_bytes(self) -> int:
        """What the system will show as resident, of all processes together."""
        return self.beside_kv_bytes + self.kv_bytes + self.swap_bytes

    def parts(self) -> dict[str, int]:
        """Name -> bytes, the total last."""
        return {
            "weight_bytes": self.weight_bytes,
            "step_bytes": self.step_bytes,
            "kv_bytes": self.kv_bytes,
            "swap_bytes": self.swap_bytes,
            "engine_bytes": self.engine_bytes,
            "server_bytes": self.server_bytes,
            "total_bytes": self.total_bytes,
        }


def resident_bytes(process_id: int | None = None) -> int:
    """What a process (None: this one) has in memory now, pages of mapped files too; 0 where nobody says."""
    try:
        fields = Path(f"/proc/{process_id or 'self'}/statm").read_text().split()
    except OSError:
        return _UNKNOWN
    return int(fields[1]) * resource.getpagesize()


def peak_bytes(process_id: int | None = None) -> int:
    """The most that a process (None: this one) has had in memory since its program began; 0 where nobody says.

    Not getrusage's: that survives exec, so a child starts with what its parent had.
    """
    try:
        lines = Path(f"/proc/{process_id or 'self'}/status").read_text().splitlines()
    except OSError:
        return _UNKNOWN
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), _UNKNOWN)
