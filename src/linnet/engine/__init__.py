# SPDX-License-Identifier: Apache-2.0
"""Runs a prepared model: batches, KV storage, sampling, the step loop and its typed messages. Token ids only."""

from linnet.engine.adapters import AdapterFacts, UnknownAdapterError, open_adapter
from linnet.engine.block_store import StorePlace
from linnet.engine.child import EngineServer
from linnet.engine.door import Deliver, EngineDoor
from linnet.engine.engine import Engine, limits_of
from linnet.engine.engine_child import EngineChild
from linnet.engine.facts import EngineFacts, LengthError
from linnet.engine.grammar_checker import GrammarChecker
from linnet.engine.grammars import CompiledGrammars
from linnet.engine.matcher import GRAMMAR, GrammarError, Grammars, Matcher, mask_words
from linnet.engine.messages import (
    Abort,
    Control,
    EngineEvent,
    EngineLostError,
    EngineMessage,
    EngineUnavailableError,
    ErrorInfo,
    Finished,
    Keep,
    LoadAdapter,
    Pooling,
    PromptScores,
    Submit,
    UnloadAdapter,
    error_info,
)
from linnet.engine.participant import Participant
from linnet.engine.process import EngineProcess
from linnet.engine.refusals import refused_frame
from linnet.engine.sampling_params import ParameterError, SamplingParams, derive_seed
from linnet.engine.thread import EngineThread
from linnet.engine.vocabulary import Vocabulary
from linnet.engine.wire import Channel, FrameError, ReadyFrame, RefusedFrame
from linnet.scheduler import TokenLogprob, Tokens

__all__ = [
    "GRAMMAR",
    "Abort",
    "AdapterFacts",
    "Channel",
    "CompiledGrammars",
    "Control",
    "Deliver",
    "Engine",
    "EngineChild",
    "EngineDoor",
    "EngineEvent",
    "EngineFacts",
    "EngineLostError",
    "EngineMessage",
    "EngineProcess",
    "EngineServer",
    "EngineThread",
    "EngineUnavailableError",
    "ErrorInfo",
    "Finished",
    "FrameError",
    "GrammarChecker",
    "GrammarError",
    "Grammars",
    "Keep",
    "LengthError",
    "LoadAdapter",
    "Matcher",
    "ParameterError",
    "Participant",
    "Pooling",
    "PromptScores",
    "ReadyFrame",
    "RefusedFrame",
    "SamplingParams",
    "StorePlace",
    "Submit",
    "TokenLogprob",
    "Tokens",
    "UnknownAdapterError",
    "UnloadAdapter",
    "Vocabulary",
    "derive_seed",
    "error_info",
    "limits_of",
    "mask_words",
    "open_adapter",
    "refused_frame",
]
