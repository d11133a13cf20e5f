# SPDX-License-Identifier: Apache-2.0
"""Compiles and renders chat templates in the sandbox; every way to fail becomes one of our errors."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from linnet.errors import ConfigError
from linnet.text.sandbox import RenderLimitError, Sandbox, TemplateRefusal, within
from linnet.text.template import ChatTemplateError


def compile_template(name: str, source: str, clock: Callable[[], datetime], where: str) -> jinja2.Template:
    """Template ``name`` of the checkpoint ``where``. Raises ChatTemplateError."""
    try:
        return Sandbox(clock).from_string(source)
    except TemplateSyntaxError as error:
        place = f"chat template {name!r}, line {error.lineno}"
        raise ChatTemplateError(where, f"{place}, does not compile: {error.message}") from None
    except (TemplateError, RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
        kind = type(error).__name__
        raise ChatTemplateError(where, f"chat template {name!r} does not compile ({kind}: {error})") from None


def render(template: jinja2.Template, variables: Mapping[str, Any], seconds: float) -> str:
    """The template's text within ``seconds``. Raises ConfigError when it refuses, fails or takes too long."""
    try:
        return within(seconds, lambda: template.render(variables))
    except RenderLimitError as error:
        raise ConfigError(f"the chat template was stopped: {error}") from None
    except TemplateRefusal as error:
        raise ConfigError(f"the chat template refused the messages: {error}") from None
    except TemplateError as error:
        raise ConfigError(f"the chat template cannot render these messages: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        kind = type(error).__name__
        raise ConfigError(f"the chat template cannot render these messages: {kind}: {error}") from None
