# SPDX-License-Identifier: Apache-2.0
"""What clients may send: one frozen record per endpoint, unknown parameters refused by name."""

from linnet.serve.protocol.chat import ChatRequest, Message
from linnet.serve.protocol.common import GenerationRequest, R, read_request
from linnet.serve.protocol.completions import CompletionRequest
from linnet.serve.protocol.embeddings import EmbeddingRequest
from linnet.serve.protocol.tokens import DetokenizeRequest, TokenizeRequest

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "GenerationRequest",
    "Message",
    "R",
    "TokenizeRequest",
    "read_request",
]
