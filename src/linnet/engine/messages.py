# SPDX-License-Identifier: Apache-2.0
"""What travels to and from an engine: Submit, Abort, Keep, adapters and Control down, Tokens and Finished up.

Frozen plain values, so that a thread today and a process later speak the same. Every Submit is answered by any number
of Tokens and exactly one Finished, which is the last word about its request id.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from linnet.engine.sampling_params import SamplingParams
from linnet.errors import LinnetError
from linnet.scheduler import FinishReason, Tokens
from linnet.settings import POOLINGS as POOLINGS
from linnet.settings import Pooling as Pooling


class EngineUnavailableError(LinnetError):
    """The engine is draining, stopped or broken; nothing is wrong with the request."""

    code = "unavailable"
    exit_status = 5
    http_status = 503


class EngineLostError(EngineUnavailableError):
    """The engine ended with requests in it, of which any may be the reason: sent again they might end the next one."""

    code = "engine_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Ask for tokens.

    request_id:     unique among unfinished requests; chosen by the sender.
    params:         sampling; ``n``, ``stop`` and text options are the sender's business and ignored here.
    max_tokens:     resolved: new tokens at most (0 with prompt scores only).
    stop_token_ids: resolved: end-of-sequence ids included.
    seed:           resolved: 64 bits.
    timeout_s:      from arrival; in the queue and while decoding.
    tenant:         who asks, for policies that tell tenants apart.
    cache_salt:     prefix blocks are shared only under equal salts;
    shared_tokens:  but for those of so many first tokens, which everybody may share (a prompt module's).
    grammar:        what the answer must be, as llguidance reads it, checked by the sender; None: anything.
    compare:        score the prompt with the engine's second model too (lockstep).
    embed:          tell the prompt's embedding; nothing is generated and nothing scored.
    fork_of:        another request with the same prompt and salt, sent before: its keys and values may be copied.
    score_start:    the first prompt position whose token is scored, where scores are asked for.
    adapter:        number of the adapter that its rows go through (``LoadAdapter``); None: the model alone.
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    seed: int = 0
    timeout_s: float | None = None
    priority: int = 0
    tenant: bytes = b""
    cache_salt: bytes = b""
    grammar: str | None = None
    compare: bool = False
    score_start: int = 1
    fork_of: int | None = None
    shared_tokens: int = 0
    embed: Pooling | None = None
    adapter: int | None = None

    @property
    def gang(self) -> int | None:
        """The first of the beams of its search, which get tokens together; None without a search."""
        if not self.params.use_beam_search:
            return None
        return self.request_id if self.fork_of is None else self.fork_of


@dataclass(frozen=True, slots=True)
class Abort:
    """End a request now; unknown and finished ids are ignored."""

    request_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Keep keys and values of a sequence for the request that will go on from it; see ``Scheduler.keep``.

    Changes what is forgotten first, and no token: a request whose prefix was forgotten after all computes it again.

    owner:          a conversation or a prompt module; what it kept before is kept no longer.
    token_ids:      the sequence; none: nothing is kept any more. cache_salt, shared_tokens: as in its Submit.
    lasting:        a module, which gives way to modules only. adapter: as in its Submit.
    """

    owner: bytes
    token_ids: tuple[int, ...] = ()
    cache_salt: bytes = b""
    shared_tokens: int = 0
    lasting: bool = False
    adapter: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadAdapter:
    """Make an adapter known. What it cannot be loaded for is told to the requests that name it.

    adapter:        its number, which no other adapter of this engine has or had.
    path:           the directory. digest: of what the sender read there.
    """

    adapter: int
    path: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Forget an adapter; requests that use it are finished with it."""

    adapter: int


@dataclass(frozen=True, slots=True)
class Control:
    """drain: refuse new requests, finish the others. abort_all: end every request. forget_prefixes: empty the cache."""

    action: Literal["drain", "abort_all", "forget_prefixes"]


EngineMessage = Submit | Abort | Keep | LoadAdapter | UnloadAdapter | Control


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Entry i is about prompt token score_start + i given the tokens before it: arrays of prompt - score_start rows.

    ``kl`` (nats, KL(second || first)), ``other_logprobs`` and ``other_greedy`` are set when a second model ran along.
    """

    logprobs: np.ndarray  # float32
    greedy: np.ndarray  # int32
    ranks: np.ndarray  # int32
    top_ids: np.ndarray | None = None  # int32 [rows, k]
    top_logprobs: np.ndarray | None = None  # float32 [rows, k]
    kl: np.ndarray | None = None  # float32
    other_logprobs: np.ndarray | None = None  # float32
    other_greedy: np.ndarray | None = None  # int32


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """A LinnetError as data."""

    code: str
    message: str
    http_status: int = 500
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a request. Its tokens have been delivered before, all of them.

    embedding: float32 [hidden size], where it was asked for; not normalised.
    queued_s: from its arrival to the first step with it; None when it was never in one.
    """

    request_id: int
    reason: FinishReason
    cached_tokens: int = 0
    prompt_scores: PromptScores | None = None
    error: ErrorInfo | None = None
    queued_s: float | None = None
    embedding: np.ndarray | None = None


EngineEvent = Tokens | Finished


def error_info(error: BaseException) -> ErrorInfo:
    """Any exception as data; what is not a LinnetError is our defect and shows its type only."""
    if isinstance(error, LinnetError):
        return ErrorInfo(error.code, str(error), error.http_status, getattr(error, "param", None))
    return ErrorInfo("internal_error", f"the engine failed ({type(error).__name__})", 500)
