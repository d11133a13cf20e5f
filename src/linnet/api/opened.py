# SPDX-License-Identifier: Apache-2.0
"""What is known of a model that is open, in this process or in another: said once, for ``LLM`` and ``ServedModel``."""

from linnet.api.requests import RequestBuilder
from linnet.engine import EngineFacts
from linnet.process_memory import Footprint
from linnet.text import Tokenizer


class KnownModel:
    """Who has a request builder can say this."""

    requests: RequestBuilder
    """Makes messages for the engine of prompts and parameters."""

    @property
    def facts(self) -> EngineFacts:
        """What is known of its engine: limits, vocabulary, which requests it takes."""
        return self.requests.facts

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.requests.tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Width of the logits (the tokenizer may know fewer ids)."""
        return self.facts.vocabulary_size

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus new tokens."""
        return self.facts.max_model_len


class OpenedModel(KnownModel):
    """Who has a request builder and a footprint can say this."""

    footprint: Footprint
    """What it will take of memory at the most."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache."""
        return self.footprint.kv_bytes
