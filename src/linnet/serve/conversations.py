# SPDX-License-Identifier: Apache-2.0
"""Sessions and prompt modules of one server: what is stored, what the engine is told to keep, and what clients see."""

import logging
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from linnet.api import SamplingParams, ServedModel, Terms
from linnet.api.modules import PromptModules
from linnet.api.session_files import SessionFiles
from linnet.api.sessions import Form, Session, Sessions
from linnet.engine import EngineUnavailableError, Keep, Submit
from linnet.errors import ConfigError
from linnet.serve.admission import Admission
from linnet.serve.bridge import Bridge
from linnet.serve.errors import ApiError
from linnet.serve.preparing import Prepared
from linnet.settings import ServeConfig

logger = logging.getLogger(__name__)

FORMS: tuple[Form, ...] = ("messages", "text")
"""What a prompt with modules may be."""


class Conversations:
    """Between the store of sessions, the prompt modules and the engine that keeps what they computed."""

    def __init__(self, model: ServedModel, bridge: Bridge, config: ServeConfig) -> None:
        """Takes up what the folder of sessions holds. Raises ConfigError, and CheckpointError where it is in use."""
        self._model, self._bridge = model, bridge
        self.modules = PromptModules(model.tokenizer, dict(config.prompt_modules))
        self._check_modules()
        self._files: SessionFiles | None = None
        if config.session_dir is not None:
            self._files = SessionFiles(config.session_dir, config.names[0], model.facts.vocabulary_size)
        self.sessions = Sessions(config.sessions, self.tell, self._files)

    @property
    def secret(self) -> bytes | None:
        """What tenants are told apart by, where sessions outlive the process."""
        return None if self._files is None else self._files.secret

    def close(self) -> None:
        """The server ends."""
        if self._files is not None:
            self._files.close()

    def tell(self, keep: Keep) -> None:
        """Have the engine keep something; one that has ended has forgotten it all, and nothing else is lost."""
        try:
            self._bridge.door.send(keep)
        except EngineUnavailableError:
            logger.debug("there is no engine to keep anything")

    def keep_modules(self, prepared: Prepared, submit: Submit) -> None:
        """What a request begins with is kept from now on (an engine that was started again does not know it)."""
        if prepared.modules:
            prompt, salt = prepared.prompts[0], submit.cache_salt
            self.tell(self.modules.kept(prompt, prepared.form, prepared.modules, salt, submit.adapter))

    async def compute_modules(self, admission: Admission) -> None:
        """Compute and keep every module ahead of the first request for it, as a request of the server's own."""
        for name in self.modules.names:
            for form in FORMS:
                prompt = self.modules.alone(form, name)
                if prompt is None:
                    continue
                self.tell(self.modules.kept(prompt, form, (name,), b""))
                params = SamplingParams(max_tokens=1, temperature=0.0)
                try:
                    ticket = admission.enter()
                except ApiError:
                    return
                try:
                    samples = self._model.requests.samples([prompt], params, Terms())
                    ticket.take(1, len(prompt.token_ids))
                    job = self._bridge.submit(samples, ticket, time.monotonic())
                    await job.finish()
                except (ApiError, EngineUnavailableError):  # the first request computes it
                    return
                finally:
                    ticket.leave()

    def metrics(self, prefix: str, model_name: str) -> "SessionMetrics":
        """For the metrics page's registry."""
        return SessionMetrics(self.sessions, prefix, model_name)

    def shown(self, session: Session) -> dict[str, Any]:
        """What a list of sessions says of one."""
        return {
            "id": session.id,
            "object": "session",
            "created": int(session.created_s),
            "last_used": int(session.used_s),
            "expires": int(session.used_s + self.sessions.limits.session_ttl_s),
            "turns": session.turns,
            "holds": session.form,
            "prompt_modules": list(session.modules),
        }

    def _check_modules(self) -> None:
        """Raises ConfigError for a module that leaves no room in the context."""
        most = self._model.max_model_len
        for name in self.modules.names:
            prompt = self.modules.alone("text", name)
            if prompt is not None and len(prompt.token_ids) >= most:
                raise ConfigError(
                    f"the prompt module {name} has {len(prompt.token_ids)} tokens; the context holds {most} "
                    "(max_model_len), of which it must leave some",
                    settings=["max_model_len"],
                )


class SessionMetrics:
    """Reads the store when the metrics page is asked for."""

    def __init__(self, sessions: Sessions, prefix: str, model_name: str) -> None:
        self._sessions, self._prefix, self._model_name = sessions, prefix, model_name

    def collect(self) -> Iterator[Metric]:
        """How many there are, and how many turns they had."""
        self._sessions.expire()
        kept = GaugeMetricFamily(f"{self._prefix}:sessions", "Conversations that are kept.", labels=("model_name",))
        kept.add_metric((self._model_name,), len(self._sessions))
        yield kept
        turns = CounterMetricFamily(
            f"{self._prefix}:session_turns", "Turns of sessions that were answered.", labels=("model_name",)
        )
        turns.add_metric((self._model_name,), self._sessions.turns)
        yield turns
