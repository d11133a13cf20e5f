# SPDX-License-Identifier: Apache-2.0
"""Runs a prepared model: batches, KV storage, sampling, the step loop and its typed messages. Token ids only."""

from linnet.engine.engine import Engine, limits_of, vocabulary_of
from linnet.engine.facts import EngineFacts, LengthError
from linnet.engine.matcher import CompileGrammar, Grammar, Matcher, mask_words
from linnet.engine.messages import (
    Abort,
    Control,
    EngineEvent,
    EngineMessage,
    EngineUnavailableError,
    ErrorInfo,
    Finished,
    PromptScores,
    Submit,
    error_info,
)
from linnet.engine.participant import Participant
from linnet.engine.sampling_params import ParameterError, SamplingParams, derive_seed
from linnet.engine.thread import Deliver, EngineThread
from linnet.scheduler import TokenLogprob, Tokens

__all__ = [
    "Abort",
    "CompileGrammar",
    "Control",
    "Deliver",
    "Engine",
    "EngineEvent",
    "EngineFacts",
    "EngineMessage",
    "EngineThread",
    "EngineUnavailableError",
    "ErrorInfo",
    "Finished",
    "Grammar",
    "LengthError",
    "Matcher",
    "ParameterError",
    "Participant",
    "PromptScores",
    "SamplingParams",
    "Submit",
    "TokenLogprob",
    "Tokens",
    "derive_seed",
    "error_info",
    "limits_of",
    "mask_words",
    "vocabulary_of",
]
