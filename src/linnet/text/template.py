# SPDX-License-Identifier: Apache-2.0
"""Chat templates: where a checkpoint keeps them, which one applies, and rendering under limits.

jinja2 is imported with the first template that is compiled: a checkpoint without one does not pay for it.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnet.errors import CheckpointError, ConfigError
from linnet.text.call_form import CallShape, find_shape
from linnet.text.content_form import Chat, ContentForms
from linnet.text.files import TEMPLATE_BYTES, read_text

if TYPE_CHECKING:
    import jinja2

RENDER_SECONDS = 2.0
MOST_MESSAGES_CHARACTERS = 8 << 20
MOST_DEPTH = 64
_CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplateError(CheckpointError):
    """A chat template of the checkpoint does not compile; ``sentence`` says which and why, without the path."""

    code = "chat_template_error"

    def __init__(self, where: str, sentence: str) -> None:
        self.sentence = sentence
        super().__init__(f"{where}: {sentence}")


class ChatTemplates:
    """The named templates of one checkpoint; ``default`` is the usual one. Compiled on first use, then kept."""

    def __init__(
        self,
        sources: Mapping[str, str],
        *,
        clock: Callable[[], datetime] = datetime.now,
        render_seconds: float = RENDER_SECONDS,
        where: str = "chat template",
    ) -> None:
        for name, source in sources.items():
            if len(source) > TEMPLATE_BYTES:
                raise CheckpointError(f"{where}: template {name!r} has {len(source)} characters, over {TEMPLATE_BYTES}")
        self._sources = dict(sources)
        self._compiled: dict[str, jinja2.Template] = {}
        self._forms: dict[str, ContentForms] = {}
        self._shapes: dict[str, CallShape] = {}
        self._clock = clock
        self._seconds = render_seconds
        self._where = where
        self._lock = threading.Lock()

    @staticmethod
    def from_directory(
        directory: Path, tokenizer_config: Mapping[str, Any], *, clock: Callable[[], datetime] = datetime.now
    ) -> "ChatTemplates":
        """chat_template.jinja and additional_chat_templates/*.jinja win over tokenizer_config.json's entry."""
        sources: dict[str, str] = {}
        single = directory / "chat_template.jinja"
        if single.exists():
            sources["default"] = read_text(single, TEMPLATE_BYTES)
        extra = directory / "additional_chat_templates"
        for path in sorted(extra.glob("*.jinja")) if extra.is_dir() else ():
            sources[path.name.removesuffix(".jinja")] = read_text(path, TEMPLATE_BYTES)
        where = str(directory)
        if not sources:
            sources = _of_config(tokenizer_config.get("chat_template"), directory)
        return ChatTemplates(sources, clock=clock, where=where)

    @property
    def names(self) -> tuple[str, ...]:
        """The templates there are; empty for a checkpoint without any."""
        return tuple(sorted(self._sources))

    @property
    def sources(self) -> dict[str, str]:
        """Name -> what is compiled."""
        return dict(self._sources)

    def defects(self) -> tuple[ChatTemplateError, ...]:
        """One error for every template that does not compile, so that it is known before the first conversation."""
        found = []
        for name in self.names:
            try:
                self._template(name)
            except ChatTemplateError as error:
                found.append(error)
        return tuple(found)

    def choose(self, name: str | None = None, tools: object = None) -> str:
        """The name of the template that applies: ``tool_use`` when there are tools and it exists, else ``default``."""
        if not self._sources:
            raise ConfigError("this checkpoint has no chat template; use plain completions, or another checkpoint")
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in self._sources else "default"
        if name not in self._sources:
            raise ConfigError(f"no chat template named {name!r}; this checkpoint has {', '.join(self.names)}")
        return name

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
        name: str | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt text; text content is handed over in the form that the template shows, see ContentForms.

        Raises ConfigError for messages that are malformed, too large, refused or left out, and ChatTemplateError for a
        template that does not compile.
        """
        name = self.choose(name, tools)
        template = self._template(name)
        chat = _plain_messages(messages)
        if any(message.get("tool_calls") or message.get("role") == "tool" for message in chat):
            self.call_shape(arguments or {}, name).adapt(chat)
        plain_tools = _plain_objects("tools", tools)
        plain_documents = _plain_objects("documents", documents)
        plain_arguments = _Plain().copy(dict(arguments or {}))
        for reserved in ("messages", "tools", "documents", "add_generation_prompt"):
            plain_arguments.pop(reserved, None)
        probe = self._prober(template, plain_arguments)
        forms = self._forms.setdefault(name, ContentForms())
        forms.adapt(chat, probe)
        final = None
        if continue_final_message:
            if add_generation_prompt:
                raise ConfigError("continue_final_message and add_generation_prompt cannot both be set")
            if "content" not in self._sources[name]:
                raise ConfigError("continue_final_message is set but the chat template does not read the content")
            final = _mark_final(chat)
        from linnet.text.rendering import render

        variables = {
            "messages": chat,
            "tools": plain_tools,
            "documents": plain_documents,
            "add_generation_prompt": add_generation_prompt,
        }
        text = render(template, {**plain_arguments, **variables}, self._seconds)
        if "content" in self._sources[name]:  # a template that reads no message at all means to
            forms.check(chat, text, probe)
        return text if final is None else _cut_at_mark(text, final)

    def call_shape(self, arguments: Mapping[str, Any], name: str | None = None) -> CallShape:
        """What a template does with tools, by default the one that is chosen when there are some.

        Raises ConfigError and ChatTemplateError as ``render`` does.
        """
        from linnet.text.rendering import render

        name = self.choose(name, ())
        found = self._shapes.get(name)
        if found is None:
            template, tokens = self._template(name), _tokens(arguments)
            found = find_shape(
                lambda chat, tools: render(
                    template,
                    {**tokens, "messages": chat, "tools": tools, "documents": None, "add_generation_prompt": False},
                    self._seconds,
                )
            )
            self._shapes[name] = found
        return found

    def _prober(self, template: "jinja2.Template", arguments: Mapping[str, Any]) -> Callable[[Chat], str]:
        """Renders a conversation of probes with the checkpoint's tokens, and nothing else that a request may set."""
        from linnet.text.rendering import render

        tokens = _tokens(arguments)
        rest = {"tools": None, "documents": None, "add_generation_prompt": False}
        return lambda chat: render(template, {**tokens, **rest, "messages": chat}, self._seconds)

    def _template(self, name: str) -> "jinja2.Template":
        with self._lock:
            if name not in self._compiled:
                from linnet.text.rendering import compile_template

                self._compiled[name] = compile_template(name, self._sources[name], self._clock, self._where)
            return self._compiled[name]


def _tokens(arguments: Mapping[str, Any]) -> dict[str, str]:
    """The checkpoint's tokens among what a template is given."""
    return {key: value for key, value in arguments.items() if key.endswith("_token") and isinstance(value, str)}


def _of_config(entry: Any, directory: Path) -> dict[str, str]:
    """tokenizer_config.json's chat_template: one text, a list of {name, template}, or an object name -> text."""
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": entry}
    pairs: list[tuple[Any, Any]] = []
    if isinstance(entry, Mapping):
        pairs = list(entry.items())
    elif isinstance(entry, list) and all(isinstance(part, Mapping) for part in entry):
        pairs = [(part.get("name"), part.get("template")) for part in entry]
    if not pairs or not all(isinstance(name, str) and isinstance(text, str) for name, text in pairs):
        raise CheckpointError(
            f"{directory / 'tokenizer_config.json'}: chat_template must be a text or a list of objects with the "
            "texts name and template"
        )
    return dict(pairs)


class _Plain:
    """Rebuilds values out of plain JSON types, with a bound on size and depth; anything else is a ConfigError."""

    def __init__(self) -> None:
        self._characters = 0

    def copy(self, value: Any, depth: int = 0) -> Any:
        if depth > MOST_DEPTH:
            raise ConfigError(f"chat messages nested deeper than {MOST_DEPTH} levels are not accepted")
        self._characters += len(value) if isinstance(value, (str, bytes)) else 1
        if self._characters > MOST_MESSAGES_CHARACTERS:
            raise ConfigError(f"chat messages of more than {MOST_MESSAGES_CHARACTERS} characters are not accepted")
        if value is None or type(value) in (str, int, float, bool):
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, Mapping):
            return {self.copy(key, depth + 1): self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = [self.copy(item, depth + 1) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
        raise ConfigError(
            f"chat messages and template arguments are made of JSON values; {type(value).__name__} is not accepted"
        )


def _plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Fresh plain copies; keys whose value is None are dropped and reasoning is filed under all its names."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ConfigError(f"messages must be a list of objects, not {type(messages).__name__}")
    if not messages:
        raise ConfigError("messages is empty; at least one message is needed")
    plain, chat = _Plain(), []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ConfigError(f"messages[{index}] must be an object, not {type(message).__name__}")
        copied = plain.copy({key: value for key, value in message.items() if value is not None})
        reasoning = next((copied[key] for key in _REASONING if copied.get(key) is not None), None)
        if reasoning is not None:
            copied = {"thinking": reasoning, **copied, "reasoning_content": reasoning}
        chat.append(copied)
    return chat


def _plain_objects(name: str, values: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    if values is None:
        return None
    if isinstance(values, (str, Mapping)) or not all(isinstance(value, Mapping) for value in values):
        raise ConfigError(f"{name} must be a list of objects")
    plain = _Plain()
    return [plain.copy(value) for value in values]


def _mark_final(chat: list[dict[str, Any]]) -> str:
    """Append a mark to the last message's text, so that the prompt can be cut there; returns the text."""
    content = chat[-1].get("content")
    if isinstance(content, str):
        chat[-1]["content"] = content + _CONTINUE
        return content
    for block in reversed(content) if isinstance(content, (list, tuple)) else ():
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            text: str = block["text"]
            block["text"] = text + _CONTINUE
            return text
    raise ConfigError("continue_final_message is set but the final message has no text to continue")


def _cut_at_mark(text: str, final: str) -> str:
    mark = _CONTINUE.strip()
    if final.strip() not in text or mark not in text:
        raise ConfigError("continue_final_message is set but the chat template does not show the final message")
    place = text.rindex(mark)
    if text[place : place + len(_CONTINUE)] == _CONTINUE:
        return text[:place]
    return text[:place].rstrip()
