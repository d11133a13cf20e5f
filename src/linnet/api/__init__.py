# SPDX-License-Identifier: Apache-2.0
"""``LLM``: text in, text out. What the server, the evaluations and the command line stand on."""

from typing import TYPE_CHECKING, Any

from linnet.api.embedding import embedding_of
from linnet.api.generation import Dispatcher, Sample
from linnet.api.moderation import Moderate, ModerationError, Verdict, failure
from linnet.api.opening import Opening
from linnet.api.output import Completion, Piece, RequestOutput, SampleStream
from linnet.api.prompts import PreparedPrompt, prepare_prompt, prepare_prompts
from linnet.api.requests import RequestBuilder, Terms
from linnet.api.sampling_defaults import CHAT_MAX_TOKENS, SamplingDefaults, new_tokens, read_sampling_defaults
from linnet.api.scoring import Comparison
from linnet.api.served import ServedModel, begin_opening, open_in_process
from linnet.api.stop import StopFinder
from linnet.api.structured import StructuredOutput
from linnet.engine import (
    GRAMMAR,
    GrammarChecker,
    GrammarError,
    LengthError,
    ParameterError,
    PromptScores,
    SamplingParams,
    TokenLogprob,
)
from linnet.settings import ENGINE_MODULE, BackendSettings, EngineSettings

if TYPE_CHECKING:
    from linnet.api.llm import LLM
    from linnet.api.own_text import own_text

__all__ = [
    "CHAT_MAX_TOKENS",
    "ENGINE_MODULE",
    "GRAMMAR",
    "LLM",
    "BackendSettings",
    "Comparison",
    "Completion",
    "Dispatcher",
    "EngineSettings",
    "GrammarChecker",
    "GrammarError",
    "LengthError",
    "Moderate",
    "ModerationError",
    "Opening",
    "ParameterError",
    "Piece",
    "PreparedPrompt",
    "PromptScores",
    "RequestBuilder",
    "RequestOutput",
    "Sample",
    "SampleStream",
    "SamplingDefaults",
    "SamplingParams",
    "ServedModel",
    "StopFinder",
    "StructuredOutput",
    "Terms",
    "TokenLogprob",
    "Verdict",
    "begin_opening",
    "embedding_of",
    "failure",
    "new_tokens",
    "open_in_process",
    "own_text",
    "prepare_prompt",
    "prepare_prompts",
    "read_sampling_defaults",
]


def __getattr__(name: str) -> Any:
    """``LLM`` brings models and backends with it, which a server whose engine is a process of its own never needs."""
    if name not in ("LLM", "own_text"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from linnet.api.llm import LLM
    from linnet.api.own_text import own_text

    globals().update(LLM=LLM, own_text=own_text)  # the function, not the module of that name
    return globals()[name]
