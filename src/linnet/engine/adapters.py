# SPDX-License-Identifier: Apache-2.0
"""The adapters of one engine: which are loaded, in which places of the executable, and who uses them.

Whoever sends messages chooses an adapter's number, once and never again, and asks for no more than there is room for.
Reading one, fitting it and laying it out as the backend multiplies is done in a thread of its own, one adapter after
the other, while steps go on: the step's thread takes over what is ready (``settle``). One that is unloaded takes no new
requests and stays until the last that uses it has ended; a request that was aborted ends with the next step, so for
that long there may be one more.
"""

import logging
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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
    """One adapter. ``place``: its number in the executable; ``coming``: until the executable has it; ``users``:
    requests that are not finished."""

    place: int
    digest: bytes
    coming: "Future[object] | None"
    users: int = 0
    leaving: bool = False


@dataclass
class EngineAdapters:
    """See the module. ``forgotten`` is told the digest of one that is gone, unless another one has it too."""

    executable: Executable
    facts: AdapterFacts | None
    forgotten: Callable[[bytes], None] = lambda digest: None
    _loaded: dict[int, _Loaded] = field(default_factory=dict)
    _loader: ThreadPoolExecutor | None = None

    def load(self, message: LoadAdapter) -> None:
        """Begin to read it. Never raises: who sent it has read it too, so only files that have changed since can fail.
        The log says how, and requests for it that it is not there."""
        if self.facts is None:
            logger.warning("an adapter could not be loaded: this engine was opened without adapters (max_adapters)")
            return
        taken = {one.place for one in self._loaded.values()}
        place = min(set(range(len(taken) + 1)) - taken)
        try:
            self._loader = self._loader or ThreadPoolExecutor(1, "linnet-adapters")
            coming = self._loader.submit(_prepared, message, self.facts, self.executable)
        except RuntimeError as error:  # no thread can be started
            logger.warning("an adapter could not be loaded: %s", error)
            return
        self._loaded[message.adapter] = _Loaded(place, message.digest, coming)

    def is_coming(self, number: int | None) -> bool:
        """Whether requests for it have to wait."""
        return number is not None and number in self._loaded and self._loaded[number].coming is not None

    def wait(self, timeout_s: float) -> None:
        """Until one that is coming is ready, but not for longer."""
        wait([one.coming for one in self._loaded.values() if one.coming is not None], timeout_s, FIRST_COMPLETED)

    def settle(self) -> None:
        """Give the executable what is ready: from the step's thread, between two steps."""
        for number, one in list(self._loaded.items()):
            if one.coming is not None and one.coming.done():
                self._take_over(number, one, one.coming)
        if self._loader is not None and all(one.coming is None for one in self._loaded.values()):
            self.close()

    def close(self) -> None:
        """Read no more. Idempotent."""
        if self._loader is not None:
            self._loader.shutdown(wait=False, cancel_futures=True)
        self._loader = None

    def _take_over(self, number: int, one: _Loaded, coming: "Future[object]") -> None:
        try:
            self.executable.set_adapter(one.place, coming.result())
            one.coming = None
        except Exception as error:  # whatever it is, it is the end of that adapter alone
            self.executable.set_adapter(one.place, None)
            del self._loaded[number]
            said = error if isinstance(error, LinnetError) else type(error).__name__
            logger.warning("an adapter could not be loaded: %s", said)

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

    def hold(self, number: int | None, waited: bool = False) -> tuple[int | None, bytes]:
        """Another request uses it: its place and digest. ``waited``: it came before the adapter was to leave. Raises
        UnknownAdapterError."""
        if number is None:
            return None, b""
        one = self._loaded.get(number)
        if one is None or (one.leaving and not waited):
            raise UnknownAdapterError("the adapter that the request names is not loaded", settings=["adapter"])
        one.users += 1
        return one.place, one.digest

    def let_go(self, number: int | None) -> None:
        """A request that held it has ended, maybe because it could not be loaded."""
        one = None if number is None else self._loaded.get(number)
        if number is not None and one is not None:
            one.users -= 1
            self._forget_unused(number, one)

    def _forget_unused(self, number: int, one: _Loaded) -> None:
        if not one.leaving or one.users:
            return
        if one.coming is None:
            self.executable.set_adapter(one.place, None)
        del self._loaded[number]
        if all(other.digest != one.digest for other in self._loaded.values()):
            self.forgotten(one.digest)


def _prepared(message: LoadAdapter, facts: AdapterFacts, executable: Executable) -> object:
    """All the work of a load; in the loader's thread. Raises LinnetError."""
    adapter = open_adapter(Path(message.path), facts)
    if adapter.digest != message.digest:
        raise CheckpointError(f"{message.path}: the adapter has changed since it was first read")
    try:
        return executable.prepare_adapter(adapter.terms)
    except MemoryError as error:
        raise CheckpointError(f"{message.path}: {machine_sentence(error)}") from None
