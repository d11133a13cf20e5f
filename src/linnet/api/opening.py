# SPDX-License-Identifier: Apache-2.0
"""Which model to open and how, as a record that can be sent to another process."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from linnet.api.adapters import with_room
from linnet.backends.interface import KVCache, Policy
from linnet.settings import BackendSettings, EngineSettings


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The arguments of ``LLM`` that an engine needs; see there."""

    path: Path
    policy: Policy = "fast"
    kv_cache: KVCache = "auto"
    quantize: str | None = None
    backend: BackendSettings = field(default_factory=BackendSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)

    def with_room(self, adapters: Iterable[Path], more: int = 0) -> "Opening":
        """The same with room for these adapters, and for so many more; see ``api.adapters.with_room``."""
        return replace(self, engine=with_room(self.engine, adapters, more))

    def plain(self) -> dict[str, Any]:
        """Of plain values only; ``of_plain`` makes the same record of it."""
        tiles, swap = self.backend.tile_cache, self.engine.kv_swap_dir
        backend = asdict(self.backend) | {"tile_cache": tiles if isinstance(tiles, bool) else str(tiles)}
        return {
            "path": str(self.path),
            "policy": self.policy,
            "kv_cache": self.kv_cache,
            "quantize": self.quantize,
            "backend": backend,
            "engine": asdict(self.engine) | {"kv_swap_dir": None if swap is None else str(swap)},
        }

    @staticmethod
    def of_plain(values: dict[str, Any]) -> "Opening":
        """Raises TypeError or KeyError for values of another form."""
        tiles = values["backend"]["tile_cache"]
        backend = values["backend"] | {"tile_cache": tiles if isinstance(tiles, bool) else Path(tiles)}
        swap = values["engine"]["kv_swap_dir"]
        engine = values["engine"] | {"kv_swap_dir": None if swap is None else Path(swap)}
        return Opening(
            path=Path(values["path"]),
            policy=values["policy"],
            kv_cache=values["kv_cache"],
            quantize=values["quantize"],
            backend=BackendSettings(**backend),
            engine=EngineSettings(**engine),
        )
