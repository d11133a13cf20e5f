# SPDX-License-Identifier: Apache-2.0
"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as in vLLM."""

from pydantic import Field

from linnet.serve.protocol.common import Integer
from linnet.serve.protocol.record import Record


class LoadAdapterRequest(Record):
    """``lora_name``: the model name of requests that go through it. ``lora_path``: in the server's folder of
    adapters."""

    lora_name: str = Field(min_length=1, max_length=256)
    lora_path: str = Field(min_length=1, max_length=4096)


class UnloadAdapterRequest(Record):
    """``lora_int_id``: accepted; the name says which."""

    lora_name: str = Field(min_length=1, max_length=256)
    lora_int_id: Integer | None = None
