# SPDX-License-Identifier: Apache-2.0
"""``LLM``: text in, text out. What the server, the evaluations and the command line stand on."""

from linnet.api.generation import Dispatcher, Sample
from linnet.api.llm import LLM, stop_ids
from linnet.api.output import Completion, Piece, RequestOutput, SampleStream
from linnet.api.own_text import own_text
from linnet.api.prompts import PreparedPrompt, prepare_prompt, prepare_prompts
from linnet.api.sampling_defaults import CHAT_MAX_TOKENS, SamplingDefaults, new_tokens, read_sampling_defaults
from linnet.api.scoring import Comparison
from linnet.api.stop import StopFinder
from linnet.engine import ParameterError, PromptScores, SamplingParams, TokenLogprob

__all__ = [
    "CHAT_MAX_TOKENS",
    "LLM",
    "Comparison",
    "Completion",
    "Dispatcher",
    "ParameterError",
    "Piece",
    "PreparedPrompt",
    "PromptScores",
    "RequestOutput",
    "Sample",
    "SampleStream",
    "SamplingDefaults",
    "SamplingParams",
    "StopFinder",
    "TokenLogprob",
    "new_tokens",
    "own_text",
    "prepare_prompt",
    "prepare_prompts",
    "read_sampling_defaults",
    "stop_ids",
]
