# SPDX-License-Identifier: Apache-2.0
"""A server whose model says what a test has it say, under a chat template of the test's choice."""

from typing import Any

import numpy as np
from serving import NAME, Running, SlowDigest, digest_model

from linnet.backends.interface import Batch
from linnet.text import ChatTemplates

MESSAGES: Any = [{"role": "user", "content": "x"}]


class Speaking(SlowDigest):
    """Says ``script`` after a prompt of ``prompt_tokens``, then ends."""

    script: tuple[int, ...] = ()
    prompt_tokens = 0

    def execute(self, batch: Batch, states: list[np.ndarray]) -> None:
        super().execute(batch, states)
        for output, row in enumerate(batch.output_rows):
            place = int(batch.positions[row]) + 1 - self.prompt_tokens
            if self.script and 0 <= place < len(self.script):
                self._logits[output, self.script[place]] += 1000.0


def speaking(template: str) -> Any:
    model = digest_model(max_model_len=2048, num_blocks=4096)
    model.tokenizer.templates = ChatTemplates({"default": template})
    model.executable.__class__ = Speaking
    return model


def say(running: Running, text: str, **request: Any) -> dict[str, Any]:
    """Have the model answer a chat request with the text; the arguments of the request."""
    given: dict[str, Any] = {"model": NAME, "messages": MESSAGES, **request}
    shown = {name: given[name] for name in ("messages", "tools") if name in given}
    asked = running.http.post("/tokenize", json={"model": NAME, **shown})
    model = running.llm
    model.executable.prompt_tokens = asked.json()["count"]
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    model.executable.script = (*ids, model.tokenizer.eos_token_ids[0])
    return {"max_tokens": len(ids) + 8, "temperature": 0, **given}
