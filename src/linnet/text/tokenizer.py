# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a checkpoint: text to token ids and back, its special tokens, and its chat template.

``tokenizer.json`` is executed by the ``tokenizers`` library; what the other files add (special tokens, templates, end
of sequence ids) is read here. Nothing in a checkpoint is ever run as code.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import tokenizers

from linnet.errors import CheckpointError, ConfigError
from linnet.gguf import gguf_of
from linnet.text.call_form import CallShape
from linnet.text.convert import convert_tokenizer
from linnet.text.decoder import DecoderSpec, IncrementalDecoder
from linnet.text.files import CONFIG_BYTES, TOKENIZER_BYTES, optional_json_object, read_bytes
from linnet.text.parse import of_library, parse_tokenizer
from linnet.text.template import ChatTemplates

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MOST_TOKEN_IDS = 1 << 24
LEAST_BEGINNING = 4096
"""Characters that are tokenised in one go, whatever the bound."""


class Tokenizer:
    """See the module. Immutable after construction and safe to use from several threads."""

    def __init__(
        self,
        tokenizer: str | bytes | tokenizers.Tokenizer,
        *,
        tokenizer_config: Mapping[str, Any] | None = None,
        special_tokens_map: Mapping[str, Any] | None = None,
        eos_token_ids: Iterable[int] = (),
        templates: ChatTemplates | None = None,
        where: str = "tokenizer.json",
    ) -> None:
        """``tokenizer``: the text of a tokenizer.json, or the library's object, which is then this one's own.

        ``where`` names the source in errors; ``eos_token_ids`` are those of the model's configs.
        """
        config = dict(tokenizer_config or {})
        self._where = where
        if isinstance(tokenizer, tokenizers.Tokenizer):
            self._backend, size = tokenizer, tokenizer.get_vocab_size(with_added_tokens=False)
        else:
            text = tokenizer.encode("utf-8", "surrogatepass") if isinstance(tokenizer, str) else tokenizer
            self._backend, size = parse_tokenizer(text, where)
        self.named_tokens = _named_tokens(config, special_tokens_map or {})
        _add_missing_tokens(self._backend, config, self.named_tokens, where)
        self._backend.no_truncation()
        self._backend.no_padding()
        added = self._backend.get_added_tokens_decoder()
        self.vocabulary_size = max(size, 1 + max(added, default=-1))
        if not 1 <= self.vocabulary_size <= MOST_TOKEN_IDS:
            raise CheckpointError(
                f"{where}: token ids reach {self.vocabulary_size - 1}; 1 to {MOST_TOKEN_IDS} tokens are accepted"
            )
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.bos_token_id = self._named_id("bos_token")
        self.unk_token_id = self._named_id("unk_token")
        own_eos = self._named_id("eos_token")
        found = {int(token_id) for token_id in eos_token_ids} | ({own_eos} if own_eos is not None else set())
        self.eos_token_ids = tuple(sorted(found))
        self.templates = templates or ChatTemplates({})
        decoder = self._backend.decoder
        self._decoder = DecoderSpec(None if decoder is None else json.loads(decoder.__getstate__()))
        self.adds_bos = self.bos_token_id is not None and self.encode("")[:1] == [self.bos_token_id]

    @staticmethod
    def open(
        path: str | Path,
        *,
        clock: Callable[[], datetime] = datetime.now,
        cache_directory: Path | None = None,
    ) -> "Tokenizer":
        """The tokenizer of a model: of a directory (``from_directory``) or of a GGUF file, from its metadata.

        Raises CheckpointError and UnsupportedError in a sentence.
        """
        source = gguf_of(Path(path))
        if source is None:
            return Tokenizer.from_directory(path, clock=clock, cache_directory=cache_directory)
        from linnet.text.gguf_tokenizer import read_gguf_tokenizer  # here: a directory does not need it

        found = read_gguf_tokenizer(source, clock)
        return Tokenizer(
            found.backend,
            tokenizer_config=found.config,
            eos_token_ids=found.eos_token_ids,
            templates=found.templates,
            where=str(source),
        )

    @staticmethod
    def from_directory(
        path: str | Path,
        *,
        clock: Callable[[], datetime] = datetime.now,
        cache_directory: Path | None = None,
    ) -> "Tokenizer":
        """Read the tokenizer of a checkpoint directory.

        Without ``tokenizer.json`` the directory is converted once by transformers, in a subprocess, into
        ``cache_directory`` (default: the user's cache). ``clock`` is what ``strftime_now`` shows to chat templates.
        Raises CheckpointError for a damaged file and UnsupportedError when a conversion is needed and impossible.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: not a directory")
        source = directory / "tokenizer.json"
        if not source.exists():
            source = convert_tokenizer(directory, cache_directory) / "tokenizer.json"
        config = optional_json_object(directory / "tokenizer_config.json")
        return Tokenizer(
            read_bytes(source, TOKENIZER_BYTES),
            tokenizer_config=config,
            special_tokens_map=optional_json_object(directory / "special_tokens_map.json", CONFIG_BYTES),
            eos_token_ids=_eos_of_model(directory),
            templates=ChatTemplates.from_directory(directory, config, clock=clock),
            where=str(source),
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; ``add_special_tokens`` runs the post-processor (which may add BOS).

        Raises ConfigError for text that is not Unicode scalar values (lone surrogates).
        """
        try:
            # The batch call lets go of the interpreter lock; encode() would stop every other thread for its duration.
            return self._backend.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids
        except (UnicodeEncodeError, TypeError):
            raise ConfigError("the text is not UTF-8: some of its bytes, or halves of pairs, are no letters") from None
        except BaseException as error:
            if not of_library(error):
                raise
            raise ConfigError(f"the tokenizer cannot encode this text: {error}") from None

    def encode_within(self, text: str, most_tokens: int, add_special_tokens: bool = True) -> list[int] | None:
        """``encode``, or None for a text of more tokens, which is found out without tokenising all of it.

        A beginning of the text that is more by a quarter settles it: what follows can change its last tokens only.
        """
        length = max(4 * most_tokens, LEAST_BEGINNING)
        while length < len(text):
            if len(self.encode(text[:length], add_special_tokens)) > most_tokens + most_tokens // 4 + 64:
                return None
            length *= 2
        ids = self.encode(text, add_special_tokens)
        return ids if len(ids) <= most_tokens else None

    def encode_chat(self, prompt: str) -> list[int]:
        """Token ids of a rendered chat template, which writes its own special tokens: never a second BOS."""
        return self.encode(prompt, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ``token_ids``; ids outside the vocabulary have no text."""
        ids = [token_id for token_id in map(int, token_ids) if 0 <= token_id < self.vocabulary_size]
        try:
            return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            if not of_library(error):
                raise
            decoder = self.incremental_decoder(skip_special_tokens)  # the library panics on some degenerate strips
            return decoder.feed(ids) + decoder.finish()

    def token(self, token_id: int) -> str | None:
        """The token's stored form (byte-level alphabet, ``▁`` and so on), or None for an unknown id."""
        return self._backend.id_to_token(int(token_id)) if token_id >= 0 else None

    def token_id(self, token: str) -> int | None:
        """The id of a stored form, or None."""
        return self._backend.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for, with special tokens shown (logprobs show tokens one by one)."""
        token = self.token(token_id)
        return b"" if token is None else self._decoder.token_bytes(token)

    def incremental_decoder(
        self, skip_special_tokens: bool = True, shown: frozenset[int] = frozenset()
    ) -> IncrementalDecoder:
        """A fresh streaming decoder; the concatenation of what it returns equals ``decode`` of the same ids.

        ``shown``: special tokens that are not skipped.
        """
        skipped = self.special_token_ids - shown if skip_special_tokens else frozenset()
        return IncrementalDecoder(self._decoder, self.token, skipped)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        template: str | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt text of a conversation. ``template`` chooses among named templates.

        Raises ConfigError when there is no such template or the template refuses the messages.
        """
        return self.templates.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            documents=documents,
            arguments={**self.named_tokens, **(template_arguments or {})},
            name=template,
            continue_final_message=continue_final_message,
        )

    def call_shape(self) -> CallShape:
        """What the chat template does with tools; nothing where there is none. Raises ChatTemplateError."""
        if not self.templates.names:
            return CallShape(shown=None)
        return self.templates.call_shape(self.named_tokens)

    def _named_id(self, name: str) -> int | None:
        token = self.named_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)


def _content(value: Any) -> str | None:
    """Token entries are strings or AddedToken objects."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _named_tokens(config: Mapping[str, Any], special_tokens_map: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and so on, and the model's own ``*_token`` names: all of them are visible to chat templates.

    ``special_tokens_map.json`` is read only where tokenizer_config.json has no ``added_tokens_decoder``, as
    transformers does.
    """
    merged = dict(config)
    if "added_tokens_decoder" not in config:
        merged.update(special_tokens_map)
    named = {name: token for name in NAMED_TOKENS if (token := _content(merged.get(name)))}
    extra = merged.get("extra_special_tokens")
    for source in (merged, extra if isinstance(extra, Mapping) else {}):
        for name, value in source.items():
            token = _content(value)
            if name.endswith("_token") and token and name not in named:
                named[name] = token
    return named


def _add_missing_tokens(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], named: Mapping[str, str], where: str
) -> None:
    """Add tokens that only tokenizer_config.json declares, at the ids it declares, as transformers does."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    declared = config.get("added_tokens_decoder")
    entries: list[tuple[int, Mapping[str, Any]]] = []
    for key, entry in declared.items() if isinstance(declared, Mapping) else ():
        if not str(key).isdigit() or not isinstance(entry, Mapping) or _content(entry) is None:
            raise CheckpointError(f"{where}: tokenizer_config.json declares a malformed added token {key!r}")
        entries.append((int(key), entry))
    for token_id, entry in sorted(entries, key=lambda pair: pair[0]):
        content, special = str(entry["content"]), bool(entry.get("special", False))
        old = known.get(content)
        if old is not None and old.special == special:
            continue
        flags = {name: bool(entry[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in entry}
        token = tokenizers.AddedToken(content, special=special, **flags)
        (backend.add_special_tokens if special else backend.add_tokens)([token])
        if backend.token_to_id(content) != token_id:
            raise CheckpointError(
                f"{where}: tokenizer_config.json gives {content!r} the id {token_id}, the tokenizer "
                f"{backend.token_to_id(content)}"
            )
    known_now = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [token for token in dict.fromkeys(named.values()) if token not in known_now]
    if missing:
        backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in missing])


def _eos_of_model(directory: Path) -> set[int]:
    """End of sequence ids of generation_config.json and config.json (top level and ``text_config``)."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        config = optional_json_object(directory / name)
        nested = config.get("text_config")
        for source in (config, nested if isinstance(nested, dict) else {}):
            value = source.get("eos_token_id")
            values = value if isinstance(value, list) else [] if value is None else [value]
            for token_id in values:
                if not isinstance(token_id, int) or isinstance(token_id, bool) or not -1 <= token_id < MOST_TOKEN_IDS:
                    raise CheckpointError(
                        f"{directory / name}: eos_token_id is {value!r}; accepted is a token id or a list of them"
                    )
                if token_id >= 0:
                    found.add(token_id)
    return found
