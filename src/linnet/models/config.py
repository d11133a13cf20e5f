# SPDX-License-Identifier: Apache-2.0
"""ConfigReader: typed, bounded reading of a model's config.json that remembers what was understood.

A field that was never read, is not known to be harmless and is not empty would change the mathematics in a way nobody
here understands: ``finish`` refuses it by name.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from linnet.errors import CheckpointError, UnsupportedError

T = TypeVar("T")

MAXIMUM_LAYERS = 4096
MAXIMUM_WIDTH = 1 << 24
MAXIMUM_POSITIONS = 1 << 30

_HARMLESS = """
architectures model_type torch_dtype dtype transformers_version auto_map name_or_path custom_pipelines
quantization_config compression_config initializer_range initializer_factor use_cache pretraining_tp torchscript license
output_attentions output_hidden_states return_dict return_dict_in_generate use_return_dict output_scores
is_decoder is_encoder_decoder cache_implementation attn_implementation gradient_checkpointing
id2label label2id num_labels problem_type finetuning_task task_specific_params prefix tokenizer_class
suppress_tokens begin_suppress_tokens bad_words_ids
max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
num_return_sequences exponential_decay_length_penalty remove_invalid_values chunk_size_feed_forward
keys_to_ignore_at_inference model_max_length max_new_tokens bos_token eos_token pad_token unk_token
use_bfloat16 tf_legacy_loss pruned_heads model_name base_model tokenizer_name max_sequence_length vocab_file
"""
HARMLESS: frozenset[str] = frozenset(_HARMLESS.split())
"""Fields that never change what the model computes at inference, in any family."""
HARMLESS_BEGINNINGS = ("_", "transformers")
HARMLESS_ENDINGS = ("_version", "_fixed", "_dropout", "_pdrop", "_dropout_prob", "_token_id")

Neutral = Callable[[Any, Mapping[str, Any]], bool]


def _no_windows(_: Any, fields: Mapping[str, Any]) -> bool:
    return fields.get("use_sliding_window") is False or fields.get("sliding_window") is None


def _one(value: Any, _: Mapping[str, Any]) -> bool:
    return bool(value == 1)


NEUTRAL: dict[str, Neutral] = {
    "sliding_window": lambda _, fields: fields.get("use_sliding_window") is False,
    "sliding_window_pattern": _no_windows,
    "max_window_layers": lambda _, fields: not fields.get("use_sliding_window"),
    "layer_types": lambda value, _: isinstance(value, list) and set(value) == {"full_attention"},
    "partial_rotary_factor": _one,
    "residual_multiplier": _one,
    "embedding_multiplier": _one,
    "scale_emb": _one,
    "logits_scaling": _one,
    "logit_scale": _one,
}
"""Fields of some families that a converter may leave in the config of another: (value, whole config) -> whether it says
no more than the absence of the field."""


class ConfigReader:
    """Reads fields of one JSON object; ``where`` begins every message (``config.json``).

    ``warnings`` collects what the user should hear of; the readers of objects within share it.
    """

    def __init__(
        self, fields: Mapping[str, Any], where: str = "config.json", warnings: list[str] | None = None
    ) -> None:
        if not isinstance(fields, Mapping):
            raise CheckpointError(f"{where}: expected an object, found {type(fields).__name__}")
        self.fields = fields
        self.where = where
        self.understood: set[str] = set()
        self.warnings: list[str] = [] if warnings is None else warnings

    def within(self, name: str, fields: Mapping[str, Any]) -> "ConfigReader":
        """The reader of an object that lies in the field ``name``."""
        return ConfigReader(fields, f"{self.where}: {name}", self.warnings)

    def find(self, names: Iterable[str]) -> tuple[str, Any]:
        """The first of several spellings that is present and not null, with its value; all count as understood."""
        spellings = tuple(names)
        self.understood.update(spellings)
        for name in spellings:
            if self.fields.get(name) is not None:
                return name, self.fields[name]
        return spellings[0], None

    def size(self, *names: str, default: int | None = None, maximum: int = MAXIMUM_WIDTH) -> int:
        """A whole number from 1 to ``maximum``. Raises CheckpointError if absent without default or out of range."""
        name, value = self.find(names)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self.where}: {name} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
            raise CheckpointError(f"{self.where}: {name} is {value!r}; accepted is a whole number from 1 to {maximum}")
        return value

    def optional_size(self, *names: str, maximum: int = MAXIMUM_POSITIONS) -> int | None:
        """As ``size``, but absent, null and nothing else means None."""
        return None if self.find(names)[1] is None else self.size(*names, maximum=maximum)

    def number(self, *names: str, default: float | None = None, low: float = 0.0, high: float = 1e15) -> float:
        """A finite number in (low, high]."""
        name, value = self.find(names)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self.where}: {name} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(f"{self.where}: {name} is {value!r}; accepted is a number")
        if not low < value <= high:
            raise CheckpointError(
                f"{self.where}: {name} is {value!r}; accepted is more than {low:g} and at most {high:g}"
            )
        return float(value)

    def optional_number(self, *names: str, low: float = 0.0, high: float = 1e15) -> float | None:
        """As ``number``; absent or null means None."""
        return None if self.find(names)[1] is None else self.number(*names, low=low, high=high)

    def flag(self, *names: str, default: bool = False) -> bool:
        """true or false."""
        name, value = self.find(names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {name} is {value!r}; accepted are true and false")
        return value

    def choice(self, *names: str, accepted: Mapping[str, T], default: str | None = None) -> T:
        """A word from a table; a word outside it is an UnsupportedError that lists the table."""
        name, value = self.find(names)
        value = default if value is None else value
        if not isinstance(value, str) or value not in accepted:
            raise UnsupportedError(f"{self.where}: {name} is {value!r}; supported are {', '.join(accepted)}")
        return accepted[value]

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of exactly ``length`` positive finite numbers."""
        _, value = self.find((name,))
        if not isinstance(value, list) or len(value) != length:
            found = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
            raise CheckpointError(f"{self.where}: {name} is {found}; accepted is a list of {length} numbers")
        for item in value:
            good = isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) and item > 0
            if not good:
                raise CheckpointError(f"{self.where}: {name} holds {item!r}; accepted are positive numbers")
        return tuple(float(item) for item in value)

    def words(self, name: str, length: int) -> tuple[str, ...] | None:
        """A list of exactly ``length`` strings, or None when absent."""
        _, value = self.find((name,))
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length or not all(isinstance(item, str) for item in value):
            raise CheckpointError(f"{self.where}: {name} must be a list of {length} strings")
        return tuple(value)

    def flags(self, name: str, length: int) -> tuple[bool, ...] | None:
        """A list of at least ``length`` of true, false, 1 and 0, of which so many count; None when absent."""
        _, value = self.find((name,))
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < length or not all(item in (0, 1) for item in value):
            raise CheckpointError(f"{self.where}: {name} must be a list of {length} flags")
        return tuple(bool(item) for item in value[:length])

    def require_off(self, *names: str) -> None:
        """Fields whose neutral value (absent, null, false) is the only one supported."""
        for name in names:
            self.understood.add(name)
            if self.fields.get(name) not in (None, False):
                raise UnsupportedError(f"{self.where}: {name} is {self.fields[name]!r}; only false is supported")

    def require(self, name: str, *accepted: Any) -> None:
        """A field that, if it is there, must say what the family computes anyway."""
        self.understood.add(name)
        value = self.fields.get(name)
        if value is not None and value not in accepted:
            supported = " and ".join(repr(item) for item in accepted)
            raise UnsupportedError(f"{self.where}: {name} is {_brief(value)}; supported is {supported}")

    def ignore(self, *names: str) -> None:
        """Fields this family's mathematics does not read."""
        self.understood.update(names)

    def pass_over(self, name: str, reason: str) -> None:
        """A field that other programs may read and this one does not: a warning, unless it is null or one."""
        self.understood.add(name)
        value = self.fields.get(name)
        if value is not None and value != 1:
            self.warnings.append(f"{self.where}: {name} = {_brief(value)} is not used: {reason}")

    def finish(self) -> None:
        """Refuse every field that nobody understood and that is neither empty nor neutral."""
        unknown = [
            f"{name} = {_brief(value)}"
            for name, value in sorted(self.fields.items())
            if name not in self.understood
            and name not in HARMLESS
            and not name.startswith(HARMLESS_BEGINNINGS)
            and not name.endswith(HARMLESS_ENDINGS)
            and value not in (None, False, "", [], {})
            and not (name in NEUTRAL and NEUTRAL[name](value, self.fields))
        ]
        if unknown:
            raise UnsupportedError(f"{self.where} has fields that may change what this model computes", unknown)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
