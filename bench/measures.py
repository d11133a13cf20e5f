# SPDX-License-Identifier: Apache-2.0
"""The questions every engine is asked, in one place: bench/engine.py and bench/peers/run.py ask the same."""

from collections.abc import Callable
from dataclasses import dataclass

from process import EngineProcess

PREFILL_TOKENS, DECODE_TOKENS, DECODE_PROMPT = 512, 128, 32
EACH_TOKENS = 64
"""New tokens of each concurrent sequence; the reading of its prompt of DECODE_PROMPT tokens is in the time."""

Values = dict[str, float]


def prefill(engine: EngineProcess) -> Values:
    """Tokens per second of one prompt."""
    return {"prefill_tokens_per_s": PREFILL_TOKENS / engine.generate(PREFILL_TOKENS, 1)["first_s"]}


def decode(engine: EngineProcess, tokens: int = DECODE_TOKENS) -> Values:
    """Tokens per second of one sequence, from its first token to its last."""
    found = engine.generate(DECODE_PROMPT, tokens + 1)
    return {"decode_tokens_per_s": tokens / (found["total_s"] - found["first_s"])}


def concurrent(sequences: int) -> Callable[[EngineProcess], Values]:
    """Tokens per second of all sequences together, prompts included in the time."""

    def measure(engine: EngineProcess) -> Values:
        found = engine.generate(DECODE_PROMPT, EACH_TOKENS, sequences)
        return {f"concurrent{sequences}_tokens_per_s": sequences * EACH_TOKENS / found["total_s"]}

    return measure


def prompt(tokens: int, name: str) -> Callable[[EngineProcess], Values]:
    """Seconds until the first token of a long prompt."""
    return lambda engine: {name: engine.generate(tokens, 1)["first_s"]}


def memory(engine: EngineProcess) -> Values:
    """Peak resident bytes of a fresh process that reads a prompt of 512 tokens and decodes one sequence."""
    engine.generate(PREFILL_TOKENS, 1)
    return {"peak_rss_bytes": engine.generate(DECODE_PROMPT, 33)["peak_rss_bytes"]}


@dataclass(frozen=True)
class Measure:
    """``settings``: what the engine must be opened with. ``warm``: (prompt, new, sequences) asked once before."""

    run: Callable[[EngineProcess], Values]
    warm: tuple[int, int, int]
    context_tokens: int = 1024
    max_sequences: int = 16


MEASURES = {
    "prefill": Measure(prefill, (PREFILL_TOKENS, 1, 1)),
    "decode": Measure(decode, (DECODE_PROMPT, 4, 1)),
    "concurrent8": Measure(concurrent(8), (DECODE_PROMPT, 4, 8)),
    "concurrent16": Measure(concurrent(16), (DECODE_PROMPT, 4, 16)),
    "prompt2k": Measure(prompt(2048, "prompt2k_s"), (2048, 1, 1), 8704, 1),
    "prompt8k": Measure(prompt(8192, "prompt8k_s"), (2048, 1, 1), 8704, 1),
}
"""Asked of an engine that is open. ``start`` and ``memory`` need a fresh process each; see peers/run.py."""
