# SPDX-License-Identifier: Apache-2.0
"""The adapters of one engine: which are loaded, in which places of the executable, and who uses them.

Whoever sends messages chooses an adapter's number, once and never again, and asks for no more than there is room for.
One that is unloaded takes no new requests and stays until the last that uses it has ended; a request that was aborted
ends with the next step, so for that long there may be one more.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from linnet.backends.interface import Executable
from linnet.engine.adapter_terms import Adapter, fit_adapter
from linnet.engine.messages import LoadAdapter
from linnet.errors import CapacityError, CheckpointError, ConfigError, LinnetError, machine_sentence
from linnet.formats.peft import peft_rank, read_peft, read_peft_config
from linnet.program.adapters import AdapterSite, adapter_bytes

logger = logging.getLogger(__name__)


class UnknownAdapterError(ConfigError):
    """A request names an adapter that is not there, or not any more."""

    code = "model_not_found"
    http_status = 404


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """Bounds of an engine's adapters: how many, of what rank at most, and where they may add something."""

    most: int
    rank: int
    sites: tuple[AdapterSite, ...]


def open_adapter(path: Path, facts: AdapterFacts) -> Adapter:
    """Read an adapter and fit it to the model. Raises CheckpointError, UnsupportedError, CapacityError: its rank."""
    try:
        rank = peft_rank(read_peft_config(path))
        if rank > facts.rank:
            raise CapacityError(
                f"{path}: the adapter has rank {rank}; this engine has room for ranks up to {facts.rank} "
                "(max_adapter_rank)",
                settings=["max_adapter_rank"],
            )
        return fit_adapter(read_peft(path, adapter_bytes(facts.sites, rank)), facts.sites)
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: {machine_sentence(error)}") from None


@dataclass(slots=True)
class _Loaded:
    """One adapter. ``place``: its number in the executable; ``users``: requests that are not finished."""

    place: int
    digest: bytes
    users: int = 0
    leaving: bool = False


@dataclass
class EngineAdapters:
    """See the module."""

    executable: Executable
    facts: AdapterFacts | None
    _loaded: dict[int, _Loaded] = field(default_factory=dict)

    def load(self, message: LoadAdapter) -> None:
        """Read it and give it to the executable. Never raises: who sent it has read it too, so only files that have
        changed since can fail. The log says how, and requests for it that it is not there."""
        try:
            self._load(message)
        except LinnetError as error:
            logger.warning("an adapter could not be loaded: %s", error)

    def _load(self, message: LoadAdapter) -> None:
        if self.facts is None:
            raise ConfigError("this engine was opened without adapters (max_adapters)", settings=["max_adapters"])
        adapter = open_adapter(Path(message.path), self.facts)
        if adapter.digest != message.digest:
            raise CheckpointError(f"{message.path}: the adapter has changed since it was first read")
        taken = {one.place for one in self._loaded.values()}
        place = min(set(range(len(taken) + 1)) - taken)
        try:
            self.executable.set_adapter(place, adapter.terms)
        except MemoryError as error:
            self.executable.set_adapter(place, None)
            raise CheckpointError(f"{message.path}: {machine_sentence(error)}") from None
        self._loaded[message.adapter] = _Loaded(place, adapter.digest)

    def unload(self, number: int) -> None:
        """No new request finds it; its memory is free when the last one that uses it has ended."""
        one = self._loaded.get(number)
        if one is not None:
            one.leaving = True
            self._forget_unused(number, one)

    @property
    def in_use(self) -> tuple[int, ...]:
        """Numbers of those that unfinished requests have."""
        return tuple(number for number, one in self._loaded.items() if one.users)

    def digest(self, number: int | None) -> bytes | None:
        """What keys and values depend on besides the model; b"": nothing; None: the adapter is not there any more."""
        if number is None:
            return b""
        one = self._loaded.get(number)
        return None if one is None else one.digest

    def hold(self, number: int | None) -> tuple[int | None, bytes]:
        """Another request uses it: its place and digest. Raises UnknownAdapterError."""
        if number is None:
            return None, b""
        one = self._loaded.get(number)
        if one is None or one.leaving:
            raise UnknownAdapterError("the adapter that the request names is not loaded", settings=["adapter"])
        one.users += 1
        return one.place, one.digest

    def let_go(self, number: int | None) -> None:
        """A request that held it has ended."""
        if number is not None:
            one = self._loaded[number]
            one.users -= 1
            self._forget_unused(number, one)

    def _forget_unused(self, number: int, one: _Loaded) -> None:
        if one.leaving and not one.users:
            self.executable.set_adapter(one.place, None)
            del self._loaded[number]
