# SPDX-License-Identifier: Apache-2.0
"""The adapters of an open model by name: read and checked here, then loaded by its engine, wherever that runs."""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from linnet.engine import AdapterFacts, EngineMessage, LoadAdapter, UnknownAdapterError, UnloadAdapter, open_adapter
from linnet.errors import CapacityError, ConfigError
from linnet.formats.peft import peft_rank, read_peft_config
from linnet.settings import EngineSettings

DEFAULT_RANK = 16
MOST_NAME_CHARACTERS = 256


@dataclass(frozen=True)
class NamedAdapter:
    """One that is loaded. ``number``: what requests call it. ``base``: what it says it was trained on."""

    name: str
    number: int
    rank: int
    base: str | None


def with_room(engine: EngineSettings, paths: Iterable[Path], more: int = 0) -> EngineSettings:
    """Settings with room for these adapters, and for so many more, where they do not say how much there is to be.
    Raises CheckpointError and UnsupportedError for what is no adapter."""
    ranks = [peft_rank(read_peft_config(path)) for path in paths]
    most, rank = engine.max_adapters, engine.max_adapter_rank
    return replace(
        engine,
        max_adapters=len(ranks) + more if most is None else most,
        max_adapter_rank=max([DEFAULT_RANK, *ranks]) if rank is None else rank,
    )


class AdapterLimitError(CapacityError):
    """As many adapters are loaded as there is room for. ``soon``: some of them are on their way out."""

    code = "adapter_limit"

    def __init__(self, loaded: int, leaving: int, most: int) -> None:
        self.soon = leaving > 0
        on_way = f", and {leaving} are still in use" if leaving else ""
        super().__init__(
            f"{loaded} adapters are loaded{on_way}; there is room for {most} (max_adapters)", settings=["max_adapters"]
        )


class Adapters:
    """See the module. May be used from several threads."""

    def __init__(
        self,
        facts: AdapterFacts | None,
        tell: Callable[[EngineMessage], None],
        in_use: Callable[[], Collection[int | None]],
        taken: Collection[str] = (),
    ) -> None:
        """``tell`` sends to the engine; ``in_use``: numbers that unfinished requests have. ``taken``: names of the
        model itself."""
        self._facts, self._tell, self._in_use, self._taken = facts, tell, in_use, taken
        self._named: Mapping[str, NamedAdapter] = {}
        self._leaving: set[int] = set()
        self._next = 0
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that are loaded."""
        return tuple(self._named)

    def get(self, name: str) -> NamedAdapter | None:
        """The adapter of that name."""
        return self._named.get(name)

    def number(self, name: str | None) -> int | None:
        """What requests call an adapter; None: the model alone. Raises UnknownAdapterError."""
        if name is None:
            return None
        found = self.get(name)
        if found is None:
            loaded = ", ".join(self.names) or "none"
            raise UnknownAdapterError(f"there is no adapter {name[:80]!r}; loaded: {loaded}", settings=["adapter"])
        return found.number

    def load(self, name: str, path: Path) -> NamedAdapter:
        """Load an adapter under a new name. Raises ConfigError, CheckpointError, UnsupportedError, CapacityError for
        too great a rank, and AdapterLimitError."""
        with self._lock:
            facts = self._facts
            if facts is None:
                raise ConfigError(
                    "this model was opened without room for adapters; give max_adapters", settings=["max_adapters"]
                )
            if not 1 <= len(name) <= MOST_NAME_CHARACTERS or not name.isprintable():
                raise ConfigError(
                    f"an adapter is called {name[:80]!r}; accepted are 1 to {MOST_NAME_CHARACTERS} printable letters",
                    settings=["adapter_name"],
                )
            if name in self._named or name in self._taken:
                raise ConfigError(
                    f"there is a model {name[:80]!r} already; give the adapter another name", settings=["adapter_name"]
                )
            self._leaving.intersection_update(self._in_use())
            if len(self._named) + len(self._leaving) >= facts.most:
                raise AdapterLimitError(len(self._named), len(self._leaving), facts.most)
            adapter = open_adapter(path, facts)
            made = NamedAdapter(name, self._next, adapter.rank, adapter.base)
            self._next += 1
            self._tell(LoadAdapter(adapter=made.number, path=str(path.resolve()), digest=adapter.digest))
            self._named = {**self._named, name: made}
            return made

    def unload(self, name: str) -> None:
        """Forget an adapter; requests that use it are finished with it. Raises UnknownAdapterError."""
        with self._lock:
            number = self.number(name)
            assert number is not None
            self._named = {other: one for other, one in self._named.items() if other != name}
            self._leaving.add(number)
            self._tell(UnloadAdapter(number))
