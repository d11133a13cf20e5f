# SPDX-License-Identifier: Apache-2.0
"""Prompt modules: named texts that a prompt begins with, whose keys and values are kept.

A request that names modules is the request with their texts before its own, nothing else: positions follow from what
stands before, so the answer is exact. (The modules of Gim et al. 2024, arXiv:2311.04934, are computed apart, do not see
each other and come together in any order at little cost; the answers of a model are others then.) So what is reused is
the longest common beginning: of the first module always, of the following ones where they follow the same ones.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from linnet.api.prompts import PreparedPrompt
from linnet.api.sessions import NAME, Content, Form, Visit, joined
from linnet.engine import Keep, ParameterError
from linnet.errors import ConfigError
from linnet.text import ChatTemplateError, Tokenizer

MOST_MODULES = 16
"""Of one request."""
MOST_HEADS = 256
"""Combinations whose tokens are remembered."""
BETWEEN = "\n\n"
"""Stands between modules, and before a system message of the request's own, where they form the system message."""


class PromptModules:
    """The modules of one model. May be used from several threads."""

    def __init__(self, tokenizer: Tokenizer, texts: Mapping[str, str] | None = None) -> None:
        """Raises ConfigError."""
        self._tokenizer = tokenizer
        self._texts: dict[str, str] = {}
        self._heads: dict[tuple[Form, tuple[str, ...]], tuple[int, ...]] = {}
        self._lock = threading.Lock()
        for name, text in (texts or {}).items():
            self.add(name, text)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all modules, in the order in which they came."""
        return tuple(self._texts)

    def add(self, name: str, text: str) -> None:
        """Name a text. Raises ConfigError for a name that is odd or taken, and for an empty text."""
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"the prompt module's name is {name[:80]!r}; accepted are 1 to 128 of the characters "
                "A-Z a-z 0-9 . _ : - with a letter or digit first"
            )
        if name in self._texts:
            raise ConfigError(f"there are two prompt modules named {name}; give each its own name")
        if not text:
            raise ConfigError(f"the prompt module {name} is empty; accepted is a text")
        self._texts[name] = text

    def check(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names, if there are such modules. Raises ParameterError."""
        if isinstance(names, str) or len(names) > MOST_MODULES:
            raise ParameterError("prompt_modules", f"prompt_modules must be a list of at most {MOST_MODULES} names")
        for name in names:
            if name not in self._texts:
                known = ", ".join(self._texts) or "none"
                raise ParameterError(
                    "prompt_modules", f"there is no prompt module {str(name)[:80]!r}; there are: {known}"
                )
        return tuple(names)

    def before_text(self, names: Sequence[str], text: str) -> str:
        """The modules' texts and the request's, one after the other, nothing between them."""
        return "".join(self._texts[name] for name in names) + text

    def before_messages(
        self, names: Sequence[str], messages: Sequence[Mapping[str, Any]]
    ) -> tuple[Mapping[str, Any], ...]:
        """The modules form the system message, which the request's own one follows. Raises ParameterError."""
        if not names:
            return tuple(messages)
        parts = [self._texts[name] for name in names]
        if not messages or messages[0].get("role") != "system":
            return ({"role": "system", "content": BETWEEN.join(parts)}, *messages)
        own = messages[0].get("content")
        if not isinstance(own, str):
            raise ParameterError("messages", "beside prompt_modules the system message must be one text")
        return ({**messages[0], "content": BETWEEN.join([*parts, own])}, *messages[1:])

    def whole(
        self,
        visit: Visit,
        form: Form,
        new: Content,
        session_id: str | None,
        names: Sequence[str] = (),
        turns: int | None = None,
    ) -> Content:
        """The whole conversation of a request: what its session holds, or the modules it names, and what is new.

        ``visit.modules`` says afterwards which modules it begins with. Raises as ``Visit.open`` and ``check`` do.
        """
        names = self.check(names)
        if names and form == "token_ids":
            raise ParameterError("prompt_modules", "prompt_modules are texts, and stand before a text or messages only")
        before = None
        if session_id is not None:
            before = visit.open(session_id, form, names, turns)
        elif turns is not None:
            raise ParameterError("session_turns", "session_turns is accepted only with session")
        if before is not None:
            return joined(before, new)
        visit.modules = names
        if isinstance(new, str):
            return self.before_text(names, new)
        return self.before_messages(names, new) if form == "messages" else new  # type: ignore[arg-type]

    def mark(self, prompt: PreparedPrompt, form: Form, names: tuple[str, ...]) -> PreparedPrompt:
        """The prompt, with how many of its tokens everybody shares: those of its first module, which the operator
        gave and had computed, so that nothing is learnt of others by finding them there."""
        if not names:
            return prompt
        return replace(prompt, shared_tokens=_common(self._head(form, names[:1]), prompt.token_ids))

    def kept(
        self, prompt: PreparedPrompt, form: Form, names: tuple[str, ...], salt: bytes, adapter: int | None = None
    ) -> Keep:
        """What the engine is to keep of a prompt that begins with modules. One module is kept for everybody (who uses
        that adapter), and lasts; what follows it, for this salt."""
        alone = len(names) == 1
        count = prompt.shared_tokens if alone else _common(self._head(form, names), prompt.token_ids)
        through = () if adapter is None else (str(adapter),)
        place = blake2b("\0".join((form, *names, *through)).encode(), key=b"" if alone else blake2b(salt).digest())
        return Keep(
            owner=place.digest(),
            token_ids=prompt.token_ids[:count],
            cache_salt=salt,
            shared_tokens=prompt.shared_tokens,
            lasting=alone,
            adapter=adapter,
        )

    def alone(self, form: Form, name: str) -> PreparedPrompt | None:
        """The beginning of all prompts of this form that begin with the module, to be computed ahead; None: nothing."""
        head = self._head(form, (name,))
        return PreparedPrompt(None, head, len(head)) if head else None

    def _head(self, form: Form, names: tuple[str, ...]) -> tuple[int, ...]:
        """Token ids of a prompt up to the end of its modules; none where the template does not show them."""
        with self._lock:
            head = self._heads.get((form, names))
        if head is None:
            head = tuple(self._encoded(form, names))
            with self._lock:
                if len(self._heads) >= MOST_HEADS:
                    del self._heads[next(iter(self._heads))]
                self._heads[form, names] = head
        return head

    def _encoded(self, form: Form, names: tuple[str, ...]) -> Sequence[int]:
        if form == "text":
            return self._tokenizer.encode(self.before_text(names, ""))
        messages = self.before_messages(names, [{"role": "user", "content": "."}])
        try:
            shown = self._tokenizer.apply_chat_template(messages)
        except (ConfigError, ChatTemplateError):  # no template, or one without system messages: the request will say so
            return ()
        text = str(messages[0]["content"]).strip()
        place = shown.find(text)
        return () if place < 0 else self._tokenizer.encode_chat(shown[: place + len(text)])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
