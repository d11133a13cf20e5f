# SPDX-License-Identifier: Apache-2.0
"""The names of the forms of calls and thoughts, mostly vLLM's, in the order in which they are looked for."""

from collections.abc import Mapping

from linnet.api.tools.bare_objects import BareObjects
from linnet.api.tools.channels import Channels
from linnet.api.tools.interface import CallForm
from linnet.api.tools.listed_calls import ListedCalls, NamedCalls
from linnet.api.tools.marked_calls import FencedCalls, MarkedCalls
from linnet.api.tools.python_calls import PythonCalls
from linnet.api.tools.reasoning import Thoughts
from linnet.api.tools.tagged_objects import TaggedObjects
from linnet.api.tools.tagged_values import NamedValues, PairedValues

AUTO, NONE = "auto", "none"

CALL_FORMS: Mapping[str, CallForm] = {
    "openai": Channels(),
    "deepseek_v3": FencedCalls(),
    "deepseek_v31": MarkedCalls(),
    "mistral": ListedCalls(),
    "mistral_named": NamedCalls(),
    "glm45": PairedValues(),
    "qwen3_coder": NamedValues(),
    "hermes": TaggedObjects(),
    "llama3_json": BareObjects(),
    "pythonic": PythonCalls(),
}

THOUGHTS: Mapping[str, Thoughts] = {
    "think": Thoughts("<think>", "</think>"),
    "seed_oss": Thoughts("<seed:think>", "</seed:think>"),
    "mistral": Thoughts("[THINK]", "[/THINK]"),
}

ALIASES: Mapping[str, str] = {
    "deepseek_r1": "think",
    "deepseek_v3": "think",
    "qwen3": "think",
    "glm45": "think",
    "granite": "think",
}
"""Other names of thoughts."""
