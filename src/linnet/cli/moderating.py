# SPDX-License-Identifier: Apache-2.0
"""``--moderation``: which function sees every text before it goes out."""

from typing import TYPE_CHECKING

from linnet.errors import ConfigError

if TYPE_CHECKING:
    from linnet.api import Moderate

ENTRY_POINTS = "linnet.moderation"
"""The group in which an installed package names its hooks."""


def moderation_hook(named: str | None) -> "Moderate | None":
    """``module:function``, or the name of an entry point. Raises ConfigError if there is no such function."""
    if named is None:
        return None
    from importlib import import_module
    from importlib.metadata import entry_points

    module, colon, name = named.partition(":")
    try:
        if colon:
            hook = getattr(import_module(module), name)
        else:
            points = entry_points(group=ENTRY_POINTS)
            if named not in points.names:
                known = f"; installed are {', '.join(sorted(points.names))}" if points.names else ""
                raise ConfigError(
                    f"moderation is {named[:80]!r}; accepted is module:function, or a name of the entry points "
                    f"{ENTRY_POINTS}{known}",
                    settings=["moderation"],
                )
            hook = points[named].load()
    except ConfigError:
        raise
    except Exception as error:  # whatever a module does while it is imported
        raise ConfigError(
            f"moderation is {named[:80]!r}, which cannot be loaded: {type(error).__name__}: {str(error)[:200]}",
            settings=["moderation"],
        ) from None
    if not callable(hook):
        raise ConfigError(f"moderation is {named[:80]!r}, which is no function", settings=["moderation"])
    found: Moderate = hook
    return found
