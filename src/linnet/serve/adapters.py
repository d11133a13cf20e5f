# SPDX-License-Identifier: Apache-2.0
"""Adapters of a server: those it starts with, and two routes that load and unload them while it runs.

The routes are there only where the operator names a folder, and needs keys for it: who loads chooses among what lies
there and learns of no other file, and nobody without a key changes what is served.
"""

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from linnet.api import ServedModel
from linnet.api.adapters import AdapterLimitError, Adapters
from linnet.engine import EngineUnavailableError
from linnet.errors import ConfigError, LinnetError
from linnet.formats.peft import CONFIG_FILE
from linnet.serve.answers import JsonAnswer
from linnet.serve.body import parse_object
from linnet.serve.bridge import Bridge
from linnet.serve.errors import adapters_full, invalid, model_not_found, queue_full, unavailable
from linnet.serve.generation import Generation
from linnet.serve.preparing import ModelFacts
from linnet.serve.protocol import read_request
from linnet.serve.protocol.adapters import LoadAdapterRequest, UnloadAdapterRequest
from linnet.settings import ServeConfig

Card = Callable[[ModelFacts, str], dict[str, Any]]
"""What a list of models says of one."""


def adapters_of(model: ServedModel, bridge: Bridge, config: ServeConfig) -> Adapters:
    """Those that the server starts with; its engine loads them first of all. Raises as ``Adapters.load`` does."""
    adapters = Adapters(model.facts.adapters, bridge.door.send, lambda: bridge.adapters_in_use, config.names)
    for name, path in config.adapters:
        adapters.load(name, path)
    return adapters


class AdapterRoutes:
    """See the module."""

    def __init__(self, generation: Generation, facts: ModelFacts, folder: Path, keys: Collection[str]) -> None:
        """``folder``: of what may be loaded. Raises ConfigError without keys."""
        if not keys:
            raise ConfigError(
                f"--adapters-from {folder} lets clients change what is served and there is no API key; give "
                "--api-key-file or LINNET_API_KEY",
                settings=["adapters_from", "keys"],
            )
        self._generation, self._facts, self._folder = generation, facts, folder
        self._changing = asyncio.Lock()

    def add_to(self, app: FastAPI, card: Card) -> None:
        """Add the routes; loading answers with the adapter's card."""

        @app.post("/v1/load_lora_adapter")
        async def load(request: Request) -> Response:
            wanted = await self._read(request, LoadAdapterRequest)
            await self._alone(self._load, wanted)
            return JsonAnswer(card(self._facts, wanted.lora_name))

        @app.post("/v1/unload_lora_adapter")
        async def unload(request: Request) -> Response:
            wanted = await self._read(request, UnloadAdapterRequest)
            await self._alone(self._unload, wanted.lora_name)
            return JsonAnswer({"id": wanted.lora_name, "object": "model", "deleted": True})

    async def _read(self, request: Request, kind: Any) -> Any:
        return await self._generation.with_body(request, lambda body: read_request(kind, parse_object(body)))

    async def _alone(self, work: Callable[[Any], None], wanted: Any) -> None:
        """In a worker thread; changes never take more than one. Raises ApiError: 429 while there is another."""
        if self._changing.locked():
            raise queue_full("another adapter is being loaded", 1)
        async with self._changing:
            await asyncio.to_thread(work, wanted)

    def _load(self, wanted: LoadAdapterRequest) -> None:
        path = self._path(wanted.lora_path)
        try:
            self._facts.adapters.load(wanted.lora_name, path)
        except EngineUnavailableError as error:
            raise unavailable(str(error)) from None
        except AdapterLimitError as error:
            raise adapters_full(error) from None
        except LinnetError as error:
            param = "lora_name" if "adapter_name" in error.settings else "lora_path"
            raise invalid(str(error).replace(str(path), wanted.lora_path), param, error.code) from None

    def _path(self, asked: str) -> Path:
        """Below the operator's folder; what is elsewhere and what is not there are one answer. What does not begin with
        the folder, or leads upwards, is not looked at: whether it led back would tell what there is elsewhere."""
        root, wanted = self._folder.resolve(), Path(asked)
        try:
            below = wanted.relative_to(self._folder.absolute()) if wanted.is_absolute() else wanted
            path = (root / below).resolve()
            if ".." not in below.parts and path.is_relative_to(root) and (path / CONFIG_FILE).is_file():
                return path
        except (OSError, ValueError, RuntimeError):  # a name that no file can have; a circle of links
            pass
        raise invalid(f"lora_path {asked[:80]!r} is no adapter in this server's folder of adapters", "lora_path")

    def _unload(self, name: str) -> None:
        adapters = self._facts.adapters
        if adapters.get(name) is None:
            raise model_not_found(name, adapters.names, "lora_name")
        try:
            adapters.unload(name)
        except EngineUnavailableError as error:
            raise unavailable(str(error)) from None
