# SPDX-License-Identifier: Apache-2.0
"""``LLM``: text in, text out. What the server, the evaluations and the command line stand on."""

from linnet.api.llm import LLM, Comparison, stop_ids
from linnet.api.output import Completion, Piece, RequestOutput, SampleStream
from linnet.api.stop import StopFinder
from linnet.engine import ParameterError, PromptScores, SamplingParams, TokenLogprob

__all__ = [
    "LLM",
    "Comparison",
    "Completion",
    "ParameterError",
    "Piece",
    "PromptScores",
    "RequestOutput",
    "SampleStream",
    "SamplingParams",
    "StopFinder",
    "TokenLogprob",
    "stop_ids",
]
